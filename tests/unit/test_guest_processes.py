"""Which process is which guest: by control groups and owners, beside strangers who lie and hang."""

import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from tests.fake_proc import FakeProc
from tests.fakes import FakeClock
from virtksm.host.bounded import Wait
from virtksm.host.guest_processes import HIDDEN, MAX_PAUSE_S, MIN_PAUSE_S, GuestSearch, is_named, parse_guest_group
from virtksm.host.proc_files import LimitedReads, Result, identify
from virtksm.model.snapshot import Guest

QEMU_USER = 64055
STRANGER = 1000
SCOPE = "/machine.slice/machine-qemu\\x2d{id}\\x2d{name}.scope"
V2 = f"0::{SCOPE}/libvirt/emulator\n"
V1 = (
    f"12:cpuset:{SCOPE}/libvirt/emulator\n11:devices:{SCOPE}\n10:pids:/\n9:cpu,cpuacct:{SCOPE}/libvirt/emulator\n"
    f"1:name=systemd:{SCOPE}\n"
)
HYBRID = f"{V1}0::{SCOPE}\n"
WITHOUT_MACHINED = (
    "4:memory:/machine/qemu-{id}-{name}.libvirt-qemu\n3:cpu,cpuacct:/machine/qemu-{id}-{name}.libvirt-qemu/emulator\n"
)
DAEMONS = "0::/system.slice/libvirtd.service\n"


class CountedReads(LimitedReads):
    """Counts what is read with a limit, each a thread."""

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait=wait)
        self.count = 0

    def read(self, pids: Iterable[int], read: Callable[[int], Result], *, max_hangs: int = 1) -> dict[int, Result]:
        self.count += 1
        return super().read(pids, read, max_hangs=max_hangs)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def reads(proc: FakeProc) -> CountedReads:
    return CountedReads(proc.wait)


@pytest.fixture
def search(clock: FakeClock, reads: CountedReads, tmp_path: Path) -> GuestSearch:
    return GuestSearch(clock, reads, qemu_home=str(tmp_path / "none"))


def guest(uuid: str = "A", *, domain_id: int = 1) -> Guest:
    return Guest(uuid=uuid, name="web", domain_id=domain_id)


def troubles(told: GuestSearch | LimitedReads) -> tuple[str, ...]:
    return told.trouble


def pids(found: Mapping[str, object], *running: Guest) -> list[int | None]:
    return [getattr(found.get(one.key), "pid", None) for one in running]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (V2.format(id=7, name="debian12\\x2d1"), (7, "debian12-1")),
        (V1.format(id=7, name="web"), (7, "web")),
        (HYBRID.format(id=7, name="web"), (7, "web")),
        (WITHOUT_MACHINED.format(id=7, name="a-b"), (7, "a-b")),
        ("0::/machine.slice/machine-test.slice/machine-qemu\\x2d16\\x2dtest14.scope/emulator\n", (16, "test14")),
        ("0::/machine/production.partition/qemu-3-db.libvirt-qemu/emulator\n", (3, "db")),
        ("", None),
        (DAEMONS, None),
        # below what a user may make groups in: his session, a container's scope
        (f"0::/user.slice/user-1000.slice{SCOPE}\n".format(id=7, name="web"), None),
        (f"0::/system.slice/docker-0a1b.scope{SCOPE}\n".format(id=7, name="web"), None),
        ("0::/docker/0a1b/machine/qemu-7-web.libvirt-qemu/emulator\n", None),
        # no guests of the system's libvirt: a container that is named so, an embedded driver's
        ("0::/machine.slice/machine-qemu.scope/payload/machine-qemu\\x2d7\\x2dweb.scope\n", None),
        ("0::/machine.slice/machine-qemu\\x2dembed\\x2d0a1b2c3d\\x2d7\\x2dweb.scope\n", None),
    ],
)
def test_a_control_group_names_a_guest_where_libvirt_made_it(text: str, named: tuple[int, str] | None) -> None:
    assert parse_guest_group(text) == named


