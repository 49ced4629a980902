"""Rules 6 to 10 of the adaptive law: when a round begins, how it is fed to ksmd, what its end means.

A round is one full scan. ksmd is fed by the spoon: pages_to_scan is what the CPU budget allows for one tick, and
sleep_millisecs is a minute, which a changed value cuts short. So every tick that changes it grants one batch, and
without ticks (the agent or libvirt gone) ksmd does one batch a minute. A batch never goes beyond a round's end. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from virtksm.config.schema import AdaptiveParams
from virtksm.model import KERNEL_MAXIMUM, Settings, Snapshot
from virtksm.policy.adaptive.debt import NEGLIGIBLE, PAGE_KIB, is_growing, known_kib, total_kib
from virtksm.policy.adaptive.past import MOST_SUM, AdaptivePast, Meter, Round

TICK_S = 1.0
"""Time for which a batch is meant. ksmd holds a mutex during a batch, so that `echo 0 > run` waits for its end."""
SLACK_S = 0.05
"""How much later than a batch's reckoned end the next one is granted: before it, a changed sleep would be lost."""
FED_SLEEPS_MS = (60_000, 60_001)
LEAST_BATCH_PAGES = 1000

PRICE_GROWING = 0.5
PRICE_SETTLED = 20.0
"""How many ksmd-seconds a second of waiting of the whole memory is worth: while more appears, one round later covers it
all; once it has settled, waiting is nothing but loss."""
PRESSING = 9.0
"""With no memory available, waiting is worth this many times more, in addition."""
LEAST_PAGE_COST_S, MOST_PAGE_COST_S = 2e-7, 1e-3
"""Bounds for what is measured: below it a counter was not whole yet, above it ksmd did other things."""
MOST_NARROW_ROUNDS = 14
"""After so many rounds a new page and an old one have met, if they ever do (smart_scan: docs/policies.md)."""
FOUND = 8
"""Narrow rounds that merged an eighth of the debt they were made for were worth it."""
STALLED_S = 120.0
"""A round that has not ended after this long and ten times what was reckoned is given up."""


def read_meter(snapshot: Snapshot) -> Meter:
    """Take the counters that differences are made of."""
    ksm = snapshot.ksm
    return Meter(
        taken_s=snapshot.taken_s,
        pages_sharing=ksm.pages_sharing or 0,
        cpu_s=ksm.ksmd_cpu_seconds,
        pages_scanned=ksm.pages_scanned,
        pages_skipped=ksm.pages_skipped,
    )


def round_cost_s(snapshot: Snapshot, past: AdaptivePast) -> float:
    """Return the ksmd-seconds that a round is reckoned to take: as the last one, for the memory there is now."""
    first = past.page_cost_s / PAGE_KIB
    return total_kib(snapshot, past) * (first if past.round_cost_s_per_kib is None else past.round_cost_s_per_kib)


def seconds_to_wait(snapshot: Snapshot, past: AdaptivePast, pressure: float) -> float | None:
    """Return how long the debt has yet to wait for its round (rule 6); None if none pays for one."""
    debt_kib = past.fresh_kib + past.half_kib
    memory_kib = total_kib(snapshot, past)
    if debt_kib * NEGLIGIBLE <= memory_kib:
        return None
    price = (PRICE_GROWING if is_growing(past) else PRICE_SETTLED) * (1 + PRESSING * pressure)
    due_kib_s = memory_kib * round_cost_s(snapshot, past) * past.backoff / price
    return max(due_kib_s - past.waited_kib_s, 0.0) / debt_kib


def begin_round(snapshot: Snapshot, past: AdaptivePast) -> AdaptivePast:
    """Begin a round (rule 7): the fresh debt will have been visited once at its end.

    With the cursor where our last round left it, or where it begins as long as KSM knows of no page, the next full scan
    is whole; otherwise the one after it is.
    """
    full_scans = snapshot.ksm.full_scans or 0
    whole = past.full_scans == full_scans or known_kib(snapshot) == 0
    return replace(
        past,
        round=Round(
            ends_at_full_scans=full_scans + (1 if whole else 2),
            scanning_kib=past.fresh_kib,
            began=read_meter(snapshot),
        ),
        fresh_kib=0,
        waited_kib_s=0.0,
    )


