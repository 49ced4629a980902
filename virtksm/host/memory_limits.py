"""What bounds guests' memory besides the machine, and what else comes back: control groups, ZFS's cache, zram, commits.

libvirt puts guests into machine.slice, or /machine without systemd (its document on control groups). The limit of that
group (`MemoryHigh=`, `MemoryMax=`), or of the container around it, bounds all guests together, however much memory the
machine has. A guest's own group bounds that guest alone and is left out (the doctor judges it). So is version 1 of
control groups, which no distribution that virtksm supports boots with. Reads only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from virtksm.host.proc_files import NUMBER, parse_counter, read_small
from virtksm.model.snapshot import HostMemory
from virtksm.tuning.ports import Clock
from virtksm.values import replace

SYS_NODE = "/sys/devices/system/node"
"""A folder for each NUMA node, with a meminfo (ABI/stable/sysfs-devices-node)."""
SYS_CGROUP = "/sys/fs/cgroup"
"""Where control groups (version 2) are mounted."""
GUESTS_GROUPS = ("machine.slice", "machine")
"""libvirt's default partition, with systemd and without."""
LIMITS = ("memory.high", "memory.max")
"""Above the first the kernel throttles and reclaims, at the second it ends processes (admin-guide/cgroup-v2.rst)."""
SWAP_LIMITS = ("memory.swap.max",)
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
        self._swap_limits_kib: dict[str, int] = {}
        self._has_arc = self._has_zram = self._is_commit_limited = False
        self._sought_s: float | None = None

    def added_to(self, memory: HostMemory, proc: str) -> HostMemory:
        """Return the host's memory with ZFS's cache, and with the tightest limits around all guests."""
        now_s = self._clock()
        if self._sought_s is None or not 0 <= now_s - self._sought_s < AGAIN_S:
            self._limits_kib, self._swap_limits_kib = self._find(LIMITS), self._find(SWAP_LIMITS)
            self._has_arc = os.path.exists(f"{proc}/{ARCSTATS}")  # a fifth of pathlib's time
            self._has_zram = "/dev/zram" in (read_small(f"{proc}/swaps") or "")
            self._is_commit_limited = read_small(f"{proc}/sys/vm/overcommit_memory") == "2\n"
            self._sought_s = now_s
        has_own = self._has_arc or self._has_zram or self._is_commit_limited
        if not (has_own or self._limits_kib or self._swap_limits_kib):
            return memory
        left_kib = [max(limit - _used_kib(folder), 0) for folder, limit in self._limits_kib.items()]
        swap_left_kib = [
            max(limit - _read_kib(f"{folder}/memory.swap.current"), 0)
            for folder, limit in self._swap_limits_kib.items()
        ]
        if self._has_zram:
            zram_kib = parse_zram_free_kib(read_small(f"{proc}/swaps") or "")
            swap_left_kib.append(max((memory.swap_free_kib or 0) - zram_kib, 0))
        return replace(
            memory,
            arc_kib=parse_arc_kib(read_small(f"{proc}/{ARCSTATS}") or ""),
            limit_kib=min(self._limits_kib.values(), default=None),
            limit_left_kib=min(left_kib, default=None),
            swap_left_kib=min(swap_left_kib, default=None),
            commit_left_kib=parse_commit_left_kib(read_small(f"{proc}/meminfo") or "")
            if self._is_commit_limited
            else None,
        )

    def _find(self, names: Iterable[str]) -> dict[str, int]:
        found = []
        for group in (f"{self._root}/{name}" for name in GUESTS_GROUPS):
            if read_small(f"{group}/memory.current") is None:
                continue  # without guests' groups below it, the root is the limit of others
            for folder in (group, self._root):
                limits = [parse_counter(read_small(f"{folder}/{name}") or "") for name in names]  # "max" is none
                found += [(folder, limit // 1024) for limit in limits if limit is not None]
        return dict(sorted(found, reverse=True))  # of one folder's limits the lower one stays


def _used_kib(folder: str) -> int:
    """Return what a group holds without the page cache that can go, as MemAvailable counts it."""
    cache = re.findall(rf"^(?:in)?active_file ({NUMBER})$", read_small(f"{folder}/memory.stat") or "", re.MULTILINE)
    return max(_read_kib(f"{folder}/memory.current") - sum(map(int, cache)) // 1024, 0)


def _read_kib(path: str) -> int:
    return (parse_counter(read_small(path) or "") or 0) // 1024


def read_node_kib(sys_node: str, node: int) -> tuple[int, int] | None:
    """Return what guests can share of a NUMA node's memory, and what of it is available; None where there is none.

    Page cache and half of the slab that can go count as available, as in MemAvailable (mm/page_alloc.c).
    """
    folder = f"{sys_node}/node{node}"
    text = read_small(f"{folder}/meminfo") or ""
    kib = {name: int(one) for name, one in re.findall(rf"^Node [0-9]+ ([\w()]+): *({NUMBER}) kB$", text, re.MULTILINE)}
    if not {"MemTotal", "MemFree", "Active(file)", "Inactive(file)"} <= kib.keys():
        return None
    available_kib = kib["MemFree"] + kib["Active(file)"] + kib["Inactive(file)"] + kib.get("SReclaimable", 0) // 2
    return max(kib["MemTotal"] - _read_pool_kib(f"{folder}/hugepages"), 0), available_kib


def _read_pool_kib(folder: str) -> int:
    try:
        sizes = [re.fullmatch(rf"hugepages-({NUMBER})kB", name) for name in os.listdir(folder)]
    except OSError:
        return 0
    pages = ((size, parse_counter(read_small(f"{folder}/{size[0]}/nr_hugepages") or "")) for size in sizes if size)
    return sum(int(size[1]) * (count or 0) for size, count in pages)


def parse_arc_kib(text: str) -> int | None:
    """Return what ZFS's cache gives back when memory is short: its size down to its minimum, by its arcstats.

    MemAvailable has none of it (openzfs/zfs issue 10255). None for other text.
    """
    figures = dict(re.findall(rf"^(size|c_min) +[0-9]+ +({NUMBER})$", text, re.MULTILINE))
    return max(int(figures["size"]) - int(figures["c_min"]), 0) // 1024 if len(figures) == 2 else None


def parse_zram_free_kib(text: str) -> int:
    """Return how much swap on zram is free, by /proc/swaps: memory itself, however small it makes what it takes."""
    sizes = re.findall(rf"^/dev/zram[0-9]+\s+\S+\s+({NUMBER})\s+({NUMBER})\s", text, re.MULTILINE)
    return sum(int(size) - int(used) for size, used in sizes)


def parse_commit_left_kib(text: str) -> int | None:
    """Return how much memory the kernel still promises, by /proc/meminfo (mm/overcommit-accounting.rst)."""
    figures = dict(re.findall(rf"^(CommitLimit|Committed_AS): *({NUMBER}) kB$", text, re.MULTILINE))
    return max(int(figures["CommitLimit"]) - int(figures["Committed_AS"]), 0) if len(figures) == 2 else None
