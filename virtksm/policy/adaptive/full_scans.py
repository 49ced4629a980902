"""Rules 2, 4 and 5 of the adaptive law: how a full scan begins, how ksmd is fed, what the end of a full scan means.

ksmd is fed in batches: pages_to_scan is what the CPU budget allows for three seconds, and sleep_millisecs is a minute,
which a changed value cuts short. So every change of it grants one batch, and without passes (the agent or libvirt gone)
ksmd does one batch a minute. A batch never goes beyond the end of a full scan. Pure.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Number
from virtksm.model.snapshot import KERNEL_MAXIMUM, Settings, Snapshot, Source
from virtksm.policy.adaptive.changes import OWN_PAGES, add, known_kib, knows_of_none, total_kib
from virtksm.policy.adaptive.state import DEFAULT_COST_S_PER_KIB, AdaptiveState, Backlog, FullScan, Meter, Scans
from virtksm.policy.adaptive.worth import (
    MIN_WAIT_S,
    expect,
    expect_of_backlog,
    full_scan_cost_s,
    is_backlog,
    is_second_due,
    learn,
    learn_lost,
)
from virtksm.values import replace

BATCH_S = 3.0
"""A batch's time, at most twice that if its pages cost more than the last: `echo 0 > run` waits for it (chosen)."""
MAX_HOST_PERCENT = 25
"""max_cpu_percent by default, of each CPU; of four if unknown (reported: a core for ksmd stalls guests)."""
SLACK_S = 0.02
"""From a batch's estimated end to the next (chosen)."""
FED_SLEEPS_MS = (60_000, 60_001)
"""sleep_millisecs of batches, in turn: a change wakes ksmd (measured)."""
MIN_BATCH_KIB = 4000
"""The smallest batch, some 7 ms (chosen)."""
MIN_STILL_S = 0.1
"""A batch is over when ksmd stands still for ten ticks (kernel: USER_HZ)."""

MAX_MORE_FULL_SCANS = 13
"""Full scans until equal pages have met, if ever (kernel: skip_age)."""
MIN_COST_SHARE = 0.25
"""A full scan's least cost, of one that skips nothing (chosen)."""
RARELY_VISITED = 1 / 9
"""How often smart_scan visits an old page (kernel: skip_age)."""
HIDDEN_AGAIN = 1 / 50
"""What is left after one more that has merged nothing is hidden again so seldom (chosen: seen once in 40 starts)."""
NEWEST = 0.3
"""Weight of a cheaper full scan in the next estimate; others count in full (chosen)."""
STALLED_S, STALLED_ESTIMATES = 120.0, 10.0
"""A full scan is given up after so long, and so many times its estimate (chosen)."""
WORKING_SHARE = 0.01
"""A ksmd that has taken this share of a core works (chosen)."""


def read_meter(snapshot: Snapshot) -> Meter:
    """Take the counters that differences are made of."""
    ksm = snapshot.ksm
    return Meter(
        taken_s=snapshot.taken_s,
        full_scans=ksm.full_scans or 0,
        pages_shared=ksm.pages_shared or 0,
        pages_sharing=ksm.pages_sharing or 0,
        unmapped_kib=ksm.unmapped_kib,
        cpu_s=ksm.ksmd_cpu_seconds,
        pages_scanned=ksm.pages_scanned,
        pages_skipped=ksm.pages_skipped,
        thp_split_page=ksm.thp_split_page,
        cow_ksm=ksm.cow_ksm,
    )


def page_cost_s(snapshot: Snapshot, state: AdaptiveState) -> float:
    """Return what scanning a page costs, which has 4, 16 or 64 KiB."""
    return state.learned.cost_s_per_kib * snapshot.ksm.page_kib


