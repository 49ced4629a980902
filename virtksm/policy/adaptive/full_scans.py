"""Rules 6 to 10 of the adaptive law: when a full scan begins, how ksmd is fed, what the end of a full scan means.

ksmd is fed in batches: pages_to_scan is what the CPU budget allows for two seconds, and sleep_millisecs is a minute,
which a changed value cuts short. So every change of it grants one batch, and without passes (the agent or libvirt gone)
ksmd does one batch a minute. A batch never goes beyond the end of a full scan. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Number
from virtksm.model.snapshot import KERNEL_MAXIMUM, Settings, Snapshot
from virtksm.policy.adaptive.backlog import NEGLIGIBLE, known_kib, total_kib
from virtksm.policy.adaptive.engage import Need
from virtksm.policy.adaptive.growth import Growth, judge_growth, seconds_to_end
from virtksm.policy.adaptive.state import DEFAULT_PAGE_COST_S, MAX_SUM, AdaptiveState, Backlog, FullScan, Meter, Scans

BATCH_S = 2.0
"""What a batch may take. ksmd holds a mutex meanwhile, so that `echo 0 > run` waits for its end."""
CAUTIOUS_PAGE_COST_S = 3.5e-6
"""Batches are no larger than this cost allows: expensive pages may follow cheap ones. A page costs from 0.3 to 7
microseconds (measured), and the first batch of a full scan assumes the most."""
MIN_WAIT_S = 0.25
"""No pass is asked for sooner: the agent makes none sooner by default (coalesce_ms)."""
SLACK_S = 0.02
"""How much later than a batch's estimated end the next one is granted: before it, a changed sleep would be lost."""
FED_SLEEPS_MS = (60_000, 60_001)
MIN_BATCH_PAGES = 1000

PRICES: Mapping[Growth, float] = {
    Growth.BURST: 0.1,
    Growth.SERIES: 0.1,
    Growth.STEADY: 1.0,
    Growth.SETTLED: 10.0,
}
"""How many ksmd-seconds it is worth to save the whole memory for a second: after a burst, one full scan covers it all;
once memory has settled, waiting is nothing but loss; steady growth lies halfway (the geometric mean)."""
STARTS_MERGE_RATIO = 0.5
"""The share of the memory of starting guests that is assumed to merge; of another backlog, as much as did lately."""
MIN_MERGE_RATIO = 0.05
NEWEST_MERGE_RATIO = 0.5
"""Weight of the last merge ratio in the average."""
SETTLED_WAIT_S = 4.0
"""A settled backlog has waited for so long on average before its full scan: guests seldom start alone."""
PRESSING = 9.0
"""With no memory available, waiting is worth this many times more, in addition."""
MIN_PAGE_COST_S, MAX_PAGE_COST_S = 2e-7, 1e-3
"""Bounds for what is measured: below it a counter was not whole yet, above it ksmd did other things."""
MAX_NARROW_FULL_SCANS = 13
"""After so many full scans a new page and an old one have met, if they ever do (smart_scan: docs/policies.md)."""
TRIED_FULL_SCANS = 3
FOUND = 32
"""Narrow full scans go on if all but the first have merged more than this fraction of what had been scanned once: there
are hidden twins then."""
UNSETTLED = 8
MAX_RETRIES = 2
"""ksmd splits huge pages to merge parts of them, and leaves others in neither tree. If that is more than an eighth of
what was scanned a second time, it is scanned again, so many times at most: also where the first of these merged next to
nothing and split nothing more (seen once in some forty runs of the demonstration, which lacked a third of its savings
then)."""
NEWEST = 0.3
"""Weight of a full scan that was cheaper than its estimate in the next estimate. A more expensive one counts in full: a
page's first scan costs a tenth of its second, and smart_scan skips a page only after four."""
STALLED_S = 120.0
"""A full scan that has not ended after this long and ten times its estimate is given up."""


def read_meter(snapshot: Snapshot) -> Meter:
    """Take the counters that differences are made of."""
    ksm = snapshot.ksm
    return Meter(
        taken_s=snapshot.taken_s,
        full_scans=ksm.full_scans or 0,
        pages_sharing=ksm.pages_sharing or 0,
        cpu_s=ksm.ksmd_cpu_seconds,
        pages_scanned=ksm.pages_scanned,
        pages_skipped=ksm.pages_skipped,
        thp_split_page=ksm.thp_split_page,
    )


def full_scan_cost_s(snapshot: Snapshot, state: AdaptiveState) -> float:
    """Return the ksmd-seconds that a full scan takes by estimate: as the last ones, for the memory there is now."""
    per_kib = state.learned.full_scan_cost_s_per_kib
    first = state.learned.page_cost_s / snapshot.ksm.page_kib
    return total_kib(snapshot, state) * (first if per_kib is None else per_kib)


