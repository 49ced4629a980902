"""A look at guests over fakes: what is known of each, what is left over, and what is missing said with its remedy."""

from dataclasses import dataclass, field

import pytest

from tests.fakes import FakeFacts, FakeHypervisor
from tests.lab.samples import guest
from virtksm.errors import LibvirtUnreachable, SensingFailed, Unsupported
from virtksm.guests.obstacles import Obstacle
from virtksm.guests.process import GuestProcess, OtherProcess, ProcessKsm
from virtksm.guests.survey import SeenGuest, Survey, survey
from virtksm.model.snapshot import KsmState, Settings, Source
from virtksm.values import replace

COUNTERS = {"ksm_zero_pages": 20}
QEMU = ("qemu", "-machine", "pc")


@dataclass
class Kernel(FakeHypervisor):
    """A hypervisor over a kernel that has merged pages."""

    shared: int = 100
    sharing: int = 300
    unreadable: set[str] = field(default_factory=set)

    def ksm_state(self) -> KsmState:
        return replace(super().ksm_state(), pages_shared=self.shared, pages_sharing=self.sharing)

    def guest_xml(self, uuid: str) -> str:
        if uuid in self.unreadable:
            raise SensingFailed("reading a guest's XML: denied")
        return super().guest_xml(uuid)


def domain(*parts: str) -> str:
    return f"<domain><memory unit='KiB'>24576</memory><currentMemory>16384</currentMemory>{''.join(parts)}</domain>"


def kernel(*names: str, xml: str = domain()) -> Kernel:
    guests = tuple(guest(name) for name in names)
    return Kernel(running=guests, xml={one.uuid: xml for one in guests})


def process(merging: int, *, zero: int = 0, items: int = 0) -> GuestProcess:
    return GuestProcess(arguments=QEMU, ksm=ProcessKsm(rmap_items=items, zero_pages=zero, merging_pages=merging))


def facts(*processes: GuestProcess) -> FakeFacts:
    uuids = ("uuid of one", "uuid of two")
    return FakeFacts(
        rss_kib=dict.fromkeys(uuids, 20_000),
        of_guests=dict(zip(uuids, processes, strict=False)),
        counters=COUNTERS,
        profit_bytes=320 * 4096 - 500 * 64,
    )


def by_name(found: Survey) -> dict[str, SeenGuest]:
    return {one.guest.name: one for one in found.guests}


def test_what_huge_pages_gave_back_is_saved_on_its_guest() -> None:
    here = facts(process(200, zero=20, items=300), process(200, items=200))
    without = survey(kernel("one", "two"), here)
    found = survey(kernel("one", "two"), here, {guest("one").key: 1000, guest("gone").key: 7})
    one = by_name(found)["one"].account
    assert one is not None
    assert (found.ksm.freed_kib, one.freed_bytes) == (1000, 1000 * 1024)
    assert found.of_guests_bytes == without.of_guests_bytes + 1000 * 1024
    assert found.left_over == without.left_over
    assert without.ksm.freed_kib is None


def test_each_guest_has_its_memory_its_share_and_no_obstacle() -> None:
    found = survey(kernel("one", "two"), facts(process(200, zero=20, items=300), process(200, items=200)))
    one, two = by_name(found)["one"], by_name(found)["two"]
    assert (one.xml.current_kib, one.max_kib, one.guest.rss_kib) == (16384, 24576, 20_000)
    assert one.account is not None
    assert two.account is not None
    assert one.account.saved_bytes - two.account.saved_bytes == 20 * 4096
    assert (one.zero_kib, two.zero_kib) == (80, 0)
    assert one.can_merge
    assert found.left_over is not None
    assert (found.left_over.merging_pages, found.left_over.zero_pages, found.left_over.cost_bytes) == (0, 0, 0)
    assert found.of_guests_bytes == (found.ksm.saved_kib or 0) * 1024
    assert (found.notes, found.other_processes, found.source) == ((), (), Source.LOCAL)


def test_what_is_left_over_is_that_of_other_processes_the_largest_first_and_what_hangs_is_said() -> None:
    here = facts(process(100), process(50))
    here.other_processes = tuple(OtherProcess(pid=pid, name="other", merging_pages=pid * 10) for pid in (7, 12))
    here.trouble = ("process 100 (x) hangs",)
    found = survey(kernel("one", "two"), here)
    assert found.notes == here.trouble
    assert found.left_over is not None
    assert (found.left_over.merging_pages, found.left_over.zero_pages) == (250, 20)
    assert [one.pid for one in found.other_processes] == [12, 7]