def begin_full_scan(snapshot: Snapshot, state: AdaptiveState) -> AdaptiveState:
    """Begin a full scan (rule 2): the new backlog will have been scanned once at its end.

    With the cursor where our last full scan left it, or where it begins as long as KSM knows of no page, the next one
    is whole; otherwise the one after it is.
    """
    memory_kib = total_kib(snapshot, state)
    is_second = is_second_due(state, memory_kib)
    full_scans, backlog, scans = snapshot.ksm.full_scans or 0, state.backlog, state.scans
    scanning: dict[str, float] = dict(backlog.new)
    for one in backlog.settling:
        scanning[one.key] = scanning.get(one.key, 0) + one.kib
    if not is_second:
        scans = replace(scans, is_check=not is_backlog(backlog.due_kib, memory_kib), more=0, visited=0.0, merged_kib=0)
        scanning |= {
            key: kib
            for key, kib in backlog.changed.items()
            if scans.is_check or is_backlog(kib, memory_kib)  # of trifles beside new memory nothing is learned
        }
    is_whole = state.scans.cursor_full_scans == full_scans or knows_of_none(snapshot)
    current = FullScan(
        ends_at_full_scans=full_scans + (1 if is_whole else 2),
        scanning=scanning,
        began=read_meter(snapshot),
        began_kib=memory_kib,
    )
    return replace(
        state,
        backlog=Backlog(
            scanned_once=backlog.scanned_once,
            changed=backlog.changed if is_second else {},
            changed_kib_s=backlog.changed_kib_s if is_second else 0.0,
        ),
        scans=replace(scans, current=current, pair_left=scans.pair_left if is_second else 2),
    )


def cpu_share(snapshot: Snapshot, params: AdaptiveParams, pressure: float) -> float:
    """Return the share of a core that ksmd may take now (rule 1): more under pressure, never more than the ceiling."""
    max_percent = params.max_cpu_percent or min(MAX_HOST_PERCENT * (snapshot.cpus or 4), 100)
    percent = min(params.cpu_percent, max_percent)
    return (percent + (max_percent - percent) * pressure) / 100


