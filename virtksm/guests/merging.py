"""Whether a running guest may merge, by QEMU's own word, and what taking it out of KSM costs. Values; pure.

QEMU keeps a guest's RAM in memory backends (objects below /objects: pc.ram, ram-node0, memdimm0, memvirtiomem0). The
property `merge` of each switches it while the guest runs: QEMU calls madvise, and notes the value whatever the kernel
answers. So the value is what was asked for; what has come of it only the kernel tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtksm.guests.process import GuestProcess, MergeableMemory
from virtksm.model.snapshot import KsmState

HELD_S_PER_GIB = 1.0
"""How long QEMU stands still while a GiB of merged pages unmerges: 0.6 to 0.8 s of CPU, several times that on a busy
host (measured: docs/benchmarks.md)."""
IGNORING = (9, 1)
"""QEMU's releases that note the property and do nothing (its commit 5becdc0ab083). Mended in 9.2 (78c8f780d3f0), and in
none of 9.1.1 to 9.1.3 by their lists of patches; a distributor's 9.1 may have the mend."""


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
