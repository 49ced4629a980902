"""Rules 6 to 10 of the adaptive law: when a round begins, how it is fed to ksmd, what its end means.

A round is one full scan. ksmd is fed by the spoon: pages_to_scan is what the CPU budget allows for two seconds, and
sleep_millisecs is a minute, which a changed value cuts short. So every change of it grants one batch, and without
passes (the agent or libvirt gone) ksmd does one batch a minute. A batch never goes beyond a round's end. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import KERNEL_MAXIMUM, Settings, Snapshot
from virtksm.policy.adaptive.debt import NEGLIGIBLE, known_kib, owed_kib, total_kib
from virtksm.policy.adaptive.engage import Need
from virtksm.policy.adaptive.growth import Growth, judge_growth, seconds_to_end
from virtksm.policy.adaptive.state import DEFAULT_PAGE_COST_S, MAX_SUM, AdaptiveState, Meter, Round

BATCH_S = 2.0
"""What a batch may take. ksmd holds a mutex meanwhile, so that `echo 0 > run` waits for its end."""
CAUTIOUS_PAGE_COST_S = 3.5e-6
"""Batches are no larger than this cost allows: cheap pages may be followed by dear ones. A page costs from 0.3 to 7
microseconds (measured), and a round's first batch takes it to be the dearest."""
LOOK_S = 0.25
"""How often a round is looked at: as often as the agent makes passes by default (coalesce_ms)."""
SLACK_S = 0.02
"""How much later than a batch's reckoned end the next one is granted: before it, a changed sleep would be lost."""
FED_SLEEPS_MS = (60_000, 60_001)
MIN_BATCH_PAGES = 1000

PRICES: Mapping[Growth, float] = {
    Growth.BURST: 0.1,
    Growth.SERIES: 0.1,
    Growth.STEADY: 1.0,
    Growth.SETTLED: 10.0,
}
"""How many ksmd-seconds it is worth to save the whole memory for a second: in a burst, one round later covers it all;
once memory has settled, waiting is nothing but loss; steady growth lies halfway (the geometric mean)."""
STARTS_YIELD = 0.5
"""Which share of the memory of guests that start is taken to merge; of other debt, as much as did lately."""
MIN_YIELD = 0.05
NEWEST_YIELD = 0.5
"""Weight of the last debt that was paid in what is taken to merge."""
MIN_WAIT_S = 4.0
"""Settled debt has waited for so long on average before its round: guests seldom start alone."""
PRESSING = 9.0
"""With no memory available, waiting is worth this many times more, in addition."""
MIN_PAGE_COST_S, MAX_PAGE_COST_S = 2e-7, 1e-3
"""Bounds for what is measured: below it a counter was not whole yet, above it ksmd did other things."""
MAX_NARROW_ROUNDS = 13
"""After so many rounds a new page and an old one have met, if they ever do (smart_scan: docs/policies.md)."""
TRIED_ROUNDS = 3
FOUND = 32
"""After so many narrow rounds there must be hidden twins, by the share of the debt that all but the first merged."""
UNSETTLED = 8
MAX_RETRIES = 2
"""ksmd splits huge pages to merge parts of them, and leaves others in neither tree. If that is more than an eighth of
what had its second visit, it is visited again, so many times at most: also where the first of these merged next to
nothing and split nothing more (seen once in some forty runs of the demonstration, which lacked a third of its savings
then)."""
NEWEST = 0.3
"""Weight of a round that was cheaper than reckoned in what the next is reckoned to take. A dearer one counts in full: a
first visit costs a tenth of a second one, and smart_scan skips a page only after four."""
STALLED_S = 120.0
"""A round that has not ended after this long and ten times what was reckoned is given up."""


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


def round_cost_s(snapshot: Snapshot, state: AdaptiveState) -> float:
    """Return the ksmd-seconds that a round is reckoned to take: as the last ones, for the memory there is now."""
    first = state.page_cost_s / snapshot.ksm.page_kib
    return total_kib(snapshot, state) * (first if state.round_cost_s_per_kib is None else state.round_cost_s_per_kib)


def seconds_to_wait(snapshot: Snapshot, state: AdaptiveState, need: Need) -> float | None:
    """Return how long the debt has yet to wait for its round (rule 6); None if none pays for one."""
    debt_kib = owed_kib(state)
    memory_kib = total_kib(snapshot, state)
    if debt_kib * NEGLIGIBLE <= memory_kib:
        return None
    wait_s = max(worth_kib_s(snapshot, state, need) - state.waited_kib_s, 0.0) / debt_kib
    ends_s = seconds_to_end(judge_growth(state), state, memory_kib)
    return min(wait_s, max(ends_s, LOOK_S)) if ends_s > 0 else wait_s


