"""The host's own /proc and /sys: guests' resident memory, ksmd's CPU time, KSM's switch and advisor.

`guest_processes` finds a guest's process; after that a guest costs one read of its statm, which stays open. No file
that a pass reads needs a privilege. Reads only.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from itertools import starmap
from typing import TYPE_CHECKING, TypeVar

import psutil

from virtksm.errors import SensingFailed, reason_of
from virtksm.host.bounded import Wait
from virtksm.host.guest_processes import QEMU_HOME, GuestSearch
from virtksm.host.memory_limits import SYS_CGROUP, SYS_NODE, MemoryLimits, read_node_kib
from virtksm.host.proc_files import (
    LIMIT_S,
    MAX_BYTES,
    NUMBER,
    LimitedReads,
    Process,
    identify,
    list_pids,
    parse_counter,
    parse_memory_kib,
    parse_process_ksm,
    parse_rollup_kib,
    parse_smaps,
    parse_stat,
    read_name,
    read_private,
    read_process,
    read_small,
)
from virtksm.model.snapshot import Guest, HostMemory, MergedReading, OtherProcesses
from virtksm.tuning.ports import Clock
from virtksm.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from virtksm.guests.process import GuestProcess, MergeableMemory, OtherProcess
    from virtksm.host.other_processes import OtherProcessesReader

Result = TypeVar("Result")

KSMD_AGAIN_S = 60.0
"""Between two searches for a ksmd that was not found: /proc may show more by then, or less (containers)."""
MAX_HANGS = 5
"""Hanging processes that a command waits for before it goes on without the rest."""


def boottime_s() -> float:
    """Return the clock of snapshots: seconds since boot, suspended time included, which never step."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ProcFacts:
    """LocalFacts from psutil and sysfs.

    `sys_ksm` is the folder of KSM's files, `sys_thp` that of transparent huge pages, `sys_cgroup` that of control
    groups, `sys_node` that of NUMA nodes, `qemu_home` libvirt's for QEMU.
    """

    def __init__(
        self,
        clock: Clock = boottime_s,
        *,
        sys_ksm: str = "/sys/kernel/mm/ksm",
        sys_thp: str = "/sys/kernel/mm/transparent_hugepage",
        sys_cgroup: str = SYS_CGROUP,
        sys_node: str = SYS_NODE,
        qemu_home: str = QEMU_HOME,
        limit_s: float = LIMIT_S,
        wait: Wait = threading.Event.wait,
    ) -> None:
        self._clock = clock
        self._sys_ksm = sys_ksm
        self._sys_thp = sys_thp
        self._sys_node = sys_node
        self._reads = LimitedReads(limit_s, wait)
        self._search = GuestSearch(clock, self._reads, qemu_home=qemu_home)
        self._limits = MemoryLimits(clock, sys_cgroup)
        self._pool_kib: dict[tuple[str, int | None], int | None] = {}
        self._other_processes_reads = LimitedReads(limit_s, wait)  # apart: strangers use up these limits
        self._other_processes_reader: OtherProcessesReader | None = None
        self._huge_page_kib: int | None = None
        self._ksmd: Process | None = None
        self._ksmd_sought_s: float | None = None

    @property
    def trouble(self) -> tuple[str, ...]:
        return (*self._search.trouble, *self._reads.trouble, *self._other_processes_reads.trouble)

    def guests(self, running: tuple[Guest, ...]) -> tuple[Guest, ...]:
        found, page_kib = self._search.find(running), self.page_kib()
        keyed = [(guest.key, guest) for guest in running]  # once: making keys took a tenth of a pass
        pool_kib = self._find_pool_kib(keyed, found)

        def measured(key: str, guest: Guest) -> Guest:
            process = found.get(key)
            memory = None if process is None else parse_memory_kib(process.statm, page_kib)
            if memory is None:
                return guest
            return replace(guest, rss_kib=memory[0], shared_kib=memory[1], pool_kib=pool_kib.get((key, guest.max_kib)))

        return tuple(starmap(measured, keyed))

    def _find_pool_kib(
        self, keyed: list[tuple[str, Guest]], found: Mapping[str, Process]
    ) -> Mapping[tuple[str, int | None], int | None]:
        """Return what each guest holds of the pool of huge pages: read once, and again as its maximum changes.

        libvirt has QEMU take all of it before the guest runs.
        """
        known, has_pool = self._pool_kib, None
        self._pool_kib = {}
        for key, guest in keyed:
            run = key, guest.max_kib
            if run not in known and key in found:
                if has_pool is None:
                    has_pool = bool(parse_figures(read_small(f"{psutil.PROCFS_PATH}/meminfo") or "").get("Hugetlb"))
                known[run] = read_status_kib(found[key].pid, "HugetlbPages") if has_pool else None
            if run in known:
                self._pool_kib[run] = known[run]
        return self._pool_kib

    def other_processes_memory(self, running: tuple[Guest, ...]) -> OtherProcesses | None:
        if self._other_processes_reader is None:
            from virtksm.host.other_processes import OtherProcessesReader  # start-up time; not every policy asks

            self._other_processes_reader = OtherProcessesReader(self._clock, self._other_processes_reads)
        return self._other_processes_reader.memory(lambda: self._pids_of(running))

    def processes(self, running: tuple[Guest, ...]) -> tuple[GuestProcess | None, ...]:
        return self.read_each(running, read_guest_process)

    def identities(self, running: tuple[Guest, ...]) -> tuple[str | None, ...]:
        found = self._search.find(running)
        processes = (found.get(guest.key) for guest in running)
        return tuple(None if one is None else f"{one.pid}/{one.started}" for one in processes)

    def lives(self, identity: str) -> bool:
        pid, _, started = identity.partition("/")
        number = parse_counter(pid)
        found = None if number is None else identify(number)
        return found is not None and str(found.started) == started

    def read_each(self, running: tuple[Guest, ...], read: Callable[[int], Result | None]) -> tuple[Result | None, ...]:
        """Return what `read` returns of each guest's process; None where none was found, or it hangs."""
        found = self._search.find(running)
        results = self._reads.read(self._pids_of(running), read, max_hangs=MAX_HANGS)
        return tuple(results.get(found[guest.key].pid) if guest.key in found else None for guest in running)

    def mergeable_memory(self, guest: Guest) -> MergeableMemory | None:
        return self.read_each((guest,), read_mergeable_memory)[0]

    def merged(self, running: tuple[Guest, ...]) -> Iterator[tuple[str, MergedReading]]:
        page_kib = self.page_kib()
        for key, process in self._search.find(running).items():
            taken_s = self._clock()
            for found in self._reads.read((process.pid,), read_merged).values():
                if found is not None:
                    yield key, MergedReading(taken_s=taken_s, counted_kib=found[0] * page_kib, mapped_kib=found[1])

    def merging_processes(self, running: tuple[Guest, ...]) -> tuple[OtherProcess, ...]:
        from virtksm.guests.process import OtherProcess  # imports are start-up time, and no pass asks

        of_guests = self._pids_of(running)
        found = []
        for pid in list_pids():
            merging_pages = None if pid in of_guests else parse_counter(read_private(pid, "ksm_merging_pages") or "")
            if merging_pages:
                found.append(OtherProcess(pid=pid, name=read_name(pid), merging_pages=merging_pages))
        return tuple(found)

    def host_memory(self) -> HostMemory:
        path = f"{psutil.PROCFS_PATH}/meminfo"
        try:
            with open(path, encoding="ascii") as file:
                memory = parse_meminfo(file.read())
        except (OSError, ValueError) as error:
            raise SensingFailed(
                f"{path}: {reason_of(error)}", remedy="/proc must be mounted, and a unit needs ProcSubset=all"
            ) from error
        return self._limits.added_to(memory, psutil.PROCFS_PATH)

    def node_memory(self, node: int) -> tuple[int, int] | None:
        return read_node_kib(self._sys_node, node)

    def ksmd_cpu_seconds(self) -> float | None:
        if self._ksmd is None or not self._ksmd.lives():
            self._ksmd = self._find_ksmd()
        stat = None if self._ksmd is None else parse_stat(read_process(self._ksmd.pid, "stat"))
        return None if stat is None else stat.ticks / os.sysconf("SC_CLK_TCK")

    def _find_ksmd(self) -> Process | None:
        now_s = self._clock()
        if self._ksmd_sought_s is not None and 0 <= now_s - self._ksmd_sought_s < KSMD_AGAIN_S:
            return None
        self._ksmd_sought_s = now_s
        for pid in sorted(list_pids()):  # ksmd is among the first
            if read_process(pid, "comm") == b"ksmd\n":
                process, stat = identify(pid), parse_stat(read_process(pid, "stat"))
                if stat is not None and stat.is_kernels:
                    self._ksmd_sought_s = None
                    return process
        return None

    def ksm_counter(self, name: str) -> int | None:
        return parse_counter(read_small(f"{self._sys_ksm}/{name}") or "")

    def numa_balancing_hides_pages(self) -> bool:
        """Tell whether Linux 6.1 to 6.4 balances NUMA nodes here: pages that it has marked stay merged, uncounted.

        There follow_page(), by which KSM looks for pages, finds none of them (mm/gup.c: since commit 474098edac26,
        until d74943a2f3cd). Without NUMA it balances none.
        """
        folder = f"{psutil.PROCFS_PATH}/sys/kernel"
        balances = (read_small(f"{folder}/numa_balancing") or "0").strip() != "0"
        return balances and (read_small(f"{folder}/osrelease") or "").startswith(("6.1.", "6.2.", "6.3.", "6.4."))

    def general_profit_bytes(self) -> int | None:
        return parse_counter(read_small(f"{self._sys_ksm}/general_profit") or "", is_signed=True)

    def vm_counters(self, *names: str) -> tuple[int | None, ...]:
        text = read_small(f"{psutil.PROCFS_PATH}/vmstat") or ""
        return tuple(parse_vmstat(text, name) for name in names)

    def cpus(self) -> int | None:
        return os.cpu_count()

    def page_kib(self) -> int:
        return os.sysconf("SC_PAGE_SIZE") // 1024

    def huge_page_kib(self) -> int | None:
        if self._huge_page_kib is None:
            size = parse_counter(read_small(f"{self._sys_thp}/hpage_pmd_size") or "")
            self._huge_page_kib = None if size is None else size // 1024
        return self._huge_page_kib

    def advisor_mode(self) -> str | None:
        text = read_small(f"{self._sys_ksm}/advisor_mode")
        return None if text is None else parse_choice(text)

    def _pids_of(self, running: tuple[Guest, ...]) -> set[int]:
        return {process.pid for process in self._search.find(running).values()}


