"""What this host's own /proc and /sys tell: guests' resident memory, ksmd's CPU time, KSM's switch and advisor.

A guest's process is the one whose command line carries `-uuid UUID` as libvirt starts it; that needs no privilege. The
walk over processes (14 ms for 64 guests) happens only while some guest has no process yet; after that a guest costs one
read of /proc/PID/statm. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil

from virtksm.model import Guest
from virtksm.ports import Clock, RunningGuest

YOUNG_S = 5.0
"""A process may still become a guest this long after it was first seen: libvirt forks before it executes QEMU."""
FORGET_S = 600.0
"""After this long a process is looked at again, should its number have been used again for a guest."""


class ProcFacts:
    """LocalFacts from psutil and sysfs; `sys_ksm` is the folder of KSM's files."""

    def __init__(self, clock: Clock, *, sys_ksm: str = "/sys/kernel/mm/ksm") -> None:
        self._clock = clock
        self._sys_ksm = Path(sys_ksm)
        self._found: dict[tuple[str, int], psutil.Process] = {}
        self._others: dict[int, float] = {}
        self._ksmd: psutil.Process | None = None
        self._ksmd_sought = False

    def guests(self, running: tuple[RunningGuest, ...]) -> tuple[Guest, ...]:
        wanted = {(guest.uuid, guest.domain_id) for guest in running}
        self._found = {key: process for key, process in self._found.items() if key in wanted}
        missing = wanted - self._found.keys()
        if missing:
            self._find(missing)
        return tuple(
            Guest(uuid=guest.uuid, name=guest.name, rss_kib=self._rss_kib((guest.uuid, guest.domain_id)))
            for guest in running
        )

    def available_kib(self) -> int | None:
        return int(psutil.virtual_memory().available) // 1024

    def ksmd_cpu_seconds(self) -> float | None:
        if not self._ksmd_sought:
            self._ksmd, self._ksmd_sought = _find_ksmd(), True
        if self._ksmd is None:
            return None
        try:
            times = self._ksmd.cpu_times()
        except psutil.Error:
            return None
        return float(times.user + times.system)

    def ksm_run(self) -> int | None:
        text = self._read("run")
        return int(text) if text is not None and text.strip().isdigit() else None

    def advisor_mode(self) -> str | None:
        text = self._read("advisor_mode")
        return None if text is None else parse_choice(text)

    def _read(self, name: str) -> str | None:
        try:
            return (self._sys_ksm / name).read_text(encoding="ascii", errors="replace")
        except OSError:  # the kernel has no such file (older, or without KSM), or hides it: None either way
            return None

    def _rss_kib(self, key: tuple[str, int]) -> int | None:
        process = self._found.get(key)
        if process is None:
            return None
        try:
            return int(process.memory_info().rss) // 1024
        except psutil.NoSuchProcess:
            del self._found[key]
            return None

    def _find(self, missing: set[tuple[str, int]]) -> None:
        now_s = self._clock()
        keys = {uuid: (uuid, domain_id) for uuid, domain_id in missing}
        taken = {process.pid for process in self._found.values()}
        seen: dict[int, float] = {}
        for pid in psutil.pids():
            first_s = self._others.get(pid, now_s)
            if pid in taken:
                continue
            seen[pid] = first_s if now_s - first_s < FORGET_S else now_s
            if YOUNG_S < now_s - first_s < FORGET_S:
                continue
            try:
                process = psutil.Process(pid)
                uuid = parse_guest_uuid(process.cmdline())
            except psutil.Error:
                continue
            if uuid in keys:
                self._found[keys[uuid]] = process
                del seen[pid]
        self._others = seen


def parse_guest_uuid(arguments: list[str]) -> str | None:
    """Return what follows -uuid on a QEMU command line, None if this is none."""
    if not arguments or "qemu" not in arguments[0]:
        return None
    return next(_after("-uuid", arguments), None)


def parse_choice(text: str) -> str:
    """Return the chosen word of a sysfs file such as "[none] scan-time"; a text without one as it is."""
    return next((word[1:-1] for word in text.split() if word.startswith("[") and word.endswith("]")), text.strip())


def _after(option: str, arguments: list[str]) -> Iterator[str]:
    return (value for name, value in pairwise(arguments) if name == option)


def _find_ksmd() -> psutil.Process | None:
    for pid in sorted(psutil.pids()):
        try:
            process = psutil.Process(pid)
            if process.name() == "ksmd" and not process.cmdline():
                return process
        except psutil.Error:
            continue
    return None
