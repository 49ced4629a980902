"""Memory that huge pages gave back when ksmd split them, by guest: an estimate, rather too low. Pure.

Since Linux 6.12 the kernel maps the zero subpages of a huge page that it splits to the zero page, whatever
use_zero_pages says. They are no longer resident, and no counter of KSM's tells. A guest's resident memory does, which
falls for other reasons, too. So from one pass to the next:

1. What guests have fallen by is freed, in all at most what ksmd can have split: the huge pages that were split while it
   scanned (thp_split_page), less those that reclaim split because they were underused (thp_underused_split_page, which
   is as old as the mapping: a kernel without it frees nothing so).
2. Less the pages that merged into the zero page (ksm_zero_pages), as these are no longer resident either, and what swap
   has taken (pswpout, zswpout; of what other memory has come back meanwhile, swap's free space tells nothing).
3. What a guest grows by takes back its own first: it may write there again, page by page. Whole huge pages
   (thp_fault_alloc) are new memory, as far as the guest has never had so much before.
4. A guest that stops takes its own along. One whose memory cannot be read keeps it.
5. Where pages_scanned has fallen, the machine has booted, and all begins anew.

A balloon, or a guest that reports free pages, at the very moment when ksmd splits others is what rule 1 cannot tell
apart, nor rule 3 whose the whole huge pages are. What was freed before the first pass is unknown, and counts as
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from virtksm.model.snapshot import Snapshot
from virtksm.values import EMPTY, replace


class Freed(NamedTuple):
    """What a pass hands to the next: the counters and each guest's resident memory, by `Guest.key`, and the estimate.

    It is kept with the host's state: what is free stays free when an agent starts anew, and each one-shot is a process.
    """

    pages_scanned: int
    huge_pages_split: int
    zero_kib: int
    swap_free_kib: int | None
    rss_kib: Mapping[str, int]
    kib: Mapping[str, int] = EMPTY
    huge_faults: int | None = None
    max_kib: Mapping[str, int] = EMPTY
    """The most that each guest ever had: resident, and freed."""
    swapped_kib: int | None = None
    """All that swap has ever taken."""


def count_freed(snapshot: Snapshot, before: Freed | None) -> Freed | None:
    """Return the estimate as of this snapshot; None where the kernel or the connection does not tell."""
    ksm, guests = snapshot.ksm, snapshot.guests
    scanned, split, underused = ksm.pages_scanned, ksm.thp_split_page, ksm.thp_underused_split_page
    if scanned is None or split is None or underused is None:
        return None
    if before is not None and scanned < before.pages_scanned:
        before = None
    kept_kib = {} if before is None else before.rss_kib
    now = Freed(
        pages_scanned=scanned,
        huge_pages_split=max(split - underused, 0),
        zero_kib=ksm.zero_kib or 0,
        swap_free_kib=snapshot.host.swap_free_kib,
        rss_kib={
            guest.key: kept_kib.get(guest.key, 0) if guest.rss_kib is None else guest.rss_kib
            for guest in guests
            if guest.rss_kib is not None or guest.key in kept_kib
        },
        huge_faults=ksm.thp_fault_alloc,
        swapped_kib=None if ksm.pswpout is None else ksm.kib(ksm.pswpout + (ksm.zswpout or 0)),
    )
    if before is None:
        return replace(now, max_kib=now.rss_kib)
    grown_kib = {key: kib - kept_kib[key] for key, kib in now.rss_kib.items() if key in kept_kib}
    new_share = _new_share(before, now, ksm.huge_page_kib)
    kib = {key: _left_kib(key, before, now, new_share) for key in before.kib.keys() & grown_kib.keys()}
    fallen_kib = -sum(grown for grown in grown_kib.values() if grown < 0)
    has_scanned = ksm.settings.pages_to_scan or scanned != before.pages_scanned  # that changes at a batch's end alone
    freed_kib = _freed_kib(fallen_kib, before, now, ksm.huge_page_kib)
    if has_scanned and freed_kib > 0:
        for key, grown in grown_kib.items():
            if grown < 0:
                kib[key] = kib.get(key, 0) + -grown * freed_kib // fallen_kib
    kib = {key: one for key, one in kib.items() if one > 0}
    held_kib = {key: rss_kib + kib.get(key, 0) for key, rss_kib in now.rss_kib.items()}
    max_kib = {key: max(before.max_kib.get(key, 0), held) for key, held in held_kib.items()}
    return replace(now, kib=kib, max_kib=max_kib)


def _new_share(before: Freed, now: Freed, huge_page_kib: int) -> float:
    """Return what share of all guests' growth whole huge pages can have been."""
    if before.huge_faults is None or now.huge_faults is None:
        return 0.0
    grown_kib = sum(max(kib - before.rss_kib.get(key, 0), 0) for key, kib in now.rss_kib.items())
    return min(max(now.huge_faults - before.huge_faults, 0) * huge_page_kib / grown_kib, 1.0) if grown_kib else 0.0


def _left_kib(key: str, before: Freed, now: Freed, new_share: float) -> int:
    """Return what of a guest's own is still free (rule 3)."""
    kib, grown_kib = before.kib[key], max(now.rss_kib[key] - before.rss_kib[key], 0)
    beyond_kib = max(now.rss_kib[key] + kib - before.max_kib.get(key, 0), 0)
    return kib - grown_kib + min(int(grown_kib * new_share), beyond_kib)


def _freed_kib(fallen_kib: int, before: Freed, now: Freed, huge_page_kib: int) -> int:
    """Return how much of what guests' resident memory has fallen by huge pages have given back (rules 1 and 2)."""
    swapped_kib = 0
    if before.swap_free_kib is not None and now.swap_free_kib is not None:
        swapped_kib = max(before.swap_free_kib - now.swap_free_kib, 0)
    if before.swapped_kib is not None and now.swapped_kib is not None:
        swapped_kib = max(now.swapped_kib - before.swapped_kib, swapped_kib)
    zero_kib = max(now.zero_kib - before.zero_kib, 0)
    split_kib = max(now.huge_pages_split - before.huge_pages_split, 0) * huge_page_kib
    return min(fallen_kib - zero_kib - swapped_kib, split_kib)