def feed(
    snapshot: Snapshot, past: AdaptivePast, current: Round, params: AdaptiveParams, pressure: float
) -> tuple[Settings, float, AdaptivePast]:
    """Grant the next batch (rule 8): return the settings, when it will be over, and the past.

    A batch that still runs is left to end, since ksmd would not hear of a changed sleep; and passes that guests ask for
    in between grant none, or a storm of events would spend more than the budget.
    """
    now = read_meter(snapshot)
    share = params.cpu_percent / 100
    share += (1 - share) * pressure
    cost_s = measured_page_cost_s(current.began, now) or past.page_cost_s
    pages = min(max(int(share * TICK_S / cost_s), LEAST_BATCH_PAGES), KERNEL_MAXIMUM)
    slept_ms = snapshot.ksm.settings.sleep_millisecs
    hold, grant = FED_SLEEPS_MS if slept_ms == FED_SLEEPS_MS[0] else reversed(FED_SLEEPS_MS)
    early_s = current.next_batch_s - now.taken_s
    if current.fed is not None and (is_busy(current.fed, now) or 0 < early_s <= TICK_S + SLACK_S):
        settings = Settings(pages_to_scan=pages, sleep_millisecs=hold)
        return settings, max(early_s, TICK_S / 4), replace(past, page_cost_s=cost_s)
    left_s = TICK_S
    scanned = _difference(current.began.pages_scanned, now.pages_scanned)
    if scanned is not None:
        left_s = max((total_kib(snapshot, past) / PAGE_KIB - scanned) * cost_s, TICK_S / 4)
    settings = Settings(pages_to_scan=pages, sleep_millisecs=grant)
    next_s = min(TICK_S, left_s) + SLACK_S
    # A timer may come a moment early.
    fed = replace(current, fed=now, next_batch_s=now.taken_s + next_s - SLACK_S)
    return settings, next_s, replace(past, page_cost_s=cost_s, round=fed)


def measured_page_cost_s(began: Meter, now: Meter) -> float | None:
    """Return ksmd's CPU time for each page visited since `began`; None while too little is known."""
    cpu_s, scanned = _used_s(began, now), _difference(began.pages_scanned, now.pages_scanned)
    if not cpu_s or scanned is None or scanned < LEAST_BATCH_PAGES:
        return None
    return min(max(cpu_s / scanned, LEAST_PAGE_COST_S), MOST_PAGE_COST_S)


def is_busy(fed: Meter, now: Meter) -> bool:
    """Tell whether the batch granted at `fed` still runs: ksmd counts its pages only when it is over."""
    used_s = _used_s(fed, now)
    nothing_counted = now.pages_scanned is not None and now.pages_scanned == fed.pages_scanned
    return nothing_counted and used_s is not None and used_s > (now.taken_s - fed.taken_s) / 2 > 0


def has_ended(snapshot: Snapshot, current: Round) -> bool:
    """Tell whether the round's full scan is over; a counter that fell back (a reboot) ends it, too."""
    full_scans = snapshot.ksm.full_scans or 0
    return full_scans >= current.ends_at_full_scans or full_scans + 2 < current.ends_at_full_scans


def has_stalled(snapshot: Snapshot, past: AdaptivePast, current: Round) -> bool:
    """Tell whether ksmd does not get on: switched off unseen, or starved of CPU."""
    reckoned_s = max(round_cost_s(snapshot, past), total_kib(snapshot, past) / PAGE_KIB * past.page_cost_s)
    return snapshot.taken_s - current.began.taken_s > max(STALLED_S, 10 * reckoned_s)


def end_round(snapshot: Snapshot, past: AdaptivePast, ended: Round) -> AdaptivePast:
    """Settle a round's account (rule 9): what was fresh is owed one visit more, what was half is paid.

    A narrow round, in which smart_scan skipped most of the old pages, pays for no half debt of which little has merged
    (rule 10): the twins that it may have were not there. It is cheap, and the wide one will come.
    """
    began, now = ended.began, read_meter(snapshot)
    used_s = _used_s(began, now)
    cost_s = max(now.taken_s - began.taken_s, 0.0) if used_s is None else used_s
    gained_kib = max(now.pages_sharing - began.pages_sharing, 0) * PAGE_KIB
    half_gained_kib = min(past.half_gained_kib + gained_kib, MOST_SUM)
    may_go_on = past.narrow_rounds < past.narrow_limit and half_gained_kib * 2 < past.half_kib
    is_tail = is_narrow(snapshot, past, ended) and may_go_on
    if past.narrow_rounds > 0 and not is_tail:
        found = half_gained_kib * FOUND > past.half_kib
        past = replace(past, narrow_limit=MOST_NARROW_ROUNDS if found else past.narrow_limit // 2)
    return replace(
        past,
        round=None,
        full_scans=snapshot.ksm.full_scans,
        half_kib=ended.scanning_kib + (past.half_kib if is_tail else 0),
        half_gained_kib=half_gained_kib if is_tail else gained_kib,
        narrow_rounds=past.narrow_rounds + 1 if is_tail else 0,
        round_cost_s_per_kib=cost_s / max(total_kib(snapshot, past), 1),
        gained_kib=min(past.gained_kib + gained_kib, MOST_SUM),
    )


def is_narrow(snapshot: Snapshot, past: AdaptivePast, ended: Round) -> bool:
    """Tell whether smart_scan skipped more than half of the old pages that have not merged."""
    skipped = _difference(ended.began.pages_skipped, snapshot.ksm.pages_skipped)
    lone_kib = ((snapshot.ksm.pages_unshared or 0) + (snapshot.ksm.pages_volatile or 0)) * PAGE_KIB
    old_kib = lone_kib - ended.scanning_kib - past.half_kib
    return skipped is not None and skipped * PAGE_KIB * 2 > old_kib > 0


def _used_s(before: Meter, after: Meter) -> float | None:
    return None if before.cpu_s is None or after.cpu_s is None else max(after.cpu_s - before.cpu_s, 0.0)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)
