"""Whether a running guest may merge, by QEMU's own word, and what taking it out of KSM costs. Values; pure.

QEMU keeps a guest's RAM in memory backends (objects below /objects: pc.ram, ram-node0, memdimm0, memvirtiomem0). The
property `merge` of each switches it while the guest runs: QEMU calls madvise, and notes the value whatever the kernel
answers. So the value is what was asked for; what has come of it only the kernel tells.
"""

from __future__ import annotations

from dataclasses import dataclass

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
