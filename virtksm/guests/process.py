"""Guests' processes: what KSM counts for them, whether QEMU lets their memory merge, and what taking it out costs.

Plain values. No pass needs them, and making them takes time.

QEMU keeps a guest's RAM in memory backends (objects below /objects: pc.ram, ram-node0, memdimm0, memvirtiomem0). The
property `merge` of each switches it while the guest runs: QEMU calls madvise, and notes the value whatever the kernel
answers. So the value is what was asked for; what has come of it only the kernel tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtksm.model.snapshot import KsmState

HELD_S_PER_GIB = 1.0
"""How long QEMU stands still while a GiB of merged pages unmerges: 0.6 to 0.8 s of CPU, several times that on a busy
host (measured: docs/benchmarks.md)."""
IGNORING = (9, 1)
"""QEMU's releases that note the property and do nothing (its commit 5becdc0ab083). Mended in 9.2 (78c8f780d3f0), and in
none of 9.1.1 to 9.1.3 by their lists of patches; a distributor's 9.1 may have the mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessKsm:
    """What KSM counts for one process, in pages of the host's size.

    Source: /proc/PID/ksm_stat, and /proc/PID/ksm_merging_pages (Linux 5.19) where that lacks it. `rmap_items` are
    KSM's bookkeeping entries, one a page (6.1), `merging_pages` the merged pages, the first of each group included
    (6.4), `zero_pages` those merged into the zero page (6.6), `profit_bytes` the kernel's own ksm_process_profit (6.4).
    `merges_any` (PR_SET_MEMORY_MERGE) and `is_mergeable` (some mapping may merge) came after 6.12.
    """

    rmap_items: int | None = None
    zero_pages: int | None = None
    merging_pages: int | None = None
    profit_bytes: int | None = None
    merges_any: bool | None = None
    is_mergeable: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestProcess:
    """A guest's QEMU: its command line, what KSM counts for it, and its memory in swap (VmSwap, anonymous alone).

    `ksm` is None where this user may not read it.
    """

    arguments: tuple[str, ...]
    ksm: ProcessKsm | None
    swapped_kib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeableMemory:
    """What of a process's memory the kernel may merge, and what it has merged now. Source: /proc/PID/smaps.

    `mappings_kib` are the sizes of the mappings that may merge (`mg` in VmFlags). `merged_kib` are the mapped KSM
    pages, zero pages not included, None before Linux 6.7. Unlike them, the counters of ksm_stat go on counting what is
    unmerged until ksmd scans again.
    """

    mappings_kib: tuple[int, ...]
    merged_kib: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherProcess:
    """A process that is no guest and has merged pages; it chooses its `name` itself."""

    pid: int
    name: str
    merging_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One memory backend; `merges` is its property, `size_kib` None where QEMU does not tell it."""

    name: str
    size_kib: int | None
    merges: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMerging:
    """What a guest's QEMU says: its version (major, minor, micro), and all its memory backends."""

    qemu: tuple[int, int, int]
    backends: tuple[Backend, ...]

    @property
    def version(self) -> str:
        return ".".join(map(str, self.qemu))

    @property
    def is_ignored(self) -> bool:
        """Whether this release ignores the property, as far as its number tells."""
        return self.qemu[:2] == IGNORING


def still_mergeable(backends: Sequence[Backend], memory: MergeableMemory) -> tuple[str, ...]:
    """Return the names of the backends that the kernel may merge: a mapping of their size may.

    QEMU maps each backend in one piece, between pages of which nothing may be touched. Video memory and firmware lie
    beside them, and go on merging; they are smaller than any guest's RAM.
    """
    return tuple(one.name for one in backends if one.size_kib in memory.mappings_kib)


def find_needed_kib(
    ksm: KsmState, memory_kib: int | None, process: GuestProcess | None, memory: MergeableMemory | None
) -> int:
    """Return how much memory unmerging a guest takes at most.

    Without a count of its own (another machine, no root) that is all that is merged on the host, but no more than the
    guest's memory.
    """
    counted = None if process is None else process.ksm
    merged_kib = None if memory is None else memory.merged_kib
    if counted is not None and merged_kib is None and counted.merging_pages is not None:
        merged_kib = ksm.kib(counted.merging_pages)
    if counted is not None and merged_kib is not None:
        return merged_kib + ksm.kib(counted.zero_pages or 0)
    bounds = [one for one in (ksm.unmerge_kib, memory_kib) if one is not None]
    return min(bounds, default=0)


def find_held_s(needed_kib: int) -> float:
    """Return how long QEMU will stand still while so much unmerges."""
    return HELD_S_PER_GIB * needed_kib / (1 << 20)
