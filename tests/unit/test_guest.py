"""`virtksm guest` without kernel, libvirt and QEMU: what is sent, what is said, and whose word counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demo.guests import PayloadGuest
from tests.fakes import LOCAL_HOST, FakeFacts, FakeHypervisor, FakeMonitor, merging_guest
from tests.lab.stand_in import StandIn
from virtksm.cli.guest import ELSEWHERE, UNREADABLE, GuestSwitch, as_dict, cost_rows, find_guest, rows, save
from virtksm.cli.layout import to_lines
from virtksm.errors import GuestVanished, LibvirtTimeout, MonitorFailed, MonitorRefused, Unsupported, VirtksmError
from virtksm.guests.choices import COMMAND, Choice
from virtksm.guests.process import GuestProcess, MergeableMemory, ProcessKsm, find_needed_kib
from virtksm.host.proc_files import parse_smaps
from virtksm.model.snapshot import Guest, HostMemory, KsmState
from virtksm.paths import RuntimePaths
from virtksm.store.choices import ChoiceFile
from virtksm.values import replace

MIB = 1024
VIDEO_KIB = 256
RAM_MIB = (48, 16)
SMAPS = """\
7f0000000000-7f0003000000 rw-p 00000000 00:00 0
Size:              49152 kB
KernelPageSize:        4 kB
Rss:               40000 kB
KSM:               30000 kB
VmFlags: rd wr mr mw me ac sd hg mg
7f0003000000-7f0004000000 rw-p 00000000 00:00 0
Size:              16384 kB
KSM:                   0 kB
VmFlags: rd wr mr mw me ac sd
7f0004000000-7f0004001000 r--p 00000000 08:01 42                         /usr/lib/mg: VmFlags: mg
Size:                  4 kB
KSM:                   8 kB
VmFlags: rd mr mw me
"""


@dataclass
class Bench:
    """A host with one guest, whose kernel does what its QEMU is told unless it `ignores` that."""

    hypervisor: FakeHypervisor = field(default_factory=FakeHypervisor)
    monitor: FakeMonitor = field(default_factory=FakeMonitor)
    ignores: bool = False
    is_root: bool = True
    merged_kib: int = 30 * MIB
    memory: HostMemory = LOCAL_HOST
    arguments: tuple[str, ...] = ("qemu",)
    noted: list[tuple[str, Choice, int]] = field(default_factory=list)
    """The choices that were saved, by UUID, and how many switches had been made by then."""

    def __post_init__(self) -> None:
        self.hypervisor.running = (Guest(uuid="u-1", name="one", domain_id=1),)
        self.describe(PayloadGuest(name="one", memory_mib=64))
        self.monitor.guests["u-1"] = merging_guest(*RAM_MIB)

    def describe(self, spec: PayloadGuest) -> None:
        self.hypervisor.xml["u-1"] = spec.domain_xml(Path("/payload"), None)

    def mergeable(self) -> MergeableMemory | None:
        if not self.is_root:
            return None
        switched = [merge for _, merge in self.monitor.sets]
        merges = self.ignores or not switched or switched[-1]
        ram_kib = tuple(one * MIB for one in RAM_MIB) if merges else ()
        return MergeableMemory(mappings_kib=(*ram_kib, VIDEO_KIB), merged_kib=self.merged_kib if merges else 4)

    def switch(self, name: str = "one", *, is_local: bool = True) -> GuestSwitch:
        ksm = ProcessKsm(merging_pages=9000, zero_pages=25) if self.is_root else None
        facts = FakeFacts(
            memory=self.memory,
            of_guests={"u-1": GuestProcess(arguments=self.arguments, ksm=ksm)},
            mergeable=self.mergeable,
            counters={"pages_shared": 1000, "pages_sharing": 4000},
        )

        def run(_what: str, call: Callable[[], object], *, more_s: float = 0.0) -> object:  # noqa: ARG001  # a limit
            return call()

        def note(uuid: str, choice: Choice) -> None:
            self.noted.append((uuid, choice, len(self.monitor.sets)))

        return GuestSwitch(self.hypervisor, self.monitor, facts if is_local else None, name, run, note)


def text_of(switch: GuestSwitch) -> str:
    return "\n".join(to_lines([*rows(switch.seen), *cost_rows(switch.seen)]))


def test_showing_a_guest_sends_its_qemu_nothing_unless_told_to() -> None:
    bench = Bench()
    switch = bench.switch("u-1")
    assert text_of(switch).splitlines() == [
        "Guest      one",
        "Kernel     64.2 MiB may merge, 30.0 MiB are merged and 0.1 MiB of zero pages",
        "Tainted    no",
        "Memory     unmerging needs up to 30.1 MiB, 8.0 GiB available: ok",
        "Cost       while it unmerges its QEMU stands still for about 0.0 s; "
        "libvirt marks the guest as tainted (custom-monitor) until it ends",
    ]
    assert bench.monitor.asked == 0
    assert as_dict(switch.seen)["qemu"] is None
    switch.ask()
    assert "QEMU       7.2.22: ram-node0 48.0 MiB may merge, ram-node1 16.0 MiB may merge" in text_of(switch)


@pytest.mark.parametrize("merge", [False, True])
def test_what_is_chosen_names_the_run_that_was_found_and_is_saved_before_and_after(*, merge: bool) -> None:
    bench = Bench()
    bench.hypervisor.xml["u-1"] = "<domain><memory unit='KiB'>65536</memory></domain>"
    switch = bench.switch()
    (switch.merge if merge else switch.unmerge)(force=False)
    assert [uuid for uuid, _, _ in bench.noted] == ["u-1", "u-1"]
    begun, done = (choice for _, choice, _ in bench.noted)
    assert (begun.name, begun.process, begun.merge) == ("one", f"process of {switch.seen.guest.key}", merge)
    assert (begun.by_command, begun.is_done, begun.memory_kib) == (True, False, 64 * MIB)
    assert replace(begun, is_done=True, at_s=done.at_s) == done
    assert [sets for _, _, sets in bench.noted] == [0, 1]
    far = Bench()
    far.switch(is_local=False).unmerge(force=False)
    assert far.noted == [], "nobody here knows its process"


def test_an_agent_that_cannot_hear_of_what_was_chosen_is_told(
    paths: RuntimePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Choice(name="one", process="1/1", merge=False, why=COMMAND, at_s=1.0, is_done=True)
    answers: list[dict[str, object]] = [{"ok": False, "error": "libvirt hangs"}, {"ok": True, "pass": {}}]

    async def answer(_request: Mapping[str, object]) -> dict[str, object]:
        return answers.pop(0)

    with StandIn(paths, answer):
        save(paths, "u-1", replace(done, is_done=False))
        assert (len(answers), capsys.readouterr().err) == (2, ""), "it is told once it is done"
        save(paths, "u-1", done)
        assert "the agent may not know of this, and may switch it again: it answers: libvirt hangs" in (
            capsys.readouterr().err
        )
        save(paths, "u-1", done)
    assert capsys.readouterr().err == ""
    assert ChoiceFile(paths).read() == {"u-1": done}


def test_a_guest_that_is_out_already_is_to_stay_so_unless_its_xml_keeps_it_out() -> None:
    bench = Bench()
    bench.monitor.sets.append(("u-1", False))
    bench.switch().unmerge(force=False)
    bench.mergeable = lambda: MergeableMemory(mappings_kib=(), merged_kib=0)  # type: ignore[method-assign]
    switch = bench.switch()
    assert switch.seen.why_nothing_merges == "the kernel may merge none of its memory"
    switch.keep_out()
    assert [(choice.merge, choice.is_done, sets) for _, choice, sets in bench.noted] == [(False, True, 1)] * 2
    bench.describe(PayloadGuest(name="one", memory_mib=64, nosharepages=True))
    bench.switch().keep_out()
    assert len(bench.noted) == 2


def test_a_guest_that_takes_over_the_name_meanwhile_is_left_alone() -> None:
    bench = Bench()
    switch = bench.switch()
    other = Guest(uuid="u-2", name="one", domain_id=2)
    bench.hypervisor.xml["u-2"], bench.monitor.guests["u-2"] = bench.hypervisor.xml["u-1"], merging_guest(*RAM_MIB)
    bench.hypervisor.running = (other,)
    with pytest.raises(VirtksmError, match="no running guest is called u-1"):
        switch.unmerge(force=False)
    assert {uuid for uuid, _ in bench.monitor.sets} == {"u-1"}
    assert {uuid for uuid, _, _ in bench.noted} == {"u-1"}


def test_a_guest_that_is_called_as_another_s_uuid_is_not_taken_for_it() -> None:
    one, other = Guest(uuid="u-1", name="u-2"), Guest(uuid="u-2", name="other")
    assert find_guest((one, other), "u-2") == other
    assert find_guest((one,), "u-2") == one


def test_unmerging_is_over_when_the_kernel_may_merge_no_backend_and_video_memory_may_stay() -> None:
    bench = Bench()
    switch = bench.switch()
    switch.unmerge(force=False)
    assert bench.monitor.sets == [("u-1", False)]
    assert "Kernel     0.2 MiB may merge, 0.0 MiB are merged" in text_of(switch)
    switch.unmerge(force=False)
    assert bench.monitor.sets == [("u-1", False)], "it is out already"
    switch.merge(force=False)
    assert bench.monitor.sets == [("u-1", False), ("u-1", True)]
    assert "64.2 MiB may merge" in text_of(switch)


def test_the_kernels_word_counts_and_once_more_means_once_more() -> None:
    bench = Bench(ignores=True)
    for sets in (1, 3):
        with pytest.raises(MonitorFailed, match="the kernel still merges ram-node0, ram-node1"):
            bench.switch().unmerge(force=False)
        assert len(bench.monitor.sets) == sets
    # QEMU leaves a backend alone that has the value already, so it is switched on first.
    assert [merge for _, merge in bench.monitor.sets] == [False, True, False]
    bench.ignores, bench.monitor.sets = False, [("u-1", False)]
    bench.mergeable = lambda: MergeableMemory(mappings_kib=(VIDEO_KIB,), merged_kib=0)  # type: ignore[method-assign]
    with pytest.raises(MonitorFailed, match="the kernel may merge none of one's memory"):
        bench.switch().merge(force=False)


def test_a_host_without_room_refuses_before_anything_is_sent_unless_forced() -> None:
    bench = Bench(memory=replace(LOCAL_HOST, available_kib=10 * MIB))
    with pytest.raises(VirtksmError, match=r"unmerging needs 20\.1 MiB more free memory") as refused:
        bench.switch().unmerge(force=False)
    assert "stop guests" in refused.value.remedy
    assert (bench.monitor.asked, bench.monitor.sets) == (0, [])
    bench.switch().unmerge(force=True)
    assert bench.monitor.sets == [("u-1", False)]


def test_a_qemu_that_is_known_to_ignore_it_is_refused_unless_forced() -> None:
    bench = Bench()
    bench.monitor.guests["u-1"] = merging_guest(*RAM_MIB, qemu=(9, 1, 2))
    for act in (bench.switch().unmerge, bench.switch().merge):
        with pytest.raises(Unsupported, match=r"QEMU 9\.1\.2 ignores it"):
            act(force=False)
    assert bench.monitor.sets == []
    bench.switch().unmerge(force=True)
    bench.switch().merge(force=True)
    assert [merge for _, merge in bench.monitor.sets] == [False, True]


@pytest.mark.parametrize(
    ("spec", "arguments", "text"),
    [
        (PayloadGuest(name="one", memory_mib=64, nosharepages=True), (), "nosharepages in its XML"),
        (PayloadGuest(name="one", memory_mib=64, is_shared=True), (), "shared memory"),
        (PayloadGuest(name="one", memory_mib=64), ("-machine", "pc,mem-merge=off"), "mem-merge=off"),
    ],
)
def test_a_guest_that_cannot_merge_is_left_alone_and_never_let_in(
    spec: PayloadGuest, arguments: tuple[str, ...], text: str
) -> None:
    bench = Bench(arguments=arguments, is_root=False)
    bench.describe(spec)
    switch = bench.switch()
    assert text in (switch.seen.why_nothing_merges or "")
    assert text in text_of(switch)
    assert cost_rows(switch.seen) == []
    for force in (False, True):
        with pytest.raises(VirtksmError, match=text):
            switch.merge(force=force)
    assert (bench.monitor.asked, bench.monitor.sets) == (0, [])


def test_nosharepages_that_somebody_has_overruled_can_be_put_right() -> None:
    bench = Bench()
    bench.describe(PayloadGuest(name="one", memory_mib=64, nosharepages=True))
    switch = bench.switch()
    assert switch.seen.why_nothing_merges is None
    switch.unmerge(force=False)
    bench.mergeable = lambda: MergeableMemory(mappings_kib=(), merged_kib=0)  # type: ignore[method-assign]
    assert bench.switch().seen.why_nothing_merges == "the kernel may merge none of its memory"


def test_what_is_not_known_is_said_with_the_right_that_lacks() -> None:
    bench = Bench(is_root=False)
    switch = bench.switch()
    switch.unmerge(force=False)
    assert UNREADABLE in text_of(switch)
    assert "CAP_SYS_PTRACE" in UNREADABLE
    far = bench.switch(is_local=False)
    far.unmerge(force=False)
    assert ELSEWHERE in text_of(far)
    told = as_dict(far.seen)
    assert (told["mergeable_kib"], told["merged_kib"], told["zero_kib"]) == (None, None, None)
    bench.hypervisor.tainted = None
    assert "Tainted    unknown" in text_of(bench.switch())


def test_errors_of_libvirt_and_qemu_say_what_may_go_on() -> None:
    bench = Bench()
    bench.monitor.refuses = MonitorRefused("access denied", remedy="a rule")
    with pytest.raises(MonitorRefused):
        bench.switch().unmerge(force=False)
    bench.monitor.refuses = None
    bench.hypervisor.running = (Guest(uuid="u-1", name="one; reboot", domain_id=1),)
    switch = bench.switch("one; reboot")

    def hang(_what: str, call: Callable[[], object], *, more_s: float = 0.0) -> object:
        if more_s:
            raise LibvirtTimeout("QEMU: no answer within 9 s", remedy="systemctl restart libvirtd")
        return call()

    switch._run = hang
    with pytest.raises(LibvirtTimeout) as timeout:
        switch.unmerge(force=False)
    assert str(timeout.value) == "QEMU: no answer within 9 s; QEMU may go on: virtksm guest show 'one; reboot'"
    bench.monitor.guests.clear()
    with pytest.raises(GuestVanished):
        bench.switch("one; reboot").unmerge(force=False)
    with pytest.raises(VirtksmError, match="no running guest is called two"):
        bench.switch("two")


def test_smaps_tells_what_may_merge_and_what_is_merged() -> None:
    assert parse_smaps(SMAPS.splitlines()) == MergeableMemory(mappings_kib=(49152,), merged_kib=30008)
    without = [line for line in SMAPS.splitlines() if not line.startswith("KSM")]
    assert parse_smaps(without) == MergeableMemory(mappings_kib=(49152,), merged_kib=None)
    assert parse_smaps([]) == MergeableMemory(mappings_kib=(), merged_kib=None)
    assert parse_smaps(["Size: x kB", "VmFlags: mg"]).mappings_kib == (0,)


def test_what_unmerging_takes_is_the_guests_own_count_else_no_more_than_the_hosts_and_its_memory() -> None:
    ksm = KsmState.counted({"pages_shared": 100, "pages_sharing": 900, "ksm_zero_pages": 0}.get, 4)
    counted = GuestProcess(arguments=(), ksm=ProcessKsm(merging_pages=50, zero_pages=5))
    old = GuestProcess(arguments=(), ksm=ProcessKsm(merging_pages=50))
    memory = MergeableMemory(mappings_kib=(4096,), merged_kib=160)
    assert find_needed_kib(ksm, 4096, counted, memory) == 160 + 20
    assert find_needed_kib(ksm, 4096, counted, replace(memory, merged_kib=None)) == 200 + 20
    assert find_needed_kib(ksm, 4096, old, replace(memory, merged_kib=None)) == 200
    assert find_needed_kib(ksm, 4096, None, None) == 4000
    assert find_needed_kib(ksm, 1024, None, None) == 1024
    assert find_needed_kib(replace(ksm, pages_shared=None), None, None, None) == 0