def parse_figures(text: str) -> dict[str, int]:
    """Parse /proc/meminfo (KiB), whatever it names."""
    return {name: int(kib) for name, kib in re.findall(rf"^(\w+): *({NUMBER}) kB$", text, re.MULTILINE)}


def parse_meminfo(text: str) -> HostMemory:
    """Parse /proc/meminfo (KiB); raises ValueError if a figure is missing; MemAvailable (3.14), swap and
    Hugetlb (4.16) may be.

    Not by psutil: its `cached` is more than the kernel's Cached, which ksmtuned and libvirt use.
    """
    figures = parse_figures(text)
    swap_kib, free_kib = figures.get("SwapTotal"), figures.get("SwapFree")
    swapped_kib = None if swap_kib is None or free_kib is None else swap_kib - free_kib - figures.get("SwapCached", 0)
    try:
        return HostMemory(
            total_kib=figures["MemTotal"],
            free_kib=figures["MemFree"],
            buffers_kib=figures["Buffers"],
            cached_kib=figures["Cached"],
            available_kib=figures.get("MemAvailable"),
            swap_free_kib=free_kib,
            hugetlb_kib=figures.get("Hugetlb"),
            swapped_kib=None if swapped_kib is None else max(swapped_kib, 0),
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error


def parse_vmstat(text: str, name: str) -> int | None:
    """Take one counter of /proc/vmstat; None when the kernel has none of that name."""
    found = re.search(rf"^{name} ({NUMBER})$", text, re.MULTILINE)
    return int(found[1]) if found else None


def parse_choice(text: str) -> str:
    """Return the chosen word of a sysfs file such as "[none] scan-time"; a text without one as it is."""
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), text.strip())