def test_a_guest_that_ends_meanwhile_is_left_out_and_unreadable_xml_leaves_open_whether_it_can_merge() -> None:
    here = kernel("one", "two", "ended")
    del here.xml["uuid of ended"]
    here.unreadable.add("uuid of one")
    here.xml["uuid of two"] = "<network/>"
    found = survey(here, facts(process(1), process(1)))
    assert [(one.guest.name, one.can_merge, one.max_kib) for one in found.guests] == [
        ("one", None, None),
        ("two", None, None),
    ]
    assert any("denied" in note for note in found.notes)
    assert any("the XML of 'two' is no domain's XML" in note for note in found.notes)


def test_the_command_line_and_ksms_switch_are_obstacles_too() -> None:
    here = facts(GuestProcess(arguments=("qemu", "-machine", "pc,mem-merge=off"), ksm=None), process(0))
    here.run = 0
    found = by_name(survey(kernel("one", "two"), here))
    assert found["one"].obstacles == (Obstacle.MERGE_OFF, Obstacle.KSM_OFF)
    assert found["two"].obstacles == (Obstacle.KSM_OFF,)


def test_a_guest_that_was_unmerged_while_it_runs_says_so() -> None:
    here = facts(process(0), process(0))
    found = by_name(survey(kernel("one", "two"), here, None, lambda running: {running[0].key}))
    assert (found["one"].can_merge, found["one"].obstacles) == (False, (Obstacle.UNMERGED,))
    assert found["two"].can_merge


@pytest.mark.parametrize(
    ("processes", "note"),
    [
        ([None, None], "no process was found for 2 guests"),
        ([GuestProcess(arguments=QEMU, ksm=None), process(1)], "of 1 guest are for root to read"),
        ([GuestProcess(arguments=QEMU, ksm=ProcessKsm()), process(1)], "it takes Linux 5.19"),
        ([GuestProcess(arguments=QEMU, ksm=ProcessKsm(merging_pages=1)), process(1)], "it takes Linux 6.1"),
    ],
)
def test_what_is_missing_is_said(processes: list[GuestProcess | None], note: str) -> None:
    here = facts()
    here.of_guests = {
        f"uuid of {name}": one for name, one in zip(("one", "two"), processes, strict=True) if one is not None
    }
    (told,) = survey(kernel("one", "two"), here).notes
    assert note in told


def test_a_connection_that_is_lost_and_a_kernel_without_ksm_are_errors() -> None:
    class Lost(Kernel):
        def guest_xml(self, uuid: str) -> str:
            raise LibvirtUnreachable(f"reading {uuid}")

    class Without(Kernel):
        def ksm_state(self) -> KsmState:
            return KsmState(settings=Settings(pages_to_scan=None, sleep_millisecs=None))

    with pytest.raises(LibvirtUnreachable):
        survey(Lost(running=(guest("one"),)), facts())
    with pytest.raises(Unsupported, match="CONFIG_KSM"):
        survey(Without(), FakeFacts())


def test_nosharepages_that_is_overruled_is_said() -> None:
    here = facts(GuestProcess(arguments=QEMU, ksm=ProcessKsm(rmap_items=9, merging_pages=9, merges_any=True)))
    found = survey(kernel("one", xml=domain("<memoryBacking><nosharepages/></memoryBacking>")), here)
    assert found.guests[0].can_merge
    (note,) = found.notes
    assert "nosharepages is overruled for 1 guest" in note


def test_without_guests_all_is_left_over_and_without_one_account_nothing() -> None:
    found = survey(Kernel(), FakeFacts(counters=COUNTERS))
    assert found.left_over is not None
    assert (found.guests, found.left_over.merging_pages) == ((), 400)
    found = survey(kernel("one"), FakeFacts(counters={"ksm_zero_pages": None}))
    assert (found.left_over, found.ksm.ksm_zero_pages) == (None, None)
    assert any("zero pages" in note for note in found.notes)


def test_of_another_machine_only_what_libvirt_tells_is_known() -> None:
    there = kernel("one", xml=domain("<memoryBacking><nosharepages/></memoryBacking>"))
    there.measured = (replace(guest("one"), rss_kib=20_000, max_kib=24_576),)
    found = survey(there, None)
    (one,) = found.guests
    assert (one.guest.rss_kib, one.account, one.process) == (20_000, None, None)
    assert one.obstacles == (Obstacle.NOSHAREPAGES,)
    assert (found.source, found.left_over, found.ksm.run) == (Source.LIBVIRT, None, None)
    assert found.ksm.pages_sharing == 300
    assert "run this command there" in found.notes[0]
