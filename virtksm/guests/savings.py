"""KSM's savings on each guest and their cost: shares whose sums are the kernel's own counters. Pure.

The kernel counts a merged page for every process that maps it, the first of a group included, so over all processes

    sum of ksm_merging_pages   = pages_shared + pages_sharing
    sum of ksm_zero_pages      = ksm_zero_pages of the host
    sum of ksm_process_profit  = general_profit + pages_shared x page size

and the last overstates the savings by the copies that stay (all three hold to the page on Linux 6.18 while ksmd idles:
tests/real/test_guests.py). Exited processes count until ksmd scans their pages again.

The shares:

1. Of a group of n equal pages the host saves n - 1, and no member more than another: twins save half of their common
   pages each. The kernel has no groups by process, so every merging page saves the same, the host's average
   pages_sharing / (pages_shared + pages_sharing). The shares of all processes add up to pages_sharing.
2. A zero page saves a whole page. So does one that a split huge page gave back (`Guest.freed_kib`, an estimate).
3. An entry of KSM's bookkeeping costs ITEM_BYTES, also for a page that did not merge. Profit is saved less cost, and
   may be negative. The costs of all processes add up to the deduction in general_profit.

The rest of the host's counters belongs to other processes (with MemoryKSM= or madvise of their own), to guests that
could not be read, to exited processes, or was counted while ksmd went on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from virtksm.guests.process import ProcessKsm
from virtksm.model.snapshot import Guest, KsmState

ITEM_BYTES = 64
"""struct ksm_rmap_item of a 64-bit kernel; tests/real/test_guests.py compares with ksm_process_profit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """KSM's account of one guest; None where the kernel does not count.

    `merged_bytes` is its merged memory, `zero_bytes` the part of that in zero pages, `unmerged_bytes` its other
    resident memory, QEMU's own included. `freed_bytes` is what its huge pages gave back when they were split.
    `saved_bytes` and `profit_bytes` are its shares.
    """

    merged_bytes: int
    zero_bytes: int
    freed_bytes: int
    unmerged_bytes: int | None
    saved_bytes: int
    cost_bytes: int | None
    profit_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOver:
    """What the guests' accounts leave of the host's counters; negative where ksmd went on between the readings."""

    merging_pages: int
    zero_pages: int | None
    saved_bytes: int
    cost_bytes: int | None


def settle(process: ProcessKsm, guest: Guest, host: KsmState) -> Account | None:
    """Return a guest's account; None where the kernel does not count by process (before 5.19)."""
    if process.merging_pages is None or host.pages_sharing is None:
        return None
    page_bytes = host.page_kib * 1024
    zero_bytes = (process.zero_pages or 0) * page_bytes
    resident_bytes = process.merging_pages * page_bytes  # zero pages are no part of the RSS
    share_bytes = resident_bytes * host.pages_sharing // host.merging_pages if host.merging_pages else 0
    freed_bytes = guest.freed_kib * 1024
    saved_bytes = share_bytes + zero_bytes + freed_bytes
    cost_bytes = None if process.rmap_items is None else process.rmap_items * ITEM_BYTES
    return Account(
        merged_bytes=resident_bytes + zero_bytes,
        zero_bytes=zero_bytes,
        freed_bytes=freed_bytes,
        unmerged_bytes=None if guest.rss_kib is None else max(guest.rss_kib * 1024 - resident_bytes, 0),
        saved_bytes=saved_bytes,
        cost_bytes=cost_bytes,
        profit_bytes=None if cost_bytes is None else saved_bytes - cost_bytes,
    )


def find_cost_bytes(host: KsmState, general_profit_bytes: int | None) -> int | None:
    """Return the cost of KSM's bookkeeping on the host by general_profit; None where the kernel lacks that."""
    if general_profit_bytes is None or host.saved_kib is None:
        return None
    return (host.saved_kib - (host.freed_kib or 0)) * 1024 - general_profit_bytes  # which knows nothing of that


def find_profit_bytes(host: KsmState, general_profit_bytes: int | None) -> int | None:
    """Return what is saved on the host less the cost of KSM's bookkeeping; None where the kernel does not tell."""
    return None if general_profit_bytes is None else general_profit_bytes + (host.freed_kib or 0) * 1024


def find_left_over(
    settled: Iterable[tuple[ProcessKsm, Account]], host: KsmState, general_profit_bytes: int | None
) -> LeftOver | None:
    """Return the rest beside the guests that could be read; shares are rounded down to the byte."""
    if host.merging_pages is None or host.saved_kib is None:
        return None
    of_guests = list(settled)
    zero_pages = sum(process.zero_pages or 0 for process, _ in of_guests)
    cost_bytes = find_cost_bytes(host, general_profit_bytes)
    return LeftOver(
        merging_pages=host.merging_pages - sum(process.merging_pages or 0 for process, _ in of_guests),
        zero_pages=None if host.ksm_zero_pages is None else host.ksm_zero_pages - zero_pages,
        saved_bytes=host.saved_kib * 1024 - sum(account.saved_bytes for _, account in of_guests),
        cost_bytes=None
        if cost_bytes is None
        else cost_bytes - sum(account.cost_bytes or 0 for _, account in of_guests),
    )