def feed(
    snapshot: Snapshot, state: AdaptiveState, current: FullScan, share: float
) -> tuple[Settings, float, AdaptiveState]:
    """Grant the next batch (rule 5): return the settings, when to have the next pass, and the state.

    A batch that still runs is left to end, since ksmd would not hear of a changed sleep; and passes that guests cause
    in between grant none beyond the budget.
    """
    now, cost_s, page_kib = read_meter(snapshot), page_cost_s(snapshot, state), snapshot.ksm.page_kib
    min_pages = max(MIN_BATCH_KIB // page_kib, 1)
    progress = read_progress(current, now, cost_s)
    if current.seen is None or now.taken_s - current.seen.taken_s >= MIN_STILL_S:
        current = replace(current, seen=now)
    if progress.cpu_s and progress.counted_pages >= min_pages:
        cost_s = progress.cpu_s / progress.counted_pages
    state = replace(state, learned=replace(state.learned, cost_s_per_kib=cost_s / page_kib))
    slept_ms = snapshot.ksm.settings.sleep_millisecs
    hold, grant = FED_SLEEPS_MS if slept_ms == FED_SLEEPS_MS[0] else reversed(FED_SLEEPS_MS)
    wait_s = progress.pass_s
    if progress.is_over:
        wait_s = seconds_to_pay_back(state.scans.last_fed, now, share)
    if wait_s > 0:
        settings = Settings(pages_to_scan=current.batch_pages or min_pages, sleep_millisecs=hold)
        return settings, max(wait_s, MIN_WAIT_S), replace(state, scans=replace(state.scans, current=current))
    pages = int(share * BATCH_S / max(cost_s, DEFAULT_COST_S_PER_KIB * page_kib / 2))
    pages = min(max(pages, min_pages), KERNEL_MAXIMUM)
    scanned = scanned_pages(current, now, cost_s)
    granted_s = granted_until_s(current, now, share)
    fed = replace(current, fed=now, seen=now, batch_pages=pages, scanned_pages=scanned or 0, granted_s=granted_s)
    if scanned is None:
        pass_s = BATCH_S + SLACK_S
    else:  # the full scan may end before the batch does
        left = max(total_kib(snapshot, state) // page_kib - scanned, 0)
        pass_s = seconds_to_pass(min(pages, left) * cost_s)
    state = replace(state, scans=replace(state.scans, current=fed, fed=None))
    return Settings(pages_to_scan=pages, sleep_millisecs=grant), pass_s, state


def granted_until_s(current: FullScan, now: Meter, share: float) -> float:
    """Return the CPU time that ksmd was granted since a full scan began: without passes it takes a batch a minute."""
    passed_s, minute_s = max(now.taken_s - (current.fed or current.began).taken_s, 0.0), FED_SLEEPS_MS[0] / 1000
    if passed_s > 2 * BATCH_S:
        passed_s = passed_s // minute_s * BATCH_S + min(passed_s % minute_s, BATCH_S)
    return current.granted_s + share * passed_s


def seconds_to_pay_back(fed: Meter | None, now: Meter, share: float) -> float:
    """Return how long the last batch, granted at `fed`, holds up the next by the budget, in whichever full scan it was.

    What it has used is all of its share where that is unknown.
    """
    if fed is None or now.taken_s < fed.taken_s:
        return 0.0
    used_s, passed_s = _used_s(fed, now), now.taken_s - fed.taken_s
    return min(max((BATCH_S if used_s is None else used_s / share) - passed_s, 0.0), BATCH_S)


class Progress(NamedTuple):
    """What ksmd has done since it was granted a batch.

    `cpu_s` is None where it is not known. `counted_pages` are known for certain: the kernel counts them (6.6), or the
    batch has run to its end. `is_over`: ksmd sleeps; else `pass_s` is when to look again.
    """

    cpu_s: float | None
    counted_pages: int
    is_over: bool
    pass_s: float


def read_progress(current: FullScan, now: Meter, cost_s: float) -> Progress:
    """Return ksmd's progress in the batch by whatever the kernel tells: pages, or CPU time, or neither (remote).

    A batch ends where a full scan does. Else it is over once its pages are counted; where ksmd stands still before
    that, they are not counted, or the grant was lost.
    """
    fed, seen = current.fed, current.seen or current.fed
    if fed is None or seen is None:
        return Progress(cpu_s=0.0, counted_pages=0, is_over=True, pass_s=0.0)
    passed_s, cpu_s = now.taken_s - fed.taken_s, _used_s(fed, now)
    pages, has_ended = _difference(fed.pages_scanned, now.pages_scanned), now.full_scans != fed.full_scans
    is_early = 0 < BATCH_S - passed_s <= BATCH_S  # else it is over, or the clock began anew
    waited_s = now.taken_s - seen.taken_s
    is_working = bool(_used_s(seen, now)) or seen.pages_scanned != now.pages_scanned
    stands_still = waited_s < 0 or (waited_s >= MIN_STILL_S and not is_working)
    pass_s = seconds_to_pass(max(current.batch_pages * cost_s - (cpu_s or 0.0), 0.0))
    if pages is not None:
        is_over = pages >= current.batch_pages or (stands_still and not is_early)
        pass_s = seconds_to_pass((current.batch_pages - pages) * cost_s) if is_early else MIN_WAIT_S
    elif cpu_s is not None:
        is_over = stands_still
        pages = current.batch_pages if is_over and not has_ended else 0
    else:
        is_over, pages, pass_s = not is_early, 0, BATCH_S - passed_s + SLACK_S
    return Progress(cpu_s=cpu_s, counted_pages=pages, is_over=is_over or has_ended, pass_s=pass_s)


def seconds_to_pass(left_s: float) -> float:
    """Return when to have a pass for a batch that will be over in `left_s`: then, or earlier should it be faster."""
    return max(left_s + SLACK_S, MIN_WAIT_S) if left_s + SLACK_S < 2 * MIN_WAIT_S else MIN_WAIT_S


def scanned_pages(current: FullScan, now: Meter, cost_s: float) -> int | None:
    """Return the pages that ksmd has scanned since the full scan began; None where nothing tells.

    Where the kernel does not count them (before 6.6), by estimate: whole batches, and of one that runs or that the end
    of a full scan cut short, what its CPU time comes to.
    """
    counted = _difference(current.began.pages_scanned, now.pages_scanned)
    if counted is not None or current.began.cpu_s is None or now.cpu_s is None:
        return counted
    if current.fed is None:
        return 0
    progress = read_progress(current, now, cost_s)
    used_s, pages = progress.cpu_s or 0.0, current.batch_pages
    estimate = int(used_s / cost_s) if used_s < pages * cost_s else pages
    return current.scanned_pages + (progress.counted_pages or estimate)


def has_ended(snapshot: Snapshot, current: FullScan) -> bool:
    """Tell whether a full scan is over, which has met other pages than the agent's own."""
    return (snapshot.ksm.full_scans or 0) >= current.ends_at_full_scans and not has_met_own_alone(snapshot, current)


def has_met_own_alone(snapshot: Snapshot, current: FullScan) -> bool:
    """Tell whether full scans have ended in which ksmd has met the agent's own pages and no others."""
    began, now = current.began, read_meter(snapshot)
    if known_kib(snapshot) == 0 or not knows_of_none(snapshot) or began.pages_sharing > OWN_PAGES:
        return False
    ended, scanned_pages = now.full_scans - began.full_scans, _difference(began.pages_scanned, now.pages_scanned) or 0
    return ended > 0 and scanned_pages <= OWN_PAGES * (ended + 1)


def seconds_until_stalled(snapshot: Snapshot, state: AdaptiveState, current: FullScan, share: float) -> float:
    """Return how much longer ksmd may take, below 0 if it makes no progress (rule 5), as where KSM is off unseen.

    A ksmd that works, however seldom it gets a CPU, is given as much of its CPU time.
    """
    pages, now = total_kib(snapshot, state) / snapshot.ksm.page_kib, read_meter(snapshot)
    estimate_s = max(full_scan_cost_s(snapshot, state), pages * page_cost_s(snapshot, state))
    passed_s, used_s = now.taken_s - current.began.taken_s, _used_s(current.began, now)
    if used_s is not None and used_s > WORKING_SHARE * passed_s:
        passed_s = used_s / share
    return max(STALLED_S, STALLED_ESTIMATES * estimate_s / share) - passed_s


def is_empty(snapshot: Snapshot, current: FullScan) -> bool:
    """Tell whether no memory may merge (rule 5): KSM knows of no page once ksmd has rested for the time of a batch.

    A ksmd that works may still be on its way to its first page. From the beginning on: a batch that meets no page is
    over at once, and the next follows.
    """
    now, began = read_meter(snapshot), current.began
    scanned = _difference(began.pages_scanned, now.pages_scanned)
    has_met_any = scanned or now.full_scans != began.full_scans or known_kib(snapshot)
    if current.fed is None or (has_met_any and not has_met_own_alone(snapshot, current)):
        return False
    return now.taken_s - began.taken_s - (_used_s(began, now) or 0.0) >= BATCH_S


def progress_numbers(snapshot: Snapshot, state: AdaptiveState, current: FullScan) -> dict[str, Number]:
    """Return how far a full scan is, and when it will have ended at its pace so far."""
    now, ksm = read_meter(snapshot), snapshot.ksm
    scanned = scanned_pages(current, now, page_cost_s(snapshot, state))
    full_scan_kib = total_kib(snapshot, state) * current.times
    scanned_kib = None if scanned is None else min(ksm.kib(scanned), full_scan_kib)
    passed_s = now.taken_s - current.began.taken_s
    return {
        "full_scan_kib": full_scan_kib,
        "scanned_kib": scanned_kib,
        "full_scan_left_s": round(passed_s * (full_scan_kib / scanned_kib - 1), 3) if scanned_kib else None,
    }


def is_scanned_by_another(snapshot: Snapshot, state: AdaptiveState) -> bool:
    """Tell whether ksmd was found to scan at settings that are not ours: its cursor may be anywhere then (rule 2).

    So it is after an agent that gave the administrator's settings back when it stopped.
    """
    found = snapshot.ksm.settings
    return bool(found.pages_to_scan) and (state.scans.current is None or found.sleep_millisecs not in FED_SLEEPS_MS)


def end_full_scan(snapshot: Snapshot, state: AdaptiveState, ended: FullScan, share: float) -> AdaptiveState:
    """Count a full scan (rule 2): what was new has been scanned once, and what had been scanned once is done.

    Full scans come in pairs: the second follows at once. What appears after that has begun waits for another pair.

    One more follows if it is worth it (rule 4): what ksmd left in neither tree may have twins.

    Where ksmd's CPU time is unknown, it has used what it was granted: its `share` of a core in each batch.
    """
    began, now = ended.began, read_meter(snapshot)
    scans, learned, once = state.scans, state.learned, state.backlog.scanned_once
    memory_kib, once_kib = total_kib(snapshot, state), state.backlog.scanned_once_kib
    used_s = _used_s(began, now)
    cost_s = (granted_until_s(ended, now, share) if used_s is None else used_s) / ended.times
    had_kib = snapshot.ksm.kib(began.pages_sharing + _lost_pages(began, now)) + began.unmapped_kib
    net_kib = snapshot.ksm.kib(now.pages_sharing) + now.unmapped_kib - had_kib
    is_second = scans.pair_left <= 1
    pair = once if is_second else ended.scanning
    shares = expect(snapshot, state)
    expected_kib = int(shares.merging_kib(pair)) - scans.merged_kib
    staying_kib = int(shares.held_kib({key: kib - pair.get(key, 0) for key, kib in state.guests_kib.items()}))
    # How much was taken along nobody tells: within what is possible, as much has merged as was expected.
    taken_along_kib = min(ended.taken_along_kib, max(had_kib - staying_kib, 0))
    net_kib = min(max(net_kib, expected_kib), net_kib + taken_along_kib)
    merged_kib = max(scans.merged_kib + (net_kib if scans.is_check or is_second else 0), 0)
    visited = scans.visited + 1 - skipped_share(snapshot, ended)
    left_kib = max(once_kib - merged_kib, 0)
    more_kib, goes_on = 0.0, False
    if scans.is_check:
        goes_on = is_backlog((2 if is_second else 1) - visited, 1)
    elif is_second and is_backlog(left_kib, memory_kib):
        more_kib = expect_of_one_more(snapshot, state, ended, left_kib, max(net_kib, 0))
        cost_share = min(max(cost_s / (full_scan_cost_s(snapshot, state) or inf), MIN_COST_SHARE), 1.0)
        goes_on = is_backlog(more_kib, memory_kib * cost_share)
    goes_on = goes_on and scans.more < MAX_MORE_FULL_SCANS
    known = learned.full_scan_cost_s_per_kib
    if not is_second:
        learned = learn_lost(snapshot, learned)
    if is_second and not goes_on and once_kib:
        learned = learn(snapshot, state, pair, merged_kib)
    learned = replace(learned, ended_s=now.taken_s, began_cow_ksm=began.cow_ksm)
    if scanned_kib := max(ended.began_kib, memory_kib):  # some may have stopped, and some started
        per_kib = cost_s / scanned_kib
        if known is not None:
            per_kib = max(per_kib, known + (per_kib - known) * NEWEST * (not goes_on))
        learned = replace(learned, full_scan_cost_s_per_kib=per_kib)
    fed = scans.last_fed
    has_gone_on = fed is not None and now.taken_s - fed.taken_s > FED_SLEEPS_MS[0] / 1000  # another batch, unseen
    is_elsewhere = has_gone_on or is_scanned_by_another(snapshot, state)
    stays = once if goes_on or (scans.is_check and not is_second) else {}
    return replace(
        state,
        backlog=replace(state.backlog, scanned_once=add(stays, ended.scanning)),
        scans=Scans(
            cursor_full_scans=None if is_elsewhere else snapshot.ksm.full_scans,
            pair_left=scans.pair_left if goes_on else max(scans.pair_left - 1, 0),
            more=scans.more + 1 if goes_on else 0,
            merged_kib=merged_kib,
            expected_kib=more_kib,
            visited=visited,
            is_check=scans.is_check,
            fed=fed,
        ),
        learned=learned,
    )


def _lost_pages(began: Meter, now: Meter) -> int:
    """Return what was lost again in a full scan: written to, it is counted as sharing until ksmd finds it.

    Of these pages as large a share was saved as of those that merged meanwhile.
    """
    pages, saved = _difference(began.cow_ksm, now.cow_ksm) or 0, now.pages_sharing - began.pages_sharing
    shared = now.pages_shared - began.pages_shared
    return pages * saved // (saved + shared) if saved > 0 and shared > 0 else pages


def expect_of_one_more(
    snapshot: Snapshot, state: AdaptiveState, ended: FullScan, left_kib: int, merged_kib: int
) -> float:
    """Return how much one more full scan is expected to merge, of what is in neither tree and has met no twins.

    Of what is left of huge pages that ksmd has split, as much as of all else: the unstable tree leads to no page behind
    one that has gone, such as a zero page that a split has freed (mm/ksm.c: unstable_tree_search_insert). With old
    pages, which smart_scan visits in few full scans, what is wanting of the usual share. Later on, the mean of what was
    expected and what has merged; beyond what has merged or was skipped HIDDEN_AGAIN of what was expected, as the rest
    was visited in vain, such as zero pages that fill huge ones.
    """
    ksm, scans, once_kib = snapshot.ksm, state.scans, max(state.backlog.scanned_once_kib, 1)
    in_no_tree_kib = max(ksm.kib(ksm.pages_volatile or 0) - ended.scanning_kib, 0)
    unmet_kib = min(in_no_tree_kib, left_kib)
    skipped_kib = ksm.kib(_difference(ended.began.pages_skipped, ksm.pages_skipped) or 0)
    if scans.more:
        visited_kib = HIDDEN_AGAIN * scans.expected_kib
        return min((scans.expected_kib + merged_kib) / 2, merged_kib + skipped_kib + visited_kib, unmet_kib)
    split_kib = (_difference(ended.began.thp_split_page, ksm.thp_split_page) or 0) * ksm.huge_page_kib
    gain_kib = min(split_kib, unmet_kib) * min(merged_kib / once_kib, 1.0)
    ratio, _ = expect_of_backlog(expect(snapshot, state), state.backlog)
    wanting_kib = max(ratio * once_kib - merged_kib - gain_kib, 0.0)
    return min(gain_kib + min(wanting_kib, skipped_kib) * RARELY_VISITED, unmet_kib)


def skipped_share(snapshot: Snapshot, ended: FullScan) -> float:
    """Return the share of the memory that has not merged which smart_scan has skipped in a full scan.

    Of another machine only what is in neither tree is known, which has been skipped or has changed.
    """
    ksm = snapshot.ksm
    skipped = _difference(ended.began.pages_skipped, ksm.pages_skipped) or 0
    if snapshot.source is Source.LIBVIRT:
        skipped = ksm.pages_volatile or 0
    lone = (ksm.pages_unshared or 0) + (ksm.pages_volatile or 0)
    return min(skipped / lone, 1.0) if lone else 0.0


def _used_s(before: Meter, after: Meter) -> float | None:
    return None if before.cpu_s is None or after.cpu_s is None else max(after.cpu_s - before.cpu_s, 0.0)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)