@pytest.mark.parametrize(
    ("in_group", "name", "is_it"),
    [("web", "web", True), ("web", "web2", False), ("a-b.c", "a--b..c!", True), ("", "é", True),
     ("a" * 50, "a" * 80, True), ("a" * 50, "a" * 49 + "b" * 30, False)],
)  # fmt: skip
def test_a_groups_name_is_what_libvirt_keeps_of_a_guests(in_group: str, name: str, *, is_it: bool) -> None:
    assert is_named(in_group, name) == is_it


@pytest.mark.parametrize("group", [V2, WITHOUT_MACHINED])
def test_a_guest_is_found_by_its_group_though_its_command_line_hangs(
    proc: FakeProc, search: GuestSearch, reads: CountedReads, group: str
) -> None:
    proc.qemu(100, "A", group=group.format(id=1, name="web"), users=(QEMU_USER,) * 4)
    proc.process(101, "qemu-pr-helper", group=group.format(id=1, name="web"))
    proc.process(102, "swtpm", group=group.format(id=1, name="web"))
    for pid in (100, 101, 102):
        proc.hang(pid, "cmdline")
    assert pids(search.find((guest(),)), guest()) == [100]
    assert reads.count == 0


def test_a_group_that_names_another_guest_is_not_this_ones_unless_owner_and_command_line_say_so(
    proc: FakeProc, search: GuestSearch, clock: FakeClock
) -> None:
    proc.qemu(100, "B", group=V2.format(id=2, name="web"))
    proc.qemu(101, "C", group=V2.format(id=1, name="other"))
    assert search.find((guest(),)) == {}
    proc.qemu(102, "A", group=V2.format(id=1, name="other"))
    clock.now_s += MAX_PAUSE_S
    assert pids(search.find((guest(),)), guest()) == [102]


def test_without_groups_a_guest_is_found_by_owner_and_command_line(proc: FakeProc, clock: FakeClock) -> None:
    proc.qemu(100, "A", group=DAEMONS)
    proc.qemu(101, "B", users=(QEMU_USER,) * 4)
    running = (guest(), guest("B", domain_id=2))
    without = GuestSearch(clock, LimitedReads(), qemu_home=str(proc.folder / "none"))
    assert pids(without.find(running), *running) == [100, None]


@pytest.mark.parametrize("users", [(STRANGER,) * 4, (0, 0, STRANGER, 0)])
def test_a_strangers_process_is_not_read_and_decides_nothing(
    proc: FakeProc, search: GuestSearch, reads: CountedReads, users: tuple[int, int, int, int]
) -> None:
    proc.qemu(100, "A", group=DAEMONS)
    proc.qemu(101, "A", users=users, group=f"0::/user.slice/user@1000.service{SCOPE}\n".format(id=1, name="web"))
    proc.qemu(102, "A", users=users)
    proc.hang(102, "cmdline")
    assert pids(search.find((guest(),)), guest()) == [100]
    assert (search.trouble, reads.trouble) == ((), ())


def test_a_process_that_hangs_is_named_waited_for_once_and_hides_no_other_guest(
    proc: FakeProc, search: GuestSearch, reads: CountedReads, clock: FakeClock
) -> None:
    proc.qemu(100, "A")
    proc.hang(100, "cmdline")
    running = (guest(), guest("B", domain_id=2))
    assert pids(search.find(running[:1]), *running) == [None, None]
    (trouble,) = reads.trouble
    assert trouble.startswith("process 100 (qemu-system-x86) ")
    assert "libvirt" not in trouble

    proc.qemu(101, "B")
    assert pids(search.find(running), *running) == [None, 101]
    assert reads.trouble == (trouble,)

    proc.release()
    while troubles(reads):
        pass
    proc.qemu(100, "A")
    clock.now_s += MAX_PAUSE_S
    assert pids(search.find(running), *running) == [100, 101]


