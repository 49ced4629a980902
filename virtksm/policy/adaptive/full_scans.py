"""Rules 6 to 10 of the adaptive law: when a full scan begins, how ksmd is fed, what the end of a full scan means.

ksmd is fed in batches: pages_to_scan is what the CPU budget allows for two seconds, and sleep_millisecs is a minute,
which a changed value cuts short. So every change of it grants one batch, and without passes (the agent or libvirt gone)
ksmd does one batch a minute. A batch never goes beyond the end of a full scan. Pure.
"""

from __future__ import annotations

from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Number
from virtksm.model.snapshot import KERNEL_MAXIMUM, Settings, Snapshot
from virtksm.policy.adaptive.changes import known_kib, total_kib
from virtksm.policy.adaptive.state import DEFAULT_PAGE_COST_S, MAX_SUM, AdaptiveState, Backlog, FullScan, Meter, Scans
from virtksm.policy.adaptive.worth import (
    MIN_WAIT_S,
    NEGLIGIBLE,
    full_scan_cost_s,
    is_due,
    is_second_due,
    learn,
)
from virtksm.values import replace

BATCH_S = 2.0
"""What a batch may take. ksmd holds a mutex meanwhile, so that `echo 0 > run` waits for its end."""
CAUTIOUS_PAGE_COST_S = 3.5e-6
"""Batches are no larger than this cost allows: expensive pages may follow cheap ones. A page costs from 0.3 to 7
microseconds (measured), and the first batch of a full scan assumes the most."""
MAX_HOST_PERCENT = 25
"""Of each CPU, by default, so that guests keep three quarters of a host with one CPU or two: there a whole core for
ksmd stalls them (reported for hosts of one and two CPUs). Where the CPUs are unknown, there are taken to be four."""
SLACK_S = 0.02
"""How much later than a batch's estimated end the next one is granted: before it, a changed sleep would be lost."""
FED_SLEEPS_MS = (60_000, 60_001)
MIN_BATCH_PAGES = 1000

MIN_PAGE_COST_S, MAX_PAGE_COST_S = 2e-7, 1e-3
"""Bounds for what is measured: below it a counter was not whole yet, above it ksmd did other things."""
UNVISITED = 0.1
"""A check scan is content with so much less."""
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
        unmapped_kib=ksm.unmapped_kib,
        cpu_s=ksm.ksmd_cpu_seconds,
        pages_scanned=ksm.pages_scanned,
        pages_skipped=ksm.pages_skipped,
        thp_split_page=ksm.thp_split_page,
    )