def read_guest_process(pid: int) -> GuestProcess | None:
    """Read a guest's process; None if it has ended. It may hang: see `LimitedReads`."""
    from virtksm.guests.process import GuestProcess

    arguments = read_process(pid, "cmdline", MAX_BYTES)
    if not arguments:
        return None
    stat, merging_pages = (read_private(pid, name) for name in ("ksm_stat", "ksm_merging_pages"))
    return GuestProcess(
        arguments=tuple(arguments.decode("utf-8", "replace").split("\0")),
        ksm=None if stat is None or merging_pages is None else parse_process_ksm(stat, merging_pages),
        swapped_kib=read_status_kib(pid, "VmSwap"),
    )


def read_mergeable_memory(pid: int) -> MergeableMemory | None:
    """Read what of a process may merge; None where this user may not, or it has ended. It may hang, as above."""
    try:
        with open(f"{psutil.PROCFS_PATH}/{pid}/smaps", encoding="ascii", errors="replace") as file:
            return parse_smaps(file)
    except OSError:
        return None


def read_merged(pid: int) -> tuple[int, int] | None:
    """Return the pages that ksmd counts as merged of a process, and the KiB that are; None as above. It may hang."""
    counted_pages = parse_counter(read_private(pid, "ksm_merging_pages") or "")
    mapped_kib = parse_rollup_kib(read_private(pid, "smaps_rollup") or "")
    return None if counted_pages is None or mapped_kib is None else (counted_pages, mapped_kib)


def read_status_kib(pid: int, name: str) -> int | None:
    """Return an amount of /proc/PID/status, which every user may read; None where the kernel does not count it."""
    found = re.search(
        rf"^{name}:\s+({NUMBER}) kB$", read_process(pid, "status").decode("ascii", "replace"), re.MULTILINE
    )
    return int(found[1]) if found else None
