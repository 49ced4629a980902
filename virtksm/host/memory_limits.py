"""What bounds guests' memory besides the machine, and what else comes back: limits of control groups, ZFS's cache.

libvirt puts guests into machine.slice, or /machine without systemd (its document on control groups). The limit of that
group (`MemoryHigh=`, `MemoryMax=`), or of the container around it, bounds all guests together, however much memory the
machine has. A guest's own group bounds that guest alone and is left out. Reads only.
"""

from __future__ import annotations

import os
import re

from virtksm.host.proc_files import NUMBER, parse_counter, read_small
from virtksm.model.snapshot import HostMemory
from virtksm.tuning.ports import Clock
from virtksm.values import replace

SYS_CGROUP = "/sys/fs/cgroup"
"""Where control groups (version 2) are mounted."""
GUESTS_GROUPS = ("machine.slice", "machine")
"""libvirt's default partition, with systemd and without."""
LIMITS = ("memory.high", "memory.max")
"""Above the first the kernel throttles and reclaims, at the second it ends processes (admin-guide/cgroup-v2.rst)."""
ARCSTATS = "spl/kstat/zfs/arcstats"
"""ZFS's counters, below /proc; every user may read them."""
AGAIN_S = 60.0
"""Seconds between two searches: `systemctl set-property` may set a limit at any time, yet seldom does."""


class MemoryLimits:
    """Adds these to what /proc/meminfo tells. Where there are none, that costs a reading a minute."""

    def __init__(self, clock: Clock, sys_cgroup: str = SYS_CGROUP) -> None:
        self._clock = clock
        self._root = sys_cgroup
        self._limits_kib: dict[str, int] = {}
        self._has_arc = False
        self._sought_s: float | None = None

    def added_to(self, memory: HostMemory, proc: str) -> HostMemory:
        """Return the host's memory with ZFS's cache, and with the tightest limit around all guests."""
        now_s = self._clock()
        if self._sought_s is None or not 0 <= now_s - self._sought_s < AGAIN_S:
            self._limits_kib, self._sought_s = dict(self._find()), now_s
            self._has_arc = os.path.exists(f"{proc}/{ARCSTATS}")  # a fifth of pathlib's time
        if not self._has_arc and not self._limits_kib:
            return memory
        left_kib = [max(limit - _used_kib(folder), 0) for folder, limit in self._limits_kib.items()]
        return replace(
            memory,
            arc_kib=parse_arc_kib(read_small(f"{proc}/{ARCSTATS}") or ""),
            limit_kib=min(self._limits_kib.values(), default=None),
            limit_left_kib=min(left_kib, default=None),
        )

    def _find(self) -> list[tuple[str, int]]:
        found = []
        for group in (f"{self._root}/{name}" for name in GUESTS_GROUPS):
            if read_small(f"{group}/memory.current") is None:
                continue  # without guests' groups below it, the root is the limit of others
            for folder in (group, self._root):
                limits = [parse_counter(read_small(f"{folder}/{name}") or "") for name in LIMITS]  # "max" is none
                found += [(folder, limit // 1024) for limit in limits if limit is not None]
        return sorted(found, reverse=True)  # of one folder's limits the lower one stays


def _used_kib(folder: str) -> int:
    """Return what a group holds without the page cache that can go, as MemAvailable counts it."""
    used = parse_counter(read_small(f"{folder}/memory.current") or "") or 0
    cache = re.findall(rf"^(?:in)?active_file ({NUMBER})$", read_small(f"{folder}/memory.stat") or "", re.MULTILINE)
    return max(used - sum(map(int, cache)), 0) // 1024


def parse_arc_kib(text: str) -> int | None:
    """Return what ZFS's cache gives back when memory is short: its size down to its minimum, by its arcstats.

    MemAvailable has none of it (openzfs/zfs issue 10255). None for other text.
    """
    figures = dict(re.findall(rf"^(size|c_min) +[0-9]+ +({NUMBER})$", text, re.MULTILINE))
    return max(int(figures["size"]) - int(figures["c_min"]), 0) // 1024 if len(figures) == 2 else None
