"""Checks of this machine's memory: swap, room for what is merged, what guests cannot have, what comes back."""

from __future__ import annotations

import os
import re

from virtksm.doctor.checks.kernel import with_ksm
from virtksm.doctor.facts import Facts, Here
from virtksm.doctor.finding import CannotTell, Judgement, failed, passed, warned
from virtksm.doctor.reading.files import Root
from virtksm.host.local_facts import parse_figures, parse_meminfo
from virtksm.host.memory_limits import ARCSTATS, GUESTS_GROUPS, SYS_CGROUP, MemoryLimits
from virtksm.host.proc_files import NUMBER
from virtksm.model.snapshot import HostMemory, KsmState
from virtksm.text import format_kib

POOLS = "sys/kernel/mm/hugepages"
"""A folder for each size of huge pages (admin-guide/mm/hugetlbpage.rst)."""
ARCSTATS_FILE = f"proc/{ARCSTATS}"
SHRINKER_LIMIT = "sys/module/zfs/parameters/zfs_arc_shrinker_limit"
"""Pages of ZFS's cache that one request for memory may free; 0, as in OpenZFS 2.4: as many as it needs."""


def check_swap(facts: Facts) -> Judgement:
    total_kib, free_kib = _read_figures_kib(facts.this_machine.root, "SwapTotal", "SwapFree")
    free = f"{format_kib(free_kib)} of {format_kib(total_kib)} are free"
    if total_kib and free_kib * 10 < total_kib:
        return warned(f"{free}: swap is nearly full", "add swap or memory, or move guests away")
    if total_kib and _read_memory(facts.this_machine.root).spare_swap_kib:
        return passed(free)
    here = with_ksm(facts)
    none = f"{free}, and none of it for guests (zram is memory; MemorySwapMax=)" if total_kib else "there is none"
    if _merged(here).missing_kib(_spare_kib(_read_memory(here.root))):
        return warned(
            f"{none}, and what is merged would not fit into memory: pages that unmerge end guests (OOM killer)",
            "add swap on a disk (mkswap, swapon, /etc/fstab)",
        )
    return passed(f"{none}, and what is merged would fit into memory without")


def check_headroom(facts: Facts) -> Judgement:
    here = with_ksm(facts)
    memory, merged = _read_memory(here.root), _merged(here)
    available_kib, swap_kib = _spare_kib(memory), memory.spare_swap_kib or 0
    if merged.unmerge_kib == 0:
        return passed(f"nothing is merged; {format_kib(available_kib)} are available")
    detail = f"unmerging takes up to {format_kib(merged.unmerge_kib)}, {format_kib(available_kib)} are available"
    missing_kib = merged.missing_kib(available_kib)
    if not missing_kib:
        return passed(detail)
    remedy = "free memory: move guests away, or give the host more"
    if missing_kib <= swap_kib:
        return warned(f"{detail}: {format_kib(missing_kib)} would go to swap", remedy)
    return failed(f"{detail}: {format_kib(missing_kib - swap_kib)} are missing, swap included", remedy)


def check_pool(facts: Facts) -> Judgement:
    """Judge whether a pool of huge pages keeps more memory unused than the rest of the host has available."""
    root = facts.this_machine.root
    memory = _read_memory(root)
    if not memory.hugetlb_kib:
        return passed("there is none")
    unused_kib = _read_unused_pool_kib(root)
    pool, unused = format_kib(memory.hugetlb_kib), format_kib(unused_kib)
    if unused_kib > _spare_kib(memory):
        return warned(
            f"{unused} of its {pool} are unused, and of the other memory only {format_kib(_spare_kib(memory))} are "
            "available",
            "make it smaller: /sys/kernel/mm/hugepages/hugepages-*/nr_hugepages, and what sets that at boot "
            "(hugepages= of the kernel, vm.nr_hugepages)",
        )
    return passed(f"{pool}, {unused} unused: guests outside of it share {format_kib(memory.usable_kib)}")