def begin_full_scan(snapshot: Snapshot, state: AdaptiveState) -> AdaptiveState:
    """Begin a full scan (rule 7): the new backlog will have been scanned once at its end.

    With the cursor where our last full scan left it, or where it begins as long as KSM knows of no page, the next one
    is whole; otherwise the one after it is.
    """
    memory_kib = total_kib(snapshot, state)
    is_second = is_second_due(state, memory_kib)
    full_scans, backlog, scans = snapshot.ksm.full_scans or 0, state.backlog, state.scans
    changed_kib = 0 if is_second else int(backlog.changed_kib)
    if not is_second:
        scans = replace(scans, is_check=not is_due(state, memory_kib), visited=0.0, merged_kib=0)
        if scans.is_check:  # what it is for has to count, or there would be no second one
            changed_kib = max(changed_kib, memory_kib // NEGLIGIBLE + 1)
    is_whole = state.scans.cursor_full_scans == full_scans or known_kib(snapshot) == 0
    current = FullScan(
        ends_at_full_scans=full_scans + (1 if is_whole else 2),
        scanning_kib=min(backlog.new_kib + backlog.settling_kib + changed_kib, MAX_SUM),
        began=read_meter(snapshot),
    )
    return replace(
        state,
        backlog=Backlog(
            scanned_once_kib=backlog.scanned_once_kib,
            changed=backlog.changed if is_second else {},
            changed_kib_s=backlog.changed_kib_s if is_second else 0.0,
        ),
        arrivals=replace(state.arrivals, has_starts=state.arrivals.has_starts and is_second),
        scans=replace(scans, current=current, pair_left=scans.pair_left if is_second else 2),
    )


def cpu_share(snapshot: Snapshot, params: AdaptiveParams, pressure: float) -> float:
    """Return the share of a core that ksmd may take now (rule 2): more under pressure, never more than the ceiling."""
    most_percent = params.max_cpu_percent or min(MAX_HOST_PERCENT * (snapshot.cpus or 4), 100)
    percent = min(params.cpu_percent, most_percent)
    return (percent + (most_percent - percent) * pressure) / 100


def feed(
    snapshot: Snapshot, state: AdaptiveState, current: FullScan, params: AdaptiveParams, pressure: float
) -> tuple[Settings, float, AdaptiveState]:
    """Grant the next batch (rule 8): return the settings, when to have the next pass, and the state.

    A batch that still runs is left to end, since ksmd would not hear of a changed sleep; and passes that guests cause
    in between grant none beyond the budget.
    """
    now = read_meter(snapshot)
    share = cpu_share(snapshot, params, pressure)
    cost_s = measured_page_cost_s(current.fed or current.began, now) or state.learned.page_cost_s
    state = replace(state, learned=replace(state.learned, page_cost_s=cost_s))
    slept_ms = snapshot.ksm.settings.sleep_millisecs
    hold, grant = FED_SLEEPS_MS if slept_ms == FED_SLEEPS_MS[0] else reversed(FED_SLEEPS_MS)
    wait_s = max(seconds_to_batch(current, now, share, cost_s), seconds_to_rest(state.scans.fed, now, share))
    if wait_s > 0:
        pages = current.batch_pages or MIN_BATCH_PAGES
        return Settings(pages_to_scan=pages, sleep_millisecs=hold), max(wait_s, MIN_WAIT_S), state
    cautious_s = DEFAULT_PAGE_COST_S if current.fed is None else max(cost_s, CAUTIOUS_PAGE_COST_S)
    pages = min(max(int(share * BATCH_S / cautious_s), MIN_BATCH_PAGES), KERNEL_MAXIMUM)
    fed = replace(current, fed=now, batch_pages=pages, over_s=now.taken_s + BATCH_S)
    scanned = _difference(current.began.pages_scanned, now.pages_scanned)
    if scanned is None:
        pass_s = BATCH_S + SLACK_S
    else:  # the full scan may end before the batch does
        left = max(total_kib(snapshot, state) // snapshot.ksm.page_kib - scanned, 0)
        pass_s = seconds_to_pass(min(pages, left) * cost_s)
    state = replace(state, scans=replace(state.scans, current=fed, fed=None))
    return Settings(pages_to_scan=pages, sleep_millisecs=grant), pass_s, state


def seconds_to_rest(fed: Meter | None, now: Meter, share: float) -> float:
    """Return how long the budget has yet to wait for the last batch of the full scan before, granted at `fed`."""
    if fed is None or now.taken_s < fed.taken_s:
        return 0.0
    used_s = _used_s(fed, now)
    rest_s = BATCH_S if used_s is None else used_s / share
    return min(max(rest_s - (now.taken_s - fed.taken_s), 0.0), BATCH_S)


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
    unmapped_kib = now.unmapped_kib - began.unmapped_kib
    net_kib = snapshot.ksm.kib(now.pages_sharing - began.pages_sharing) + unmapped_kib
    merged_kib = max(net_kib, 0)
    is_second = scans.pair_left <= 1
    pair_kib = scans.merged_kib + (net_kib if scans.is_check else merged_kib)
    pair_kib = min(max(pair_kib, 0), MAX_SUM) if scans.is_check or scans.narrow else 0
    visited = scans.visited + 1 - skipped_share(snapshot, ended)
    if scans.is_check:
        goes_on = visited < (2 if is_second else 1) - UNVISITED and scans.narrow < MAX_NARROW_FULL_SCANS
    elif scans.narrow == 0:
        goes_on = is_narrow(snapshot, state, ended) and merged_kib * 4 < once_kib
    else:
        has_found = pair_kib * FOUND > once_kib
        goes_on = scans.narrow < (MAX_NARROW_FULL_SCANS if has_found else TRIED_FULL_SCANS)
    split_kib = (_difference(began.thp_split_page, now.thp_split_page) or 0) * snapshot.ksm.huge_page_kib
    volatile_kib = snapshot.ksm.kib(snapshot.ksm.pages_volatile or 0) - ended.scanning_kib - max(unmapped_kib, 0)
    is_stuck = scans.retries > 0 and merged_kib * UNSETTLED < once_kib
    unsettled_kib = min(once_kib if is_stuck else split_kib, volatile_kib, once_kib)
    is_unsettled = not goes_on and scans.retries < MAX_RETRIES and unsettled_kib * UNSETTLED > once_kib
    left_kib = once_kib if goes_on or (scans.is_check and not is_second) else unsettled_kib if is_unsettled else 0
    known = learned.full_scan_cost_s_per_kib
    if is_second and not goes_on and once_kib:
        found_kib = max(merged_kib, pair_kib)
        learned = learn(learned, now.taken_s, once_kib, found_kib, is_check=scans.is_check)
    learned = replace(learned, ended_s=now.taken_s)
    per_kib = cost_s / max(total_kib(snapshot, state), 1)
    return replace(
        state,
        backlog=replace(state.backlog, scanned_once_kib=min(ended.scanning_kib + left_kib, MAX_SUM)),
        scans=Scans(
            cursor_full_scans=None if is_scanned_by_another(snapshot, state) else snapshot.ksm.full_scans,
            pair_left=scans.pair_left if goes_on else 1 if left_kib else max(scans.pair_left - 1, 0),
            narrow=scans.narrow + (is_second or scans.is_check) if goes_on else 0,
            merged_kib=pair_kib,
            retries=scans.retries + is_second if is_unsettled else 0,
            visited=visited,
            is_check=scans.is_check,
            fed=ended.fed or scans.fed,
        ),
        learned=replace(
            learned,
            full_scan_cost_s_per_kib=per_kib
            if known is None
            else max(per_kib, known + (per_kib - known) * NEWEST * (not goes_on)),
        ),
    )


def skipped_share(snapshot: Snapshot, ended: FullScan) -> float:
    """Return the share of the memory that has not merged which smart_scan has skipped in a full scan."""
    ksm = snapshot.ksm
    skipped = _difference(ended.began.pages_skipped, ksm.pages_skipped) or 0
    lone = (ksm.pages_unshared or 0) + (ksm.pages_volatile or 0)
    return min(skipped / lone, 1.0) if lone else 0.0


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