def worth_kib_s(snapshot: Snapshot, state: AdaptiveState, need: Need) -> float:
    """Return how much waiting is worth a round (rule 6), 0.0 where a second one is owed: KiB times seconds."""
    memory_kib = total_kib(snapshot, state)
    if is_second_due(state, memory_kib) and state.backoff == 1:
        return 0.0
    growth = judge_growth(state)
    price, least_s = PRICES[growth], MIN_WAIT_S if growth is Growth.SETTLED else 0.0
    price += (PRICES[Growth.SETTLED] - price) * need.pressure
    price *= 1 + PRESSING * need.pressure
    share = STARTS_YIELD if state.has_starts else max(state.yielded, MIN_YIELD)
    due_kib_s = memory_kib * round_cost_s(snapshot, state) * state.backoff / (price * share)
    return max(due_kib_s, least_s * (1 - need.pressure) * owed_kib(state))


def is_second_due(state: AdaptiveState, memory_kib: int) -> bool:
    """Tell whether a pair's second round is owed. It is not put off, whatever else is to come: savings wait for it."""
    return state.pair_left > 0 and state.half_kib * NEGLIGIBLE > memory_kib


def begin_round(snapshot: Snapshot, state: AdaptiveState) -> AdaptiveState:
    """Begin a round (rule 7): the fresh debt will have been visited once at its end.

    With the cursor where our last round left it, or where it begins as long as KSM knows of no page, the next full scan
    is whole; otherwise the one after it is.
    """
    is_second = is_second_due(state, total_kib(snapshot, state))
    full_scans = snapshot.ksm.full_scans or 0
    whole = state.full_scans == full_scans or known_kib(snapshot) == 0
    return replace(
        state,
        round=Round(
            ends_at_full_scans=full_scans + (1 if whole else 2),
            scanning_kib=state.fresh_kib + sum(kib for _, kib in state.young),
            began=read_meter(snapshot),
        ),
        pair_left=state.pair_left if is_second else 2,
        has_starts=state.has_starts and is_second,
        young=(),
        fresh_kib=0,
        gone_kib=0,
        waited_kib_s=0.0,
    )