def seconds_to_wait(snapshot: Snapshot, state: AdaptiveState, need: Need) -> float | None:
    """Return how long the backlog has yet to wait for its full scan (rule 6); None if it is worth none."""
    due_kib, memory_kib = state.backlog.due_kib, total_kib(snapshot, state)
    if due_kib * NEGLIGIBLE <= memory_kib:
        return None
    growth = judge_growth(state)
    worth_kib_s = _worth_kib_s(state, need, growth, memory_kib, full_scan_cost_s(snapshot, state))
    wait_s = max(worth_kib_s - state.backlog.waited_kib_s, 0.0) / due_kib
    ends_s = seconds_to_end(growth, state, memory_kib)
    return min(wait_s, max(ends_s, MIN_WAIT_S)) if ends_s > 0 else wait_s


def _worth_kib_s(state: AdaptiveState, need: Need, growth: Growth, memory_kib: int, cost_s: float) -> float:
    """Return how much waiting is worth a full scan (rule 6): KiB times seconds, 0.0 where a second one is needed."""
    learned = state.learned
    if is_second_due(state, memory_kib) and learned.backoff == 1:
        return 0.0
    price, min_s = PRICES[growth], SETTLED_WAIT_S if growth is Growth.SETTLED else 0.0
    price += (PRICES[Growth.SETTLED] - price) * need.pressure
    price *= 1 + PRESSING * need.pressure
    ratio = STARTS_MERGE_RATIO if state.arrivals.has_starts else max(learned.merge_ratio, MIN_MERGE_RATIO)
    due_kib_s = memory_kib * cost_s * learned.backoff / (price * ratio)
    return max(due_kib_s, min_s * (1 - need.pressure) * state.backlog.due_kib)


def is_second_due(state: AdaptiveState, memory_kib: int) -> bool:
    """Tell whether a pair's second full scan is needed. Nothing defers it: the savings wait for it."""
    return state.scans.pair_left > 0 and state.backlog.scanned_once_kib * NEGLIGIBLE > memory_kib


def begin_full_scan(snapshot: Snapshot, state: AdaptiveState) -> AdaptiveState:
    """Begin a full scan (rule 7): the new backlog will have been scanned once at its end.

    With the cursor where our last full scan left it, or where it begins as long as KSM knows of no page, the next one
    is whole; otherwise the one after it is.
    """
    is_second = is_second_due(state, total_kib(snapshot, state))
    full_scans, backlog = snapshot.ksm.full_scans or 0, state.backlog
    is_whole = state.scans.cursor_full_scans == full_scans or known_kib(snapshot) == 0
    current = FullScan(
        ends_at_full_scans=full_scans + (1 if is_whole else 2),
        scanning_kib=backlog.new_kib + backlog.settling_kib,
        began=read_meter(snapshot),
    )
    return replace(
        state,
        backlog=Backlog(scanned_once_kib=backlog.scanned_once_kib),
        arrivals=replace(state.arrivals, has_starts=state.arrivals.has_starts and is_second),
        scans=replace(state.scans, current=current, pair_left=state.scans.pair_left if is_second else 2),
    )


