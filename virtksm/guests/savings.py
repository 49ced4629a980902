"""What KSM saves on each guest, and what it costs there: shares whose sums are the kernel's own counters. Pure.

The kernel counts a page that is merged for every process that maps it, the first of a group included, so that over all
processes

    sum of ksm_merging_pages   = pages_shared + pages_sharing
    sum of ksm_zero_pages      = ksm_zero_pages of the host
    sum of ksm_process_profit  = general_profit + pages_shared x page size

and the last overstates what is saved by the copies that are kept (all three hold to the page on Linux 6.18 while ksmd
rests: tests/real/test_guests.py). Processes that have ended count on until ksmd comes by.

The shares:

1. Of a group of n equal pages the host saves n - 1, and no member more than another: twins save half of their common
   pages each. The kernel does not tell groups by process, so every merging page saves the same, the host's average
   pages_sharing / (pages_shared + pages_sharing). The shares of all processes add up to pages_sharing.
2. A zero page saves a whole page.
3. An entry of ksmd's books costs ITEM_BYTES, also for pages that found no twin. Profit is saved less cost, and may be
   negative. Costs of all processes add up to what general_profit deducts.

What the guests' shares leave of the host's counters is others' (processes with MemoryKSM= or madvise of their own),
of guests that could not be read, of processes that have ended, or counted while ksmd went on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from virtksm.guests.process import ProcessKsm
from virtksm.model.snapshot import KsmState

ITEM_BYTES = 64
"""struct ksm_rmap_item of a 64-bit kernel; tests/real/test_guests.py compares with ksm_process_profit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What KSM does for one guest; None where the kernel does not count.

    `merged_bytes` is what is merged of it, `zero_bytes` the part of that in zero pages, `unmerged_bytes` what else is
    resident, QEMU's own memory included. `saved_bytes` and `profit_bytes` are its shares.
    """

    merged_bytes: int
    zero_bytes: int
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


def settle(process: ProcessKsm, rss_kib: int | None, host: KsmState) -> Account | None:
    """Return a guest's account; None where the kernel does not count by process (before 5.19)."""
    if process.merging_pages is None or host.pages_sharing is None:
        return None
    page_bytes = host.page_kib * 1024
    zero_bytes = (process.zero_pages or 0) * page_bytes
    resident_bytes = process.merging_pages * page_bytes  # zero pages are no part of the RSS
    share_bytes = resident_bytes * host.pages_sharing // host.merging_pages if host.merging_pages else 0
    saved_bytes = share_bytes + zero_bytes
    cost_bytes = None if process.rmap_items is None else process.rmap_items * ITEM_BYTES
    return Account(
        merged_bytes=resident_bytes + zero_bytes,
        zero_bytes=zero_bytes,
        unmerged_bytes=None if rss_kib is None else max(rss_kib * 1024 - resident_bytes, 0),
        saved_bytes=saved_bytes,
        cost_bytes=cost_bytes,
        profit_bytes=None if cost_bytes is None else saved_bytes - cost_bytes,
    )


def find_cost_bytes(host: KsmState, general_profit_bytes: int | None) -> int | None:
    """Return what the host's books cost by general_profit; None where the kernel does not tell that."""
    if general_profit_bytes is None or host.saved_kib is None:
        return None
    return host.saved_kib * 1024 - general_profit_bytes


def find_left_over(
    settled: Iterable[tuple[ProcessKsm, Account]], host: KsmState, general_profit_bytes: int | None
) -> LeftOver | None:
    """Return what the guests that could be read leave to others; shares are rounded down to the byte."""
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