def feed(
    snapshot: Snapshot, state: AdaptiveState, current: Round, params: AdaptiveParams, pressure: float
) -> tuple[Settings, float, AdaptiveState]:
    """Grant the next batch (rule 8): return the settings, when to look again, and the state.

    A batch that still runs is left to end, since ksmd would not hear of a changed sleep; and passes that guests ask for
    in between grant none beyond the budget.
    """
    now = read_meter(snapshot)
    share = params.cpu_percent / 100
    share += (1 - share) * pressure
    cost_s = measured_page_cost_s(current.fed or current.began, now) or state.page_cost_s
    state = replace(state, page_cost_s=cost_s)
    slept_ms = snapshot.ksm.settings.sleep_millisecs
    hold, grant = FED_SLEEPS_MS if slept_ms == FED_SLEEPS_MS[0] else reversed(FED_SLEEPS_MS)
    if (wait_s := seconds_to_batch(current, now, share, cost_s)) > 0:
        return Settings(pages_to_scan=current.batch_pages, sleep_millisecs=hold), max(wait_s, LOOK_S), state
    cautious_s = DEFAULT_PAGE_COST_S if current.fed is None else max(cost_s, CAUTIOUS_PAGE_COST_S)
    pages = min(max(int(share * BATCH_S / cautious_s), MIN_BATCH_PAGES), KERNEL_MAXIMUM)
    fed = replace(current, fed=now, batch_pages=pages, over_s=now.taken_s + BATCH_S)
    scanned = _difference(current.began.pages_scanned, now.pages_scanned)
    if scanned is None:
        look_s = BATCH_S + SLACK_S
    else:  # the round may end before the batch does
        look_s = seconds_to_look(
            min(pages, max(total_kib(snapshot, state) // snapshot.ksm.page_kib - scanned, 0)) * cost_s
        )
    return Settings(pages_to_scan=pages, sleep_millisecs=grant), look_s, replace(state, round=fed)


def seconds_to_batch(current: Round, now: Meter, share: float, cost_s: float) -> float:
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
        return seconds_to_look((current.batch_pages - scanned) * cost_s)
    return LOOK_S if used_s is not None and used_s > passed_s / 2 > 0 else 0.0  # 0.0: it got lost


def seconds_to_look(left_s: float) -> float:
    """Return when to look at a batch that will be over in `left_s`: then, or earlier should it be faster."""
    return max(left_s + SLACK_S, LOOK_S) if left_s + SLACK_S < 2 * LOOK_S else LOOK_S


def measured_page_cost_s(began: Meter, now: Meter) -> float | None:
    """Return ksmd's CPU time for each page visited since `began`; None while too little is known."""
    cpu_s, scanned = _used_s(began, now), _difference(began.pages_scanned, now.pages_scanned)
    if not cpu_s or scanned is None or scanned < MIN_BATCH_PAGES:
        return None
    return min(max(cpu_s / scanned, MIN_PAGE_COST_S), MAX_PAGE_COST_S)


def has_ended(snapshot: Snapshot, current: Round) -> bool:
    """Tell whether the round's full scan is over; a counter that fell back (a reboot) ends it, too."""
    full_scans = snapshot.ksm.full_scans or 0
    return full_scans >= current.ends_at_full_scans or full_scans + 2 < current.ends_at_full_scans


def seconds_until_stalled(snapshot: Snapshot, state: AdaptiveState, current: Round) -> float:
    """Return how much longer ksmd may take, below 0 if it does not get on (rule 9): switched off unseen, or starved."""
    reckoned_s = max(
        round_cost_s(snapshot, state), total_kib(snapshot, state) / snapshot.ksm.page_kib * state.page_cost_s
    )
    return max(STALLED_S, 10 * reckoned_s) - (snapshot.taken_s - current.began.taken_s)


def seconds_until_empty(snapshot: Snapshot, current: Round) -> float | None:
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


def is_scanned_by_others(snapshot: Snapshot, state: AdaptiveState) -> bool:
    """Tell whether ksmd was found to scan at settings that are not ours: its cursor may be anywhere then (rule 7).

    So it is after an agent that gave the administrator's settings back when it stopped.
    """
    found = snapshot.ksm.settings
    return bool(found.pages_to_scan) and (state.round is None or found.sleep_millisecs not in FED_SLEEPS_MS)


def end_round(snapshot: Snapshot, state: AdaptiveState, ended: Round) -> AdaptiveState:
    """Settle a round's account (rule 7): what was fresh is owed one visit more, what was half is paid.

    Rounds come in pairs: the second follows at once. What was fresh when that began waits then, or none was the last.

    A narrow round, in which smart_scan skipped most of the old pages, pays for no half debt of which little has merged
    (rule 10): the twins that it may have were not there. It is cheap, and the wide one will come. Nor is half debt paid
    of which much is in neither tree now.
    """
    began, now = ended.began, read_meter(snapshot)
    used_s = _used_s(began, now)
    cost_s = max(now.taken_s - began.taken_s, 0.0) if used_s is None else used_s
    gained_kib = snapshot.ksm.kib(max(now.pages_sharing - began.pages_sharing, 0))
    is_second = state.pair_left <= 1
    tail_gained_kib = min(state.tail_gained_kib + gained_kib, MAX_SUM) if state.narrow_rounds else 0
    if state.narrow_rounds == 0:
        is_tail = is_narrow(snapshot, state, ended) and gained_kib * 4 < state.half_kib
    else:
        has_found = tail_gained_kib * FOUND > state.half_kib
        is_tail = state.narrow_rounds < (MAX_NARROW_ROUNDS if has_found else TRIED_ROUNDS)
    split_kib = (_difference(began.thp_split_page, now.thp_split_page) or 0) * snapshot.ksm.huge_page_kib
    volatile_kib = snapshot.ksm.kib(snapshot.ksm.pages_volatile or 0) - ended.scanning_kib
    is_stuck = state.retries > 0 and gained_kib * UNSETTLED < state.half_kib
    unsettled_kib = min(state.half_kib if is_stuck else split_kib, volatile_kib, state.half_kib)
    is_unsettled = not is_tail and state.retries < MAX_RETRIES and unsettled_kib * UNSETTLED > state.half_kib
    left_kib = state.half_kib if is_tail else unsettled_kib if is_unsettled else 0
    per_kib, known = cost_s / max(total_kib(snapshot, state), 1), state.round_cost_s_per_kib
    return replace(
        state,
        round=None,
        full_scans=None if is_scanned_by_others(snapshot, state) else snapshot.ksm.full_scans,
        half_kib=ended.scanning_kib + left_kib,
        pair_left=1 if left_kib else max(state.pair_left - 1, 0),
        retries=state.retries + is_second if is_unsettled else 0,
        tail_gained_kib=tail_gained_kib,
        narrow_rounds=state.narrow_rounds + is_second if is_tail else 0,
        yielded=learn_yield(state, max(gained_kib, tail_gained_kib)) if is_second and not is_tail else state.yielded,
        round_cost_s_per_kib=per_kib if known is None else max(per_kib, known + (per_kib - known) * NEWEST),
        gained_kib=min(state.gained_kib + gained_kib, MAX_SUM),
    )


def learn_yield(state: AdaptiveState, merged_kib: int) -> float:
    """Return which share of debt is taken to merge, now that what was half covered is paid and so much has merged."""
    if state.half_kib == 0:
        return state.yielded
    return state.yielded + (min(merged_kib / state.half_kib, 1.0) - state.yielded) * NEWEST_YIELD


def is_narrow(snapshot: Snapshot, state: AdaptiveState, ended: Round) -> bool:
    """Tell whether smart_scan skipped more than half of the old pages that have not merged."""
    skipped = _difference(ended.began.pages_skipped, snapshot.ksm.pages_skipped)
    lone_kib = snapshot.ksm.kib((snapshot.ksm.pages_unshared or 0) + (snapshot.ksm.pages_volatile or 0))
    old_kib = lone_kib - ended.scanning_kib - state.half_kib
    return skipped is not None and snapshot.ksm.kib(skipped) * 2 > old_kib > 0


def _used_s(before: Meter, after: Meter) -> float | None:
    return None if before.cpu_s is None or after.cpu_s is None else max(after.cpu_s - before.cpu_s, 0.0)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)
