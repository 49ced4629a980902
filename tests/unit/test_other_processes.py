"""Memory that may merge and is no guest's: as root and as a user, by /proc, by systemd's answer, and by neither."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.fakes import FakeClock
from virtksm.host.other_processes import ASK_S, READ_EVERY_S, OtherProcessesReader, may_merge, parse_group, parse_groups
from virtksm.host.proc_files import LimitedReads
from virtksm.model.snapshot import OtherProcesses

MIB_PAGES = 256
NEW = "ksm_rmap_items 9\nksm_merge_any: {any}\nksm_mergeable: {any}\n"
OLD = "ksm_rmap_items {items}\n"
UNITS = """MemoryKSM=no
ControlGroup=/system.slice/ssh.service

ControlGroup=/system.slice/web.service
MemoryKSM=yes

MemoryKSM=yes
ControlGroup=
"""


class Home:
    """A /proc, and a systemd that answers by a program on the path."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.booted = folder / "proc", folder / "booted"
        self.asked = folder / "asked"
        self._programs = folder / "bin"
        for made in (self.proc, self.booted, self._programs):
            made.mkdir()
        self.clock = FakeClock()
        self.reads = LimitedReads(5.0)  # a busy machine is no hanging process
        self.look = OtherProcessesReader(self.clock, self.reads, booted=str(self.booted), first_within_s=3600.0)
        self.process(1, NEW.format(any="no"))

    def process(self, pid: int, stat: str | None, *, anonymous_mib: int = 10) -> None:
        """Make a process; without `stat` its kernel has no such file."""
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        pages = anonymous_mib * MIB_PAGES
        (folder / "statm").write_text(f"999999 {pages + 700} 700 1 0 1 0\n")
        if stat is not None:
            (folder / "ksm_stat").write_text(stat)

    def systemctl(self, script: str) -> None:
        program = self._programs / "systemctl"
        program.write_text(f'#!/bin/sh\necho "$@" >>{self.asked}\n{script}\n')
        program.chmod(0o755)

    def group(self, path: str, *pids: int) -> None:
        for pid in pids:
            (self.proc / str(pid) / "cgroup").write_text(f"0::/{path}\n")

    def seen(self, *of_guests: int) -> OtherProcesses | None:
        return self.look.memory(lambda: of_guests)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(home.proc))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return home