@pytest.mark.parametrize("group", [DAEMONS, V2.format(id=1, name="web")])
def test_of_two_that_claim_a_guest_neither_is_believed_until_one_is_gone(
    proc: FakeProc, search: GuestSearch, clock: FakeClock, group: str
) -> None:
    for pid in (100, 101):
        proc.qemu(pid, "A", group=group)
    for _ in range(3):
        assert search.find((guest(),)) == {}
        (trouble,) = search.trouble
        assert all(text in trouble for text in ("100", "101", "'web'"))
        clock.now_s += MAX_PAUSE_S
    search.find(())
    assert troubles(search) == (), "what is said of a guest ends with it"
    assert search.find((guest(),)) == {}
    proc.end(101)
    clock.now_s += MAX_PAUSE_S
    assert pids(search.find((guest(),)), guest()) == [100]
    assert troubles(search) == ()


def test_while_every_guest_is_known_nothing_is_walked_over_or_read(
    proc: FakeProc, search: GuestSearch, reads: CountedReads, clock: FakeClock
) -> None:
    proc.qemu(100, "A")
    for _ in range(5):
        assert pids(search.find((guest(),)), guest()) == [100]
        clock.now_s += MAX_PAUSE_S
    proc.hang(100, "cmdline")  # the folder changes, as where the kernel has made it anew
    assert pids(search.find((guest(),)), guest()) == [100]
    assert reads.count == 1


def test_a_process_that_executes_qemu_after_the_first_look_is_found_seconds_later(
    proc: FakeProc, search: GuestSearch, clock: FakeClock
) -> None:
    proc.process(100, "rpc-libvirtd", group=V2.format(id=1, name="web"))
    assert search.find((guest(),)) == {}
    proc.write(100, "comm", "qemu-system-x86\n")
    assert search.find((guest(),)) == {}, "no walk in each of many passes"
    clock.now_s += 2 * MIN_PAUSE_S
    assert pids(search.find((guest(),)), guest()) == [100]


def test_a_guest_that_stays_missing_is_sought_less_often_and_a_new_one_at_once(
    proc: FakeProc, search: GuestSearch, reads: CountedReads, clock: FakeClock
) -> None:
    proc.qemu(100, "other")
    for _ in range(600):
        search.find((guest(),))
        clock.now_s += 1.0
    assert 15 < reads.count < 30
    proc.qemu(101, "B")
    running = (guest(), guest("B", domain_id=2))
    assert pids(search.find(running), *running) == [None, 101]


def test_a_number_that_is_used_again_is_another_process_and_a_clock_that_began_anew_puts_off_no_search(
    proc: FakeProc, search: GuestSearch, clock: FakeClock
) -> None:
    proc.process(100, "sleep")
    assert search.find((guest(),)) == {}
    clock.now_s -= 500
    proc.qemu(100, "A")
    assert pids(search.find((guest(),)), guest()) == [100]
    proc.process(100, "sleep")
    assert search.find((guest(),)) == {}


def test_hidden_processes_are_told_while_a_guest_is_missing(
    proc: FakeProc, search: GuestSearch, clock: FakeClock
) -> None:
    proc.end(1)
    assert search.find(()) == {}
    assert troubles(search) == ()
    assert search.find((guest(),)) == {}
    assert troubles(search) == (HIDDEN,)
    proc.qemu(100, "A")
    clock.now_s += MAX_PAUSE_S
    search.find((guest(),))
    assert troubles(search) == ()


def test_a_process_that_has_ended_is_no_later_one_of_its_number_and_gives_its_descriptor_back() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with subprocess.Popen(["sleep", "60"]) as child:
        process = identify(child.pid)
        assert process is not None
        assert process.lives()
        child.kill()
    assert (process.lives(), process.statm) == (False, b"")
    del process
    assert len(list(Path("/proc/self/fd").iterdir())) == before
