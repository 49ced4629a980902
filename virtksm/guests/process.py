"""Processes and KSM's counts for them, for surveys: plain values. No pass needs them, and making them takes time."""

from __future__ import annotations

from dataclasses import dataclass


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
