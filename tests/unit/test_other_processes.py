"""Memory that may merge and is no guest's: as root and as a user, by /proc, by systemd's answer, and by neither."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_proc import FakeProc
from tests.fakes import FakeClock
from virtksm.host.other_processes import (
    ASK_S,
    READ_EVERY_S,
    OtherProcessesReader,
    may_merge,
    parse_group,
    parse_groups,
    read_ksm_stat,
    show_services,
)
from virtksm.host.proc_files import LimitedReads
from virtksm.model.snapshot import OtherProcesses

SHARED_MIB = 3
NEW = "ksm_rmap_items 9\nksm_merge_any: {any}\nksm_mergeable: {any}\n"
OLD = "ksm_rmap_items {items}\n"
UNITS = """MemoryKSM=no
ControlGroup=/system.slice/ssh.service

ControlGroup=/system.slice/web.service
MemoryKSM=yes

MemoryKSM=yes
ControlGroup=
"""


class FakeSystemd:
    """Tells of the services; while `goes_on` is not set, whoever asks waits."""

    def __init__(self) -> None:
        self.times_asked = 0
        self.goes_on = threading.Event()
        self.goes_on.set()

    def show(self) -> str:
        self.times_asked += 1
        self.goes_on.wait()
        return UNITS


class Home:
    """A /proc, and a systemd. Where ksm_stat `is_hidden`, its reader is a user, as any but root."""

    def __init__(self, proc: FakeProc, *, is_hidden: bool) -> None:
        self.proc, self.booted = proc, proc.folder.parent / "booted"
        self.booted.mkdir()
        self.systemd = FakeSystemd()
        self.clock = FakeClock()
        self.reads = LimitedReads(wait=self.proc.wait)
        self._is_hidden = is_hidden
        self.look = self.reader(first_within_s=3600.0)
        self.process(1, NEW.format(any="no"))

    def reader(self, *, first_within_s: float) -> OtherProcessesReader:
        return OtherProcessesReader(
            self.clock,
            self.reads,
            read=(lambda pid: None) if self._is_hidden else read_ksm_stat,
            show=self.systemd.show,
            booted=str(self.booted),
            first_within_s=first_within_s,
        )

    def process(self, pid: int, stat: str | None, *, anonymous_mib: int = 10, service: str = "") -> None:
        """Make a process; without `stat` its kernel has no such file."""
        group = f"0::/system.slice/{service}\n"
        self.proc.process(pid, "x", group=group, mib=anonymous_mib + SHARED_MIB, shared_mib=SHARED_MIB)
        if stat is not None:
            self.proc.write(pid, "ksm_stat", stat)

    def seen(self, *of_guests: int) -> OtherProcesses | None:
        return self.look.memory(lambda: of_guests)


@pytest.fixture
def home(proc: FakeProc) -> Home:
    return Home(proc, is_hidden=False)


@pytest.fixture
def hidden(proc: FakeProc) -> Iterator[Home]:
    hidden = Home(proc, is_hidden=True)
    yield hidden
    hidden.systemd.goes_on.set()


def test_root_sees_every_process_that_lets_memory_merge_but_the_guests(home: Home) -> None:
    home.process(10, NEW.format(any="yes"), anonymous_mib=100)
    home.process(11, NEW.format(any="no"), anonymous_mib=200)
    home.process(12, NEW.format(any="yes"), anonymous_mib=400)
    home.process(13, "")  # the kernel's own, or a zombie
    assert home.seen(12) == OtherProcesses(kib=100 * 1024, processes=1, unread=0)
    assert home.systemd.times_asked == 0, "root need not ask systemd"


def test_the_agents_own_zero_pages_are_no_memory_that_merges(home: Home) -> None:
    home.process(10, NEW.format(any="yes"))
    home.proc.write(10, "comm", "virtksm\n")
    assert home.seen() == OtherProcesses(kib=0, processes=0, unread=0)


def test_before_the_kernel_says_who_may_merge_it_counts_whom_ksmd_has_visited(home: Home) -> None:
    home.process(10, OLD.format(items=5))
    home.process(11, OLD.format(items=0))
    assert home.seen() == OtherProcesses(kib=10 * 1024, processes=1, unread=0)


@pytest.mark.parametrize(
    ("name", "machine", "counts"),
    [
        ("qemu-kvm", "pc-q35,usb=off", True),
        ("qemu-system-x86", "pc-q35,mem-merge=off", False),  # <nosharepages/>
        ("qemu-img", "", False),
        ("virtqemud", "", False),
    ],
)
def test_a_qemu_of_another_libvirt_counts_before_an_older_kernels_ksmd_has_scanned_it(
    home: Home, name: str, machine: str, *, counts: bool
) -> None:
    for pid in (10, 11):
        home.process(pid, OLD.format(items=0))
        home.proc.write(pid, "comm", f"{name}\n")
        home.proc.write(pid, "cmdline", f"/usr/libexec/{name}\0-machine\0{machine}\0")
    assert home.seen(11) == OtherProcesses(kib=10 * 1024 * counts, processes=int(counts), unread=0), "one is a guest"
    home.clock.now_s += READ_EVERY_S
    home.process(10, NEW.format(any="no"))
    assert home.seen(11) == OtherProcesses(kib=0, processes=0, unread=0), "a newer kernel's word holds"


def test_without_ksm_stat_or_where_processes_are_hidden_nothing_is_known(home: Home) -> None:
    home.process(1, None)
    home.process(10, None)
    assert home.seen() is None
    home.process(10, NEW.format(any="yes"))
    home.proc.end(1)
    home.clock.now_s += READ_EVERY_S
    assert home.seen() is None


def test_a_user_sees_the_services_that_let_their_memory_merge_and_counts_the_rest_as_unread(hidden: Home) -> None:
    hidden.process(10, "", anonymous_mib=10, service="web.service")
    hidden.process(11, "", anonymous_mib=11, service="web.service/workers")
    hidden.process(12, "", anonymous_mib=12, service="web.service-of-another-name")
    hidden.process(13, "", anonymous_mib=0)  # the kernel's own
    assert hidden.seen() == OtherProcesses(kib=21 * 1024, processes=2, unread=2)


def test_a_systemd_that_hangs_is_waited_for_once_and_its_answer_taken_when_it_comes(hidden: Home) -> None:
    hidden.process(10, "", service="web.service")
    hidden.systemd.goes_on.clear()
    look = hidden.reader(first_within_s=0.1)
    for _ in range(int(2 * ASK_S / READ_EVERY_S)):
        assert look.memory(lambda: ()) == OtherProcesses(kib=0, processes=0, unread=2)
        hidden.clock.now_s += READ_EVERY_S
    while hidden.systemd.times_asked == 0:
        pass
    assert hidden.systemd.times_asked == 1
    hidden.systemd.goes_on.set()
    while (seen := look.memory(lambda: ())) is None or not seen.processes:
        hidden.clock.now_s += READ_EVERY_S
    assert seen == OtherProcesses(kib=10 * 1024, processes=1, unread=1)


def test_systemd_is_asked_for_what_the_answer_is_read_for(tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    assert show_services(str(program)) == "show --property=ControlGroup --property=MemoryKSM *.service\n"


def test_where_systemd_does_not_run_all_is_unread_and_nobody_is_asked(hidden: Home) -> None:
    hidden.process(1, "", service="web.service")
    hidden.booted.rmdir()
    assert hidden.seen() == OtherProcesses(kib=0, processes=0, unread=1)
    assert hidden.systemd.times_asked == 0


def test_a_reading_holds_for_a_minute_and_systemds_answer_for_five_and_nobody_waits_for_a_later_one(
    hidden: Home,
) -> None:
    began_s = hidden.clock.now_s
    for passed_s in (0.0, READ_EVERY_S - 1, READ_EVERY_S, ASK_S - READ_EVERY_S, ASK_S):
        hidden.process(10, "", anonymous_mib=int(passed_s) + 1, service="web.service")
        hidden.clock.now_s = began_s + passed_s
        seen = hidden.seen()
        assert seen is not None
        assert seen.kib == (1 if passed_s < READ_EVERY_S else int(passed_s) + 1) * 1024
        assert hidden.systemd.times_asked == 1 or passed_s == ASK_S
        hidden.systemd.goes_on.clear()
    while hidden.systemd.times_asked < 2:  # nobody waits for the second
        pass


def test_a_process_that_hangs_counts_as_unread_and_hides_nothing_from_the_next_look(home: Home) -> None:
    home.process(10, NEW.format(any="yes"), anonymous_mib=100)
    home.process(12, NEW.format(any="yes"), anonymous_mib=200)
    home.process(11, None)
    home.proc.hang(11, "ksm_stat")
    first = home.seen()
    assert first is not None
    assert (first.kib, first.unread) == (100 * 1024, 2), "what comes behind it is left for the next look"
    assert home.reads.trouble[0].startswith("process 11 ")
    home.clock.now_s += READ_EVERY_S
    assert home.seen() == OtherProcesses(kib=300 * 1024, processes=2, unread=1)


def test_guests_are_sought_for_a_new_look_alone_and_a_clock_that_began_anew_asks_for_one(home: Home) -> None:
    home.process(10, NEW.format(any="yes"))
    first = home.seen()
    assert home.look.memory(lambda: pytest.fail("sought")) == first
    home.process(11, NEW.format(any="yes"))
    home.clock.now_s -= 500
    assert home.seen() != first


def test_who_may_merge() -> None:
    assert may_merge("ksm_merge_any: no\nksm_mergeable: yes\n")
    assert not may_merge("ksm_rmap_items 3\nksm_merge_any: no\nksm_mergeable: no\n")
    assert not may_merge("")


def test_systemds_answer_is_read_paragraph_by_paragraph() -> None:
    assert parse_groups(UNITS) == ("/system.slice/web.service",)
    assert parse_groups("ControlGroup=/x.service\n\nControlGroup=/y.service\n") == ()  # before systemd 254
    assert parse_groups("ControlGroup=/\nMemoryKSM=yes\n") == (), "that would be everybody"
    assert parse_group("0::/system.slice/a.service\n") == "/system.slice/a.service"
    assert parse_group("12:pids:/x\n1:name=systemd:/system.slice/a.service\n0::/\n") == "/system.slice/a.service"
    assert parse_group("4:cpu,cpuacct:/x\n") == ""
