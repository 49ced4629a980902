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
NODES = "sys/devices/system/node"
"""A folder for each NUMA node, with a meminfo (admin-guide/mm/numaperf.rst)."""


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


def read_pool_kib(root: Root, pages: str, pools: str = POOLS) -> int:
    """Read the pool of huge pages of all sizes, or its unused part: `pages` names the file. Raises CannotTell."""
    sizes = ((name, re.fullmatch(rf"hugepages-({NUMBER})kB", name)) for name in root.names(pools))
    return sum(int(size[1]) * (root.number(f"{pools}/{name}/{pages}") or 0) for name, size in sizes if size)


def read_node_kib(root: Root, node: int) -> tuple[int, int]:
    """Read what guests can share of a NUMA node's memory, and what of it is available; raises CannotTell.

    Page cache and half of the slab that can go count as available, as in MemAvailable (mm/page_alloc.c).
    """
    folder = f"{NODES}/node{node}"
    found = re.findall(
        rf"^Node [0-9]+ ([A-Za-z()]+): *({NUMBER}) kB$", root.text(f"{folder}/meminfo") or "", re.MULTILINE
    )
    kib = {name: int(amount) for name, amount in found}
    try:
        available_kib = kib["MemFree"] + kib["Active(file)"] + kib["Inactive(file)"] + kib.get("SReclaimable", 0) // 2
        return kib["MemTotal"] - read_pool_kib(root, "nr_hugepages", f"{folder}/hugepages"), available_kib
    except KeyError as error:
        raise CannotTell(f"/{folder}/meminfo: {error.args[0]} is missing") from error


def _meminfo(root: Root) -> str:
    text = root.text("proc/meminfo")
    if text is None:
        raise CannotTell("/proc/meminfo is missing: is /proc mounted, with ProcSubset=all?")
    return text
