"""Reads this machine's memory: /proc/meminfo, the pool of huge pages, ZFS's cache, limits of control groups."""

from __future__ import annotations

import re

from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.files import Root
from virtksm.host.local_facts import parse_figures, parse_meminfo
from virtksm.host.memory_limits import SYS_CGROUP, MemoryLimits
from virtksm.host.proc_files import NUMBER
from virtksm.model.snapshot import HostMemory

POOLS = "sys/kernel/mm/hugepages"
"""A folder for each size of huge pages (admin-guide/mm/hugetlbpage.rst)."""


def read_memory(root: Root) -> HostMemory:
    """Read the host's memory as a pass does; raises CannotTell."""
    try:
        memory = parse_meminfo(_meminfo(root))
    except ValueError as error:
        raise CannotTell(f"/proc/meminfo: {error}") from error
    return MemoryLimits(lambda: 0.0, root.path(SYS_CGROUP.lstrip("/"))).added_to(memory, root.path("proc"))


def read_figures_kib(root: Root, *names: str) -> list[int]:
    """Read figures of /proc/meminfo; raises CannotTell."""
    figures = parse_figures(_meminfo(root))
    for name in names:
        if name not in figures:
            raise CannotTell(f"/proc/meminfo: {name} is missing")
    return [figures[name] for name in names]


def read_unused_pool_kib(root: Root) -> int:
    """Read how much of the pool of huge pages no process holds, of all sizes; raises CannotTell."""
    sizes = ((name, re.fullmatch(rf"hugepages-({NUMBER})kB", name)) for name in root.names(POOLS))
    return sum(int(size[1]) * (root.number(f"{POOLS}/{name}/free_hugepages") or 0) for name, size in sizes if size)


def _meminfo(root: Root) -> str:
    text = root.text("proc/meminfo")
    if text is None:
        raise CannotTell("/proc/meminfo is missing: is /proc mounted, with ProcSubset=all?")
    return text
