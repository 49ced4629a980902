"""Mergeable memory of other processes: those that have asked for it (prctl, madvise) or whose unit has.

/proc/PID/ksm_stat shows it to the process's owner and root only. Before ksmd has scanned a process, older kernels show
nothing there: then a QEMU counts, as that of another libvirt (KubeVirt's) is no guest, unless its command line switches
merging off. Where ksm_stat is hidden, systemd names the services whose memory may merge (MemoryKSM=, systemd 254) to
every user, and every user may read their processes. All processes are read once a minute (1 ms for 80), systemd is
asked every five; only the first call waits for its answer, later answers are for the next reading. Reads only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress

from virtksm.errors import SensingFailed
from virtksm.host.bounded import BoundedCalls
from virtksm.host.guest_processes import COMM
from virtksm.host.proc_files import (
    AGENT,
    INIT,
    MAX_BYTES,
    LimitedReads,
    list_pids,
    parse_memory_kib,
    read_private,
    read_process,
)
from virtksm.host.systemd import show_units
from virtksm.model.snapshot import OtherProcesses
from virtksm.tuning.ports import Clock

READ_EVERY_S = 60.0
ASK_S = 300.0
ASK = ("--property=ControlGroup", "--property=MemoryKSM", "*.service")
FIRST_WITHIN_S = 2.0
"""A one-shot's only reading, and an agent's first, waits so long for systemd."""
ANSWER_WITHIN_S = 60.0


def read_ksm_stat(pid: int) -> str | None:
    """Return a process's ksm_stat; None where it is hidden, "" where the kernel has no such."""
    return read_private(pid, "ksm_stat")


def show_services(program: str = "systemctl") -> str:
    """Return each service's control group, and whether its memory may merge, as systemd prints it."""
    return show_units(*ASK, within_s=ANSWER_WITHIN_S, program=program)


class OtherProcessesReader:
    """Reads all processes but the guests': `read` a process's ksm_stat, and what `show` prints where that is hidden.

    `booted` exists where systemd runs. A process whose files hang counts as unread.
    """

    def __init__(
        self,
        clock: Clock,
        reads: LimitedReads,
        *,
        read: Callable[[int], str | None] = read_ksm_stat,
        show: Callable[[], str] = show_services,
        booted: str = "/run/systemd/system",
        first_within_s: float = FIRST_WITHIN_S,
    ) -> None:
        self._clock = clock
        self._reads = reads
        self._read_stat, self._show = read, show
        self._first_within_s = first_within_s
        self._booted = booted
        self._read_s: float | None = None
        self._seen: OtherProcesses | None = None
        self._asked_s: float | None = None
        self._groups: tuple[str, ...] | None = None
        self._asking = BoundedCalls(SensingFailed)

    def memory(self, of_guests: Callable[[], Collection[int]]) -> OtherProcesses | None:
        """Return the reading of the last minute; None where processes are hidden or the kernel has no ksm_stat.

        `of_guests` returns the guests' processes; it is called for a new reading only.
        """
        now_s = self._clock()
        if not is_recent(self._read_s, now_s, READ_EVERY_S):
            self._seen, self._read_s = self._read(of_guests(), now_s), now_s
        return self._seen

    def _read(self, of_guests: Collection[int], now_s: float) -> OtherProcesses | None:
        pids = list_pids()
        if INIT not in pids:  # /proc shows only some (hidepid)
            return None
        page_kib = os.sysconf("SC_PAGE_SIZE") // 1024
        kib = processes = unread = 0
        is_known = False
        other_pids = [pid for pid in pids if pid not in of_guests]
        stats = self._reads.read(other_pids, self._read_stat)
        unscanned = [pid for pid, stat in stats.items() if stat and may_merge(stat) is None and is_qemu(pid)]
        qemus = self._reads.read(unscanned, does_qemu_merge)
        for pid in other_pids:
            stat = stats.get(pid)
            if stat == "":  # a kernel thread, an ended process, or a kernel without the file
                continue
            is_known = True
            may = self._is_in_merging_unit(pid, now_s) if stat is None else may_merge(stat) or qemus.get(pid, False)
            if may and read_process(pid, "comm").rstrip() == AGENT:
                continue
            if may or stat is None:
                rss_kib, shared_kib = parse_memory_kib(read_process(pid, "statm"), page_kib) or (0, 0)
                held_kib = max(rss_kib - shared_kib, 0)
                kib += held_kib if may else 0
                processes += may
                unread += not may and held_kib > 0  # the kernel's own threads hold nothing
        return OtherProcesses(kib=kib, processes=processes, unread=unread) if is_known else None

    def _is_in_merging_unit(self, pid: int, now_s: float) -> bool:
        if not is_recent(self._asked_s, now_s, ASK_S):
            self._ask(now_s)
        if not self._groups:
            return False
        group = parse_group(read_process(pid, "cgroup").decode("utf-8", "replace"))
        return any(group == of_unit or group.startswith(f"{of_unit}/") for of_unit in self._groups)

    def _ask(self, now_s: float) -> None:
        is_first, self._asked_s = self._groups is None, now_s
        if not os.path.isdir(self._booted):
            self._groups = ()
            return

        def read_groups() -> None:
            self._groups = parse_groups(self._show())

        with suppress(SensingFailed):  # the answer comes later, or not at all
            self._asking.run("systemd", read_groups, self._first_within_s if is_first else 0.0)


def is_recent(at_s: float | None, now_s: float, for_s: float) -> bool:
    """Return whether a reading at `at_s` still holds."""
    return at_s is not None and 0 <= now_s - at_s < for_s


def may_merge(stat: str) -> bool | None:
    """Return by its ksm_stat whether a process has mergeable memory; None where an older kernel cannot tell yet.

    ksm_merge_any and ksm_mergeable came after 6.12. Before, ksm_rmap_items shows that ksmd has scanned some.
    """
    if answers := re.findall(r"^ksm_merge(?:_any|able): (yes|no)$", stat, re.MULTILINE):
        return "yes" in answers
    return True if re.search("^ksm_rmap_items [1-9]", stat, re.MULTILINE) else None


def is_qemu(pid: int) -> bool:
    """Return whether a process has QEMU's name."""
    return COMM.match(read_process(pid, "comm")) is not None


def does_qemu_merge(pid: int) -> bool:
    """Return whether a QEMU asks for merging, as it does by default. It may hang: see `LimitedReads`."""
    from virtksm.guests.obstacles import is_merge_off  # start-up time; newer kernels tell

    arguments = read_process(pid, "cmdline", MAX_BYTES).decode("utf-8", "replace").split("\0")
    return not is_merge_off(arguments)


def parse_groups(text: str) -> tuple[str, ...]:
    """Take the control groups of units with MemoryKSM=yes from what `systemctl show` prints: a paragraph a unit."""
    units = (dict(line.partition("=")[::2] for line in unit.splitlines()) for unit in text.split("\n\n"))
    groups = (unit.get("ControlGroup", "") for unit in units if unit.get("MemoryKSM") == "yes")
    return tuple(group for group in groups if group.startswith("/") and group != "/")


def parse_group(text: str) -> str:
    """Return a process's control group at systemd, by its /proc/PID/cgroup (cgroups(7)); "" for none.

    The unified hierarchy's line is "0::PATH"; where there are older ones, systemd's is "N:name=systemd:PATH".
    """
    groups: dict[str, str] = {
        name: group for _, name, group in re.findall(r"^([0-9]+):([^:\n]*):(.*)$", text, re.MULTILINE)
    }
    return groups.get("name=systemd", groups.get("", ""))