def check_arc(facts: Facts) -> Judgement:
    root = facts.this_machine.root
    if root.text(ARCSTATS_FILE) is None:
        return passed("no ZFS is loaded")
    back_kib = _read_memory(root).arc_kib
    if back_kib is None:
        raise CannotTell(f"/{ARCSTATS_FILE} names no size and no minimum")
    detail = f"up to {format_kib(back_kib)} come back when memory is short, and count as available"
    limit = root.number(SHRINKER_LIMIT)
    if limit and back_kib:
        return warned(
            f"{detail}, but slowly, as zfs_arc_shrinker_limit is {limit}: guests may be ended meanwhile (OOM killer)",
            f"echo 0 > /{SHRINKER_LIMIT}, or a smaller zfs_arc_max",
        )
    return passed(detail)


def check_limits(facts: Facts) -> Judgement:
    """Judge whether a control group bounds guests so that what is merged in it does not fit."""
    here = with_ksm(facts)
    memory = _read_memory(here.root)
    for group in GUESTS_GROUPS:
        limit = here.root.number(f"{SYS_CGROUP}/memory/{group}/memory.limit_in_bytes".lstrip("/"))
        if limit is not None and limit // 1024 < memory.total_kib:  # without a limit it is a number of exbibytes
            return warned(
                f"guests may have {format_kib(limit // 1024)} together, which virtksm does not see: "
                "control groups are of version 1",
                "boot with version 2 (systemd.unified_cgroup_hierarchy=1 on the kernel's command line)",
            )
    if memory.limit_kib is None or memory.limit_left_kib is None:
        return passed("no control group limits the guests together")
    detail = (
        f"guests may have {format_kib(memory.limit_kib)} together, {format_kib(memory.limit_left_kib)} of it are left"
    )
    if _merged(here).missing_kib(memory.limit_left_kib):
        return warned(
            f"{detail}: unmerging takes up to {format_kib(_merged(here).unmerge_kib)}",
            f"raise it (systemctl set-property {GUESTS_GROUPS[0]} MemoryMax=), or move guests away",
        )
    return passed(detail)


def check_commit(facts: Facts) -> Judgement:
    """Judge whether the kernel promises as little memory as there is, so that merging makes no room for guests."""
    memory = _read_memory(facts.this_machine.root)
    if memory.commit_left_kib is None:
        return passed("guests may ask for more memory than there is")
    detail = (
        f"vm.overcommit_memory is 2: new guests get {format_kib(memory.commit_left_kib)} at most, whatever merges; "
        f"{format_kib(_spare_kib(memory))} are available"
    )
    if memory.commit_left_kib < _spare_kib(memory):
        return warned(detail, "sysctl vm.overcommit_memory=0, or a larger vm.overcommit_ratio, or more swap")
    return passed(detail)


def _merged(here: Here) -> KsmState:
    merged = KsmState.counted(here.number, os.sysconf("SC_PAGE_SIZE") // 1024)
    if merged.unmerge_kib is None:
        raise CannotTell("KSM's counters are missing")
    return merged


def _spare_kib(memory: HostMemory) -> int:
    if memory.spare_kib is None:
        raise CannotTell("/proc/meminfo: MemAvailable is missing")
    return memory.spare_kib


def _read_memory(root: Root) -> HostMemory:
    """Read the host's memory as a pass does."""
    try:
        memory = parse_meminfo(_meminfo(root))
    except ValueError as error:
        raise CannotTell(f"/proc/meminfo: {error}") from error
    return MemoryLimits(lambda: 0.0, root.path(SYS_CGROUP.lstrip("/"))).added_to(memory, root.path("proc"))


def _read_figures_kib(root: Root, *names: str) -> list[int]:
    figures = parse_figures(_meminfo(root))
    for name in names:
        if name not in figures:
            raise CannotTell(f"/proc/meminfo: {name} is missing")
    return [figures[name] for name in names]


def _read_unused_pool_kib(root: Root) -> int:
    """Read how much of the pool of huge pages no process holds, of all sizes."""
    sizes = ((name, re.fullmatch(rf"hugepages-({NUMBER})kB", name)) for name in root.names(POOLS))
    return sum(int(size[1]) * (root.number(f"{POOLS}/{name}/free_hugepages") or 0) for name, size in sizes if size)


def _meminfo(root: Root) -> str:
    text = root.text("proc/meminfo")
    if text is None:
        raise CannotTell("/proc/meminfo is missing: is /proc mounted, with ProcSubset=all?")
    return text