@pytest.fixture
def hidden(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A user who may not read other users' ksm_stat, as any but root."""
    monkeypatch.setattr("virtksm.host.other_processes.read_private", lambda pid, name: None)
    return home


def test_root_sees_every_process_that_lets_memory_merge_but_the_guests(home: Home) -> None:
    home.process(10, NEW.format(any="yes"), anonymous_mib=100)
    home.process(11, NEW.format(any="no"), anonymous_mib=200)
    home.process(12, NEW.format(any="yes"), anonymous_mib=400)
    home.process(13, "")  # the kernel's own, or a zombie
    assert home.seen(12) == OtherProcesses(kib=100 * 1024, processes=1, unread=0)
    assert not home.asked.exists(), "root need not ask systemd"


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
        (home.proc / str(pid) / "comm").write_text(f"{name}\n")
        (home.proc / str(pid) / "cmdline").write_text(f"/usr/libexec/{name}\0-machine\0{machine}\0")
    assert home.seen(11) == OtherProcesses(kib=10 * 1024 * counts, processes=int(counts), unread=0), "one is a guest"
    home.clock.now_s += READ_EVERY_S
    home.process(10, NEW.format(any="no"))
    assert home.seen(11) == OtherProcesses(kib=0, processes=0, unread=0), "a newer kernel's word holds"


def test_without_ksm_stat_or_where_processes_are_hidden_nothing_is_known(home: Home) -> None:
    (home.proc / "1" / "ksm_stat").unlink()
    home.process(10, None)
    assert home.seen() is None
    home.process(10, NEW.format(any="yes"))
    (home.proc / "1" / "statm").unlink()
    (home.proc / "1").rmdir()
    home.clock.now_s += READ_EVERY_S
    assert home.seen() is None


def test_a_user_sees_the_services_that_let_their_memory_merge_and_counts_the_rest_as_unread(hidden: Home) -> None:
    for pid in (10, 11, 12):
        hidden.process(pid, "", anonymous_mib=pid)
    hidden.process(13, "", anonymous_mib=0)  # the kernel's own
    hidden.systemctl(f"cat <<'END'\n{UNITS}END")
    hidden.group("system.slice/web.service", 10)
    hidden.group("system.slice/web.service/workers", 11)
    hidden.group("system.slice/web.service-of-another-name", 12)
    assert hidden.seen() == OtherProcesses(kib=21 * 1024, processes=2, unread=2)
    assert hidden.asked.read_text() == "show --property=ControlGroup --property=MemoryKSM *.service\n"


@pytest.mark.parametrize("script", ["exit 1", "printf '\\377'"])
def test_a_systemd_that_tells_nothing_leaves_all_unread(hidden: Home, script: str) -> None:
    hidden.process(10, "")
    hidden.systemctl(script)
    assert hidden.seen() == OtherProcesses(kib=0, processes=0, unread=2)


def test_a_systemd_that_hangs_is_waited_for_once_and_its_answer_taken_when_it_comes(hidden: Home) -> None:
    look = OtherProcessesReader(hidden.clock, hidden.reads, booted=str(hidden.booted), first_within_s=0.1)
    fifo = hidden.asked.with_name("goes-on")
    os.mkfifo(fifo)
    hidden.process(10, "")
    hidden.group("system.slice/web.service", 10)
    hidden.systemctl(f"read line <{fifo}; cat <<'END'\n{UNITS}END")
    assert look.memory(lambda: ()) == OtherProcesses(kib=0, processes=0, unread=2)
    fifo.write_text("\n")
    for _ in range(1000):
        hidden.clock.now_s += READ_EVERY_S
        if (seen := look.memory(lambda: ())) is not None and seen.processes:
            break
    assert seen == OtherProcesses(kib=10 * 1024, processes=1, unread=1)


@pytest.mark.parametrize("is_missing", ["systemd", "its program"])
def test_where_systemd_does_not_run_all_is_unread_and_nobody_is_asked(
    hidden: Home, monkeypatch: pytest.MonkeyPatch, is_missing: str
) -> None:
    hidden.systemctl(f"cat <<'END'\n{UNITS}END")
    hidden.group("system.slice/web.service", 1)
    if is_missing == "systemd":
        hidden.booted.rmdir()
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    assert hidden.seen() == OtherProcesses(kib=0, processes=0, unread=1)
    assert not hidden.asked.exists()


def test_a_reading_holds_for_a_minute_and_systemds_answer_for_five_and_nobody_waits_for_a_later_one(
    hidden: Home,
) -> None:
    hidden.process(10, "")
    hidden.systemctl(f"cat <<'END'\n{UNITS}END")
    hidden.group("system.slice/web.service", 10)
    began_s, fifo = hidden.clock.now_s, hidden.asked.with_name("goes-on")
    os.mkfifo(fifo)
    for passed_s in (0.0, READ_EVERY_S - 1, READ_EVERY_S, ASK_S - READ_EVERY_S, ASK_S):
        hidden.process(10, "", anonymous_mib=int(passed_s) + 1)
        hidden.clock.now_s = began_s + passed_s
        seen = hidden.seen()
        assert seen is not None
        assert seen.kib == (1 if passed_s < READ_EVERY_S else int(passed_s) + 1) * 1024
        assert len(hidden.asked.read_text().splitlines()) == 1 or passed_s == ASK_S
        if passed_s == 0.0:  # written once: a script that is being written cannot be executed
            hidden.systemctl(f"read line <{fifo}")
    while len(hidden.asked.read_text().splitlines()) < 2:  # nobody waits for the second
        pass
    fifo.write_text("\n")


def test_a_process_that_hangs_counts_as_unread_and_hides_nothing_from_the_next_look(home: Home) -> None:
    home.process(10, NEW.format(any="yes"), anonymous_mib=100)
    home.process(12, NEW.format(any="yes"), anonymous_mib=200)
    home.process(11, None)
    os.mkfifo(home.proc / "11" / "ksm_stat")
    first = home.seen()
    assert first is not None
    assert (first.kib, first.unread) == (100 * 1024, 2), "what comes behind it is left for the next look"
    assert home.reads.trouble[0].startswith("process 11 ")
    home.clock.now_s += READ_EVERY_S
    assert home.seen() == OtherProcesses(kib=300 * 1024, processes=2, unread=1)
    os.close(os.open(home.proc / "11" / "ksm_stat", os.O_RDWR | os.O_NONBLOCK))


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
