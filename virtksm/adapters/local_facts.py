"""What this host's own /proc and /sys tell: guests' resident memory, ksmd's CPU time, KSM's switch and advisor.

A guest's process is the one whose command line carries `-uuid UUID` as libvirt starts it; that needs no privilege. The
walk over processes (14 ms for 64 guests) happens only while some guest has no process yet; after that a guest costs one
read of /proc/PID/statm. Reads only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import psutil

from virtksm.adapters.proc_files import (
    NUMBER,
    parse_counter,
    parse_process_ksm,
    parse_signed,
    read_private,
    read_process,
)
from virtksm.errors import SensingFailed
from virtksm.model import Guest, HostMemory, OthersMemory
from virtksm.ports import Clock

if TYPE_CHECKING:
    from virtksm.adapters.others import OthersLook
    from virtksm.processes import GuestProcess, OtherProcess

YOUNG_S = 5.0
"""A process may still become a guest this long after it was first seen: libvirt forks before it executes QEMU."""
FORGET_S = 600.0
"""After this long a process is looked at again, should its number have been used again for a guest."""


class ProcFacts:
    """LocalFacts from psutil and sysfs; `sys_ksm` is the folder of KSM's files."""

    def __init__(self, clock: Clock, *, sys_ksm: str = "/sys/kernel/mm/ksm") -> None:
        self._clock = clock
        self._sys_ksm = sys_ksm
        self._found: dict[str, psutil.Process] = {}
        self._others: dict[int, float] = {}
        self._others_look: OthersLook | None = None
        self._ksmd: psutil.Process | None = None
        self._ksmd_sought = False

    def guests(self, running: tuple[Guest, ...]) -> tuple[Guest, ...]:
        self._seek(running)
        return tuple(replace(guest, rss_kib=self._rss_kib(guest.key)) for guest in running)

    def others_memory(self, running: tuple[Guest, ...]) -> OthersMemory | None:
        if self._others_look is None:
            from virtksm.adapters.others import OthersLook  # imports are start-up time, and not every policy asks

            self._others_look = OthersLook(self._clock)
        return self._others_look.memory(lambda: self._pids_of(running))

    def processes(self, running: tuple[Guest, ...]) -> tuple[GuestProcess | None, ...]:
        self._seek(running)
        found = (self._found.get(guest.key) for guest in running)
        return tuple(None if process is None else read_guest_process(process.pid) for process in found)

    def others(self, running: tuple[Guest, ...]) -> tuple[OtherProcess, ...]:
        from virtksm.processes import OtherProcess  # as above: no pass asks

        of_guests = self._pids_of(running)
        others = []
        for pid in psutil.pids():
            merging_pages = None if pid in of_guests else parse_counter(read_private(pid, "ksm_merging_pages") or "")
            if merging_pages:
                name = read_process(pid, "comm").decode("utf-8", "replace").removesuffix("\n")
                others.append(OtherProcess(pid=pid, name=name, merging_pages=merging_pages))
        return tuple(others)

    def host_memory(self) -> HostMemory:
        path = f"{psutil.PROCFS_PATH}/meminfo"
        try:
            with open(path, encoding="ascii") as file:
                return parse_meminfo(file.read())
        except (OSError, ValueError) as error:
            raise SensingFailed(f"{path}: {error}", remedy="is /proc mounted, with ProcSubset=all?") from error

    def ksmd_cpu_seconds(self) -> float | None:
        if not self._ksmd_sought:
            self._ksmd, self._ksmd_sought = _find_ksmd(), True
        if self._ksmd is None:
            return None
        try:
            times = self._ksmd.cpu_times()
        except psutil.Error:
            return None
        return round(times.user + times.system, 2)  # both are ticks of 10 ms, whose sum as floats may miss one

    def ksm_counter(self, name: str) -> int | None:
        text = self._read(name)
        return None if text is None else parse_counter(text)

    def general_profit_bytes(self) -> int | None:
        text = self._read("general_profit")
        return None if text is None else parse_signed(text)

    def vm_counters(self, *names: str) -> tuple[int | None, ...]:
        try:
            with open(f"{psutil.PROCFS_PATH}/vmstat", encoding="ascii", errors="replace") as file:
                text = file.read()
        except OSError:  # hidden: None, as where the kernel does not count
            text = ""
        return tuple(parse_vmstat(text, name) for name in names)

    def page_kib(self) -> int:
        return os.sysconf("SC_PAGE_SIZE") // 1024

    def advisor_mode(self) -> str | None:
        text = self._read("advisor_mode")
        return None if text is None else parse_choice(text)

    def _read(self, name: str) -> str | None:
        try:
            with open(f"{self._sys_ksm}/{name}", encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:  # the kernel has no such file (older, or without KSM), or hides it: None either way
            return None

    def _rss_kib(self, key: str) -> int | None:
        process = self._found.get(key)
        if process is None:
            return None
        try:
            return int(process.memory_info().rss) // 1024
        except psutil.NoSuchProcess:
            del self._found[key]
            return None

    def _pids_of(self, running: tuple[Guest, ...]) -> set[int]:
        self._seek(running)
        return {process.pid for process in self._found.values()}

    def _seek(self, running: tuple[Guest, ...]) -> None:
        """Find the processes of the guests that have none yet, and forget those of guests that have ended."""
        wanted = {guest.key: guest.uuid for guest in running}
        self._found = {key: process for key, process in self._found.items() if key in wanted}
        missing = {uuid: key for key, uuid in wanted.items() if key not in self._found}
        if missing:
            self._find(missing)

    def _find(self, missing: Mapping[str, str]) -> None:
        """Find the processes of guests, given as UUID to key."""
        now_s = self._clock()
        taken = {process.pid for process in self._found.values()}
        seen: dict[int, float] = {}
        for pid in psutil.pids():
            first_s = self._others.get(pid, now_s)
            if pid in taken:
                continue
            seen[pid] = first_s if now_s - first_s < FORGET_S else now_s
            if YOUNG_S < now_s - first_s < FORGET_S:
                continue
            uuid = parse_guest_uuid(read_process(pid, "cmdline"))
            if uuid is not None and uuid in missing:
                try:
                    self._found[missing[uuid]] = psutil.Process(pid)
                except psutil.NoSuchProcess:
                    continue
                del seen[pid]
        self._others = seen


def parse_meminfo(text: str) -> HostMemory:
    """Parse /proc/meminfo (KiB); raises ValueError if a figure is missing; MemAvailable (3.14) and swap may be.

    Not by psutil: its `cached` is more than the kernel's Cached, which ksmtuned and libvirt go by.
    """
    figures = dict(re.findall(rf"^(\w+): *({NUMBER}) kB$", text, re.MULTILINE))
    try:
        return HostMemory(
            total_kib=int(figures["MemTotal"]),
            free_kib=int(figures["MemFree"]),
            buffers_kib=int(figures["Buffers"]),
            cached_kib=int(figures["Cached"]),
            available_kib=int(figures["MemAvailable"]) if "MemAvailable" in figures else None,
            swap_free_kib=int(figures["SwapFree"]) if "SwapFree" in figures else None,
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error


def parse_vmstat(text: str, name: str) -> int | None:
    """Take one counter of /proc/vmstat; None when the kernel has none of that name."""
    found = re.search(rf"^{name} ({NUMBER})$", text, re.MULTILINE)
    return int(found[1]) if found else None


def parse_guest_uuid(command_line: bytes) -> str | None:
    """Return what follows -uuid on the command line of a guest's process, None if it is none."""
    arguments = command_line.split(b"\0")
    return next((value.decode("ascii", "replace") for name, value in pairwise(arguments) if name == b"-uuid"), None)


def parse_choice(text: str) -> str:
    """Return the chosen word of a sysfs file such as "[none] scan-time"; a text without one as it is."""
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), text.strip())


def _find_ksmd() -> psutil.Process | None:
    for pid in sorted(psutil.pids()):
        if read_process(pid, "comm") == b"ksmd\n" and not read_process(pid, "cmdline"):
            try:
                return psutil.Process(pid)
            except psutil.NoSuchProcess:
                continue
    return None


def read_guest_process(pid: int) -> GuestProcess | None:
    """Read what the process of a guest tells; None if it has ended."""
    from virtksm.processes import GuestProcess

    arguments = read_process(pid, "cmdline")
    if not arguments:
        return None
    stat, merging_pages = (read_private(pid, name) for name in ("ksm_stat", "ksm_merging_pages"))
    return GuestProcess(
        arguments=tuple(arguments.decode("utf-8", "replace").split("\0")),
        ksm=None if stat is None or merging_pages is None else parse_process_ksm(stat, merging_pages),
    )