def feed(
    snapshot: Snapshot, state: AdaptiveState, current: FullScan, params: AdaptiveParams, pressure: float
) -> tuple[Settings, float, AdaptiveState]:
    """Grant the next batch (rule 8): return the settings, when to have the next pass, and the state.

    A batch that still runs is left to end, since ksmd would not hear of a changed sleep; and passes that guests cause
    in between grant none beyond the budget.
    """
    now = read_meter(snapshot)
    share = params.cpu_percent / 100
    share += (1 - share) * pressure
    cost_s = measured_page_cost_s(current.fed or current.began, now) or state.learned.page_cost_s
    state = replace(state, learned=replace(state.learned, page_cost_s=cost_s))
    slept_ms = snapshot.ksm.settings.sleep_millisecs
    hold, grant = FED_SLEEPS_MS if slept_ms == FED_SLEEPS_MS[0] else reversed(FED_SLEEPS_MS)
    if (wait_s := seconds_to_batch(current, now, share, cost_s)) > 0:
        return Settings(pages_to_scan=current.batch_pages, sleep_millisecs=hold), max(wait_s, MIN_WAIT_S), state
    cautious_s = DEFAULT_PAGE_COST_S if current.fed is None else max(cost_s, CAUTIOUS_PAGE_COST_S)
    pages = min(max(int(share * BATCH_S / cautious_s), MIN_BATCH_PAGES), KERNEL_MAXIMUM)
    fed = replace(current, fed=now, batch_pages=pages, over_s=now.taken_s + BATCH_S)
    scanned = _difference(current.began.pages_scanned, now.pages_scanned)
    if scanned is None:
        pass_s = BATCH_S + SLACK_S
    else:  # the full scan may end before the batch does
        left = max(total_kib(snapshot, state) // snapshot.ksm.page_kib - scanned, 0)
        pass_s = seconds_to_pass(min(pages, left) * cost_s)
    state = replace(state, scans=replace(state.scans, current=fed))
    return Settings(pages_to_scan=pages, sleep_millisecs=grant), pass_s, state


def seconds_to_batch(current: FullScan, now: Meter, share: float, cost_s: float) -> float:
    """Return how long the next batch has to wait for the one before and for the budget; 0.0 if it may be granted."""
    if current.fed is None:
        return 0.0
    passed_s, left_s = now.taken_s - current.fed.taken_s, current.over_s - now.taken_s
    is_early = 0 < left_s <= BATCH_S  # else it is over, or the clock began anew
    used_s, scanned = _used_s(current.fed, now), _difference(current.fed.pages_scanned, now.pages_scanned)
    if scanned is None:
        return left_s + SLACK_S if is_early else 0.0
    if scanned >= current.batch_pages or now.full_scans != current.fed.full_scans:  # it ends where a full scan does
        return 0.0 if used_s is None else min(max(used_s / share - passed_s, 0.0), BATCH_S)
    if is_early:
        return seconds_to_pass((current.batch_pages - scanned) * cost_s)
    return MIN_WAIT_S if used_s is not None and used_s > passed_s / 2 > 0 else 0.0  # 0.0: it got lost


def seconds_to_pass(left_s: float) -> float:
    """Return when to have a pass for a batch that will be over in `left_s`: then, or earlier should it be faster."""
    return max(left_s + SLACK_S, MIN_WAIT_S) if left_s + SLACK_S < 2 * MIN_WAIT_S else MIN_WAIT_S


def measured_page_cost_s(began: Meter, now: Meter) -> float | None:
    """Return ksmd's CPU time for each page scanned since `began`; None while too little is known."""
    cpu_s, scanned = _used_s(began, now), _difference(began.pages_scanned, now.pages_scanned)
    if not cpu_s or scanned is None or scanned < MIN_BATCH_PAGES:
        return None
    return min(max(cpu_s / scanned, MIN_PAGE_COST_S), MAX_PAGE_COST_S)


def has_ended(snapshot: Snapshot, current: FullScan) -> bool:
    """Tell whether a full scan is over; a counter that fell back (a reboot) ends it, too."""
    full_scans = snapshot.ksm.full_scans or 0
    return full_scans >= current.ends_at_full_scans or full_scans + 2 < current.ends_at_full_scans


def seconds_until_stalled(snapshot: Snapshot, state: AdaptiveState, current: FullScan) -> float:
    """Return how much longer ksmd may take, below 0 if it makes no progress (rule 9): KSM off unseen, or starved."""
    pages = total_kib(snapshot, state) / snapshot.ksm.page_kib
    estimate_s = max(full_scan_cost_s(snapshot, state), pages * state.learned.page_cost_s)
    return max(STALLED_S, 10 * estimate_s) - (snapshot.taken_s - current.began.taken_s)


def seconds_until_empty(snapshot: Snapshot, current: FullScan) -> float | None:
    """Return in how long it is plain that no memory may merge (rule 9), 0 or below if it is; None if some may.

    It is once KSM knows of no page after a batch. A ksmd that works may still be on its way to its first page.
    """
    if current.fed is None:
        return None
    now = read_meter(snapshot)
    scanned = _difference(current.fed.pages_scanned, now.pages_scanned)
    if scanned or now.full_scans != current.fed.full_scans or known_kib(snapshot):
        return None
    return max(BATCH_S, 2 * (_used_s(current.fed, now) or 0.0)) - (now.taken_s - current.fed.taken_s)


def progress_numbers(snapshot: Snapshot, state: AdaptiveState, current: FullScan) -> dict[str, Number]:
    """Return how far a full scan is, and when it will have ended at its pace so far.

    Where it is whole only after the end of another's, it takes up to twice the memory.
    """
    now, ksm = read_meter(snapshot), snapshot.ksm
    scanned = _difference(current.began.pages_scanned, now.pages_scanned)
    full_scan_kib = total_kib(snapshot, state) * max(current.ends_at_full_scans - current.began.full_scans, 1)
    scanned_kib = None if scanned is None else min(ksm.kib(scanned), full_scan_kib)
    passed_s = now.taken_s - current.began.taken_s
    return {
        "full_scan_kib": full_scan_kib,
        "scanned_kib": scanned_kib,
        "full_scan_left_s": round(passed_s * (full_scan_kib / scanned_kib - 1), 3) if scanned_kib else None,
    }


def is_scanned_by_another(snapshot: Snapshot, state: AdaptiveState) -> bool:
    """Tell whether ksmd was found to scan at settings that are not ours: its cursor may be anywhere then (rule 7).

    So it is after an agent that gave the administrator's settings back when it stopped.
    """
    found = snapshot.ksm.settings
    return bool(found.pages_to_scan) and (state.scans.current is None or found.sleep_millisecs not in FED_SLEEPS_MS)


def end_full_scan(snapshot: Snapshot, state: AdaptiveState, ended: FullScan) -> AdaptiveState:
    """Count a full scan (rule 7): what was new has been scanned once, and what had been scanned once is done.

    Full scans come in pairs: the second follows at once. What appears after that has begun waits for another pair.

    A narrow full scan, in which smart_scan skipped most of the old pages, takes nothing off what had been scanned once
    if little of it has merged (rule 10): the twins that it may have were not scanned. It is cheap, and a wide one will
    come. Nor does a full scan take off what is largely in neither tree afterwards.
    """
    began, now = ended.began, read_meter(snapshot)
    scans, learned, once_kib = state.scans, state.learned, state.backlog.scanned_once_kib
    used_s = _used_s(began, now)
    cost_s = max(now.taken_s - began.taken_s, 0.0) if used_s is None else used_s
    merged_kib = snapshot.ksm.kib(max(now.pages_sharing - began.pages_sharing, 0))
    is_second = scans.pair_left <= 1
    narrow_merged_kib = min(scans.narrow_merged_kib + merged_kib, MAX_SUM) if scans.narrow else 0
    if scans.narrow == 0:
        goes_on = is_narrow(snapshot, state, ended) and merged_kib * 4 < once_kib
    else:
        has_found = narrow_merged_kib * FOUND > once_kib
        goes_on = scans.narrow < (MAX_NARROW_FULL_SCANS if has_found else TRIED_FULL_SCANS)
    split_kib = (_difference(began.thp_split_page, now.thp_split_page) or 0) * snapshot.ksm.huge_page_kib
    volatile_kib = snapshot.ksm.kib(snapshot.ksm.pages_volatile or 0) - ended.scanning_kib
    is_stuck = scans.retries > 0 and merged_kib * UNSETTLED < once_kib
    unsettled_kib = min(once_kib if is_stuck else split_kib, volatile_kib, once_kib)
    is_unsettled = not goes_on and scans.retries < MAX_RETRIES and unsettled_kib * UNSETTLED > once_kib
    left_kib = once_kib if goes_on else unsettled_kib if is_unsettled else 0
    ratio, known = learned.merge_ratio, learned.full_scan_cost_s_per_kib
    if is_second and not goes_on and once_kib:
        ratio += (min(max(merged_kib, narrow_merged_kib) / once_kib, 1.0) - ratio) * NEWEST_MERGE_RATIO
    per_kib = cost_s / max(total_kib(snapshot, state), 1)
    return replace(
        state,
        backlog=replace(state.backlog, scanned_once_kib=ended.scanning_kib + left_kib),
        scans=Scans(
            cursor_full_scans=None if is_scanned_by_another(snapshot, state) else snapshot.ksm.full_scans,
            pair_left=1 if left_kib else max(scans.pair_left - 1, 0),
            narrow=scans.narrow + is_second if goes_on else 0,
            narrow_merged_kib=narrow_merged_kib,
            retries=scans.retries + is_second if is_unsettled else 0,
        ),
        learned=replace(
            learned,
            merge_ratio=ratio,
            merged_kib=min(learned.merged_kib + merged_kib, MAX_SUM),
            full_scan_cost_s_per_kib=per_kib if known is None else max(per_kib, known + (per_kib - known) * NEWEST),
        ),
    )


def is_narrow(snapshot: Snapshot, state: AdaptiveState, ended: FullScan) -> bool:
    """Tell whether smart_scan skipped more than half of the old pages that have not merged."""
    skipped = _difference(ended.began.pages_skipped, snapshot.ksm.pages_skipped)
    lone_kib = snapshot.ksm.kib((snapshot.ksm.pages_unshared or 0) + (snapshot.ksm.pages_volatile or 0))
    old_kib = lone_kib - ended.scanning_kib - state.backlog.scanned_once_kib
    return skipped is not None and snapshot.ksm.kib(skipped) * 2 > old_kib > 0


def _used_s(before: Meter, after: Meter) -> float | None:
    return None if before.cpu_s is None or after.cpu_s is None else max(after.cpu_s - before.cpu_s, 0.0)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)
