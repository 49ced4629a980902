"""The adaptive law, rule by rule, on snapshots made by hand; whole stories are on the simulator.

Numbers in the names are the rules of virtksm/policy/adaptive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from virtksm.codec import MAX_MEMBERS, MAX_TEXT, dump
from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Decision, Threshold, Trigger, Triggers
from virtksm.model.snapshot import IDLE, Guest, HostMemory, KsmState, OtherProcesses, Settings, Snapshot, Source
from virtksm.policy.adaptive import SETTLING_WATCH_S, AdaptivePolicy
from virtksm.policy.adaptive.backlog import OTHER_PROCESSES
from virtksm.policy.adaptive.engage import judge_need
from virtksm.policy.adaptive.full_scans import (
    BATCH_S,
    CAUTIOUS_PAGE_COST_S,
    FED_SLEEPS_MS,
    MIN_WAIT_S,
    SLACK_S,
    begin_full_scan,
    seconds_to_wait,
)
from virtksm.policy.adaptive.growth import RECENT_S, Growth, judge_growth
from virtksm.policy.adaptive.lasting import MAX_INTERVAL_S, MIN_INTERVAL_S
from virtksm.policy.adaptive.state import (
    AdaptiveState,
    Arrivals,
    Backlog,
    CheckScans,
    Learned,
    Scans,
    dump_state,
    load_state,
)
from virtksm.policy.thresholds import find_thresholds

GIB = 1024 * 1024
TOTAL = 64 * GIB
TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))
RETUNE = Triggers(kinds=frozenset({Trigger.RETUNE}))
ALWAYS = AdaptivePolicy(params=AdaptiveParams(engage="always"))
AUTO = AdaptivePolicy(params=AdaptiveParams())
OF_ANY_PAGE_SIZE = pytest.mark.parametrize("page_kib", [4, 16, 64])


def snap(at_s: float, guests: Mapping[str, int] | None = None, **ksm: float | None) -> Snapshot:
    """A local host of 64 GiB with 40 available; `guests` are name to KiB, `ksm` what differs from an idle kernel.

    After a full scan it knows of all pages, unless told otherwise.
    """
    known = sum((guests or {}).values()) // int(ksm.get("page_kib") or 4) if ksm.get("full_scans") else 0
    state = {
        "pages_shared": 0, "pages_sharing": 0, "pages_unshared": known, "pages_volatile": 0, "full_scans": 0, "run": 1,
        "pages_scanned": 0, "pages_skipped": 0, "ksmd_cpu_seconds": 0.0, **ksm,
    }  # fmt: skip
    return Snapshot(
        taken_s=at_s,
        source=Source.LOCAL,
        host=HostMemory(total_kib=TOTAL, free_kib=40 * GIB, buffers_kib=0, cached_kib=0, available_kib=40 * GIB),
        ksm=KsmState(settings=Settings(pages_to_scan=0, sleep_millisecs=10_000, merge_across_nodes=1), **state),  # type: ignore[arg-type]  # ints and one float
        guests=tuple(
            Guest(uuid=name, name=name, domain_id=1, rss_kib=kib, max_kib=kib) for name, kib in (guests or {}).items()
        ),
    )


def with_other_processes(snapshot: Snapshot, kib: int | None) -> Snapshot:
    return replace(snapshot, other_processes=None if kib is None else OtherProcesses(kib=kib, processes=1, unread=0))


def with_available(snapshot: Snapshot, available_kib: int) -> Snapshot:
    return replace(snapshot, host=replace(snapshot.host, available_kib=available_kib))


def after(decision: Decision, snapshot: Snapshot) -> Snapshot:
    """The snapshot of a kernel that has taken the decision's settings."""
    return replace(snapshot, ksm=replace(snapshot.ksm, settings=decision.target))


def decide_all(
    policy: AdaptivePolicy, *snapshots: Snapshot, state: AdaptiveState | None = None, triggers: Triggers = TIMER
) -> tuple[Decision, AdaptiveState]:
    """Decide over one snapshot after the other; return the last decision and state."""
    state = state or AdaptiveState()
    for snapshot in snapshots:
        decision, state = policy.decide(snapshot, state, triggers)
    return decision, state


def having_scanned(held_kib: int = GIB, *, once_kib: int = 0, **scans: int) -> AdaptiveState:
    """The state with a guest that was scanned before, so much of it once, and the cursor after five full scans."""
    return AdaptiveState(
        taken_s=0,
        engaged=True,
        guests_kib={"a/1": held_kib},
        scans=Scans(cursor_full_scans=5, **scans),  # type: ignore[arg-type]  # whole numbers alone
        backlog=Backlog(scanned_once_kib=once_kib),
        checks=CheckScans(due_s=1e6),
    )


def in_full_scan() -> tuple[Decision, AdaptiveState]:
    """Two guests of 1 GiB that settled, and the first full scan just begun at 10 s."""
    guests = {"a": GIB, "b": GIB}
    return decide_all(ALWAYS, snap(0, guests), snap(3, guests), snap(10, guests))


# Rule 1 and 2


def test_1_with_memory_to_spare_it_leaves_guests_alone() -> None:
    decision, _ = decide_all(AUTO, snap(0, {"a": GIB}), snap(100, {"a": GIB}))
    assert (decision.target, decision.reason.rule) == (IDLE, "disengaged")


def test_1_it_engages_below_the_reserve_and_disengages_well_above_it() -> None:
    guests = {"a": 4 * GIB}
    _, state = decide_all(AUTO, with_available(snap(0, guests), 12 * GIB))
    assert state.engaged, "less than 20 % of 64 GiB are available"
    _, state = decide_all(AUTO, with_available(snap(1, guests), 15 * GIB), state=state)
    assert state.engaged, "not yet a quarter above it"
    _, state = decide_all(AUTO, with_available(snap(2, guests), 17 * GIB), state=state)
    assert not state.engaged
    _, state = decide_all(AUTO, with_available(snap(3, guests), 15 * GIB), state=state)
    assert not state.engaged


def test_1_it_engages_before_guests_have_grown_to_what_they_may() -> None:
    small = snap(0, {"a": GIB})
    may_grow = replace(small, guests=(replace(small.guests[0], max_kib=60 * GIB),))
    decision, state = decide_all(AUTO, may_grow)
    assert state.engaged
    assert decision.reason.rule != "disengaged"


def test_1_never_only_observes() -> None:
    policy = AdaptivePolicy(params=AdaptiveParams(engage="never"))
    decision, state = decide_all(policy, *(with_available(snap(at, {"a": GIB}), 0) for at in range(100)))
    assert (decision.target, decision.reason.rule) == (IDLE, "disengaged")
    assert state.backlog.new_kib == GIB, "the backlog is known, should it engage"


def test_2_less_memory_never_scans_slower() -> None:
    _, state = in_full_scan()
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=50))
    batches = []
    for available_kib in (40 * GIB, 12 * GIB, 6 * GIB, GIB, 0):
        snapshot = with_available(snap(12, {"a": GIB, "b": GIB}, pages_scanned=100_000), available_kib)
        decision, _ = decide_all(policy, snapshot, state=state)
        batches.append(decision.target.pages_to_scan or 0)
    assert batches == sorted(batches)
    assert batches[-1] > batches[0]


def test_without_ksm_switched_on_nothing_is_scanned_and_the_backlog_stays() -> None:
    guests = {"a": GIB}
    decision, state = decide_all(ALWAYS, *(snap(at, guests, run=0) for at in range(0, 100, 10)))
    assert (decision.target, decision.reason.rule) == (IDLE, "off")
    decision, _ = decide_all(ALWAYS, snap(101, guests), state=state)
    assert decision.reason.rule == "full_scan"


# Rules 3 to 5


def test_3_a_guest_s_memory_is_backlog_and_what_grows_is_more() -> None:
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(3, {"a": GIB}), snap(6, {"a": 2 * GIB}))
    assert (state.backlog.new_kib, state.backlog.settling) == (GIB, ((6, GIB),))
    _, state = decide_all(AUTO, snap(9, {"a": 2 * GIB}), state=state)
    assert (state.backlog.new_kib, state.backlog.settling) == (2 * GIB, ())


def test_3_another_run_of_a_guest_is_new_memory() -> None:
    again = snap(10, {"a": GIB})
    again = replace(again, guests=(replace(again.guests[0], domain_id=2),))
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(5, {"a": GIB}), again)
    assert (state.backlog.new_kib, state.backlog.settling) == (0, ((10, GIB),)), (
        "its first run's backlog has gone with it"
    )


def test_3_what_has_stopped_takes_its_backlog_away() -> None:
    _, state = decide_all(
        AUTO, snap(0, {"a": GIB, "b": 3 * GIB}), snap(3, {"a": GIB, "b": 3 * GIB}), snap(4, {"a": GIB})
    )
    assert state.backlog.new_kib == GIB
    _, state = decide_all(AUTO, snap(5), state=state)
    assert state.backlog.new_kib == 0


def test_3_what_stops_during_its_full_scan_needs_no_second_one() -> None:
    guests = {"a": GIB, "b": 3 * GIB}
    known = {"pages_unshared": GIB, "full_scans": 5}
    state = AdaptiveState(
        taken_s=0,
        engaged=True,
        guests_kib={"a/1": GIB, "b/1": 3 * GIB},
        backlog=Backlog(new_kib=4 * GIB),
        scans=Scans(cursor_full_scans=5),
    )
    state = begin_full_scan(snap(1, guests, **known), state)
    assert state.scans.current is not None
    assert state.scans.current.scanning_kib == 4 * GIB
    _, state = decide_all(
        ALWAYS, snap(2, {"a": GIB}, **known), snap(3, {"a": GIB}, **{**known, "full_scans": 6}), state=state
    )
    assert state.backlog.scanned_once_kib == GIB


@OF_ANY_PAGE_SIZE
def test_3_one_full_scan_takes_what_has_stopped_out_of_ksm_s_bookkeeping(page_kib: int) -> None:
    """The kernel's counters tell of an ended guest until ksmd has come by."""
    known = {"pages_unshared": 2 * GIB // page_kib, "full_scans": 5, "page_kib": page_kib}
    state = AdaptiveState(
        taken_s=0,
        engaged=True,
        guests_kib={"a/1": GIB, "b/1": GIB},
        scans=Scans(cursor_full_scans=5),
        checks=CheckScans(due_s=1e6),
    )
    state = replace(state, learned=replace(state.learned, full_scan_cost_s_per_kib=1e-6))
    decision, state = decide_all(ALWAYS, snap(1, {"a": GIB}, **known), state=state)
    assert (decision.reason.rule, state.backlog.exited_kib, state.backlog.new_kib) == ("wait", GIB, 0)
    decision, state = decide_all(ALWAYS, snap(60, {"a": GIB}, **known), state=state)
    assert (decision.reason.rule, state.backlog.exited_kib) == ("full_scan", 0)
    struck_off = snap(62, {"a": GIB}, pages_unshared=GIB // page_kib, full_scans=6, page_kib=page_kib)
    decision, state = decide_all(ALWAYS, struck_off, state=state)
    assert (decision.reason.rule, decision.target) == ("idle", IDLE)


def test_3_what_ksmd_never_knew_leaves_nothing_in_its_bookkeeping() -> None:
    state = AdaptiveState(taken_s=0, engaged=True, guests_kib={"a/1": GIB, "b/1": GIB}, checks=CheckScans(due_s=1e6))
    decision, state = decide_all(ALWAYS, snap(1, {"a": GIB}), state=state)
    assert (decision.reason.rule, state.backlog.exited_kib) == ("idle", 0)


def test_3_a_guest_that_cannot_be_read_for_once_has_not_stopped() -> None:
    unread = snap(10, {"a": GIB})
    unread = replace(unread, guests=(replace(unread.guests[0], rss_kib=None),))
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(5, {"a": GIB}), unread, snap(11, {"a": GIB}))
    assert (state.backlog.new_kib, state.backlog.settling) == (GIB, ())


@OF_ANY_PAGE_SIZE
def test_3_rewritten_pages_are_backlog_but_not_those_of_a_guest_that_stopped(page_kib: int) -> None:
    guests = {"a": GIB, "b": GIB}
    covered = AdaptiveState(taken_s=0, guests_kib={"a/1": GIB, "b/1": GIB}, pages_sharing=1000, engaged=True)
    _, state = decide_all(ALWAYS, snap(1, guests, pages_sharing=400, page_kib=page_kib), state=covered)
    assert state.backlog.new_kib == 600 * page_kib
    counted = snap(1, guests, pages_sharing=400, cow_ksm=107, page_kib=page_kib)
    assert decide_all(ALWAYS, counted, state=replace(covered, cow_ksm=7))[1].backlog.new_kib == 100 * page_kib
    _, state = decide_all(ALWAYS, snap(1, {"a": GIB}, pages_sharing=400, page_kib=page_kib), state=covered)
    assert state.backlog.new_kib == 0


@pytest.mark.parametrize(("full_scans", "known", "new_kib"), [(5, 0, GIB), (5, 1000, 0), (None, 0, 0)])
def test_3_what_was_unmerged_is_new_again(full_scans: int | None, known: int, new_kib: int) -> None:
    """Whoever writes 2 to run has ksmd forget every page; before any full scan it knows of none either."""
    before = AdaptiveState(
        taken_s=0,
        engaged=True,
        guests_kib={"a/1": GIB},
        scans=Scans(cursor_full_scans=full_scans),
        checks=CheckScans(due_s=1e6),
    )
    _, state = decide_all(ALWAYS, snap(1, {"a": GIB}, full_scans=5, pages_unshared=known), state=before)
    assert state.backlog.new_kib == new_kib


def test_5_backlog_that_waits_adds_up() -> None:
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(2, {"a": GIB}), snap(12, {"a": GIB}))
    assert state.backlog.waited_kib_s == pytest.approx(10 * GIB)


# Rules 6 to 10


@pytest.mark.parametrize(
    ("appeared_kib", "growth"),
    [(0, Growth.SETTLED), (GIB // 512, Growth.SETTLED), (GIB // 32, Growth.STEADY), (GIB, Growth.BURST)],
)
def test_6_growth_is_judged_by_what_it_would_come_to(appeared_kib: int, growth: Growth) -> None:
    """A second's growth: a burst if two minutes of it would double the memory, steady if 40 s would the backlog."""
    _, state = grown(appeared_kib)
    assert judge_growth(state) is growth


def grown(appeared_kib: int) -> tuple[Snapshot, AdaptiveState]:
    """A guest of 32 GiB that is covered but for half a GiB, and grows by so much now."""
    state = AdaptiveState(guests_kib={"old/1": 32 * GIB}, taken_s=0)
    settled, last = snap(9, {"old": 65 * GIB // 2}), snap(10, {"old": 65 * GIB // 2 + appeared_kib})
    return last, decide_all(AUTO, snap(0, {"old": 65 * GIB // 2}), settled, last, state=state)[1]


def filling(*rates_mib: int, old_kib: int = 0) -> Growth:
    """Judge guests that fill at so many MiB a second, one second after the other, with three passes in each."""
    state, held_kib, at_s = AdaptiveState(guests_kib={"a/1": old_kib}, taken_s=0), old_kib, 0.0
    for rate_mib in rates_mib:
        for _ in range(3):
            at_s, held_kib = at_s + 1 / 3, held_kib + rate_mib * 1024 // 3
            _, state = decide_all(AUTO, snap(at_s, {"a": held_kib}), state=state)
    return judge_growth(state)


def test_6_guests_that_fill_by_fits_and_starts_are_one_burst() -> None:
    """Measured on a busy host: 37 to 270 MiB a second, with 46 as a burst's least for what was there by then."""
    assert filling(*[270] * 8, 37, 37, 110, 37, old_kib=4 * GIB) is Growth.BURST
    assert filling(37, old_kib=6 * GIB) is not Growth.BURST, "none begins so"


@pytest.mark.parametrize(
    ("rates_mib", "why"),
    [
        ((*[270] * 8, 0), "nothing comes any more"),
        ((*[270] * 8, 3), "next to nothing does"),
        ((*[270] * 8, 37, 37, 37, 37), "a quarter of the eight seconds is over"),
        ((270, 20, 20), "it has not lasted"),
    ],
)
def test_6_a_burst_ends_after_a_lull_or_once_little_is_left_of_it(rates_mib: tuple[int, ...], why: str) -> None:
    assert filling(*rates_mib, old_kib=4 * GIB) is not Growth.BURST, why


@pytest.mark.parametrize(("at_s", "since_s"), [(10.3, 2.0), (5000.0, 5000.0), (1.0, 1.0)])
def test_6_a_burst_in_which_an_agent_stopped_is_not_the_one_that_its_successor_finds(
    at_s: float, since_s: float
) -> None:
    """Nor is one of before a reboot; a lull of a quarter of eight seconds would be too long for a new one."""
    state = AdaptiveState(taken_s=10.0, guests_kib={"a/1": GIB}, arrivals=Arrivals(burst_since_s=2.0, burst_at_s=10.0))
    assert decide_all(AUTO, snap(at_s, {"a": 2 * GIB}), state=state)[1].arrivals.burst_since_s == since_s


def test_6_backlog_waits_longer_while_more_is_to_come() -> None:
    waits_s = []
    for appeared_kib in (0, GIB // 32):
        last, state = grown(appeared_kib)
        waits_s.append(seconds_to_wait(last, state, judge_need(last, ALWAYS.params, was_engaged=True)))
    settled_s, steady_s = waits_s
    assert settled_s is not None
    assert steady_s is not None
    assert settled_s * 4 < steady_s


def waits_s(merge_ratio: float, *, has_starts: bool = False) -> float:
    """Tell how long half a GiB of a guest of 32 GiB waits."""
    last, state = grown(0)
    arrivals = replace(state.arrivals, has_starts=has_starts or state.arrivals.has_starts)
    state = replace(state, arrivals=arrivals, learned=replace(state.learned, merge_ratio=merge_ratio))
    wait_s = seconds_to_wait(last, state, judge_need(last, ALWAYS.params, was_engaged=True))
    assert wait_s is not None
    return wait_s


def test_6_growth_waits_longer_the_less_of_it_has_merged_lately() -> None:
    series = [waits_s(merge_ratio=share) for share in (1.0, 0.5, 0.1, 0.0)]
    assert series == sorted(series)
    assert series[1] < series[2] < series[3] < 12 * series[1], "it comes back carefully, but it does"


def test_6_guests_that_start_are_given_the_benefit_of_the_doubt() -> None:
    assert waits_s(merge_ratio=0.0, has_starts=True) == waits_s(merge_ratio=0.5)


@pytest.mark.parametrize(("merged_kib", "merge_ratio"), [(0, 0.25), (GIB // 2, 0.5), (GIB, 0.75), (3 * GIB, 0.75)])
def test_6_the_merge_ratio_of_the_last_backlog_is_learnt(merged_kib: int, merge_ratio: float) -> None:
    assert scanned_once(merged_kib, pair_left=1).learned.merge_ratio == merge_ratio


def test_6_a_pair_s_first_full_scan_teaches_nothing() -> None:
    """Most of what it merges is of what it scans for the first time."""
    assert scanned_once(GIB, pair_left=0).learned.merge_ratio == Learned().merge_ratio


@OF_ANY_PAGE_SIZE
def test_7_what_a_full_scan_merged_counts_in_memory(page_kib: int) -> None:
    assert scanned_once(GIB, pair_left=1, page_kib=page_kib).learned.merged_kib == GIB


def scanned_once(merged_kib: int, *, pair_left: int, page_kib: int = 4) -> AdaptiveState:
    """The state after a full scan of a GiB that had been scanned once, which merged so much."""
    guests = {"a": GIB}
    before = having_scanned(once_kib=GIB, pair_left=pair_left)
    began = begin_full_scan(snap(1, guests, full_scans=5, page_kib=page_kib), before)
    ended = snap(2, guests, full_scans=6, pages_sharing=merged_kib // page_kib, page_kib=page_kib)
    return decide_all(ALWAYS, ended, state=began)[1]


@pytest.mark.parametrize(("cpu_s", "estimate_s"), [(4.0, 4.0), (1.0, 2.0 - 0.3)])
def test_6_the_estimate_of_a_full_scan_is_that_of_the_last_expensive_one(cpu_s: float, estimate_s: float) -> None:
    guests = {"a": GIB}
    before = AdaptiveState(
        taken_s=0,
        engaged=True,
        guests_kib={"a/1": GIB},
        scans=Scans(cursor_full_scans=5),
        learned=Learned(full_scan_cost_s_per_kib=2 / GIB),
        checks=CheckScans(due_s=1e6),
    )
    began = begin_full_scan(snap(1, guests, full_scans=5), before)
    _, state = decide_all(ALWAYS, snap(9, guests, full_scans=6, ksmd_cpu_seconds=cpu_s), state=began)
    assert state.learned.full_scan_cost_s_per_kib == pytest.approx(estimate_s / GIB)


def test_6_a_burst_is_waited_for_and_its_end_is_not_missed() -> None:
    state = AdaptiveState()
    for step in range(20):
        decision, state = decide_all(ALWAYS, snap(step / 2, {"a": GIB + step * GIB // 8}), state=state)
        assert decision.target == IDLE
        assert (decision.next_pass_s or 9) <= SETTLING_WATCH_S
    decision, state = decide_all(ALWAYS, snap(10.0, {"a": GIB + 19 * GIB // 8}), state=state)
    assert decision.reason.rule == "wait"
    assert decision.next_pass_s == pytest.approx(RECENT_S - 0.5)
    decision, _ = decide_all(ALWAYS, snap(10.5, {"a": GIB + 19 * GIB // 8}), state=state)
    assert decision.reason.rule == "full_scan"


def series(guests: int, every_s: float) -> list[str]:
    """Guests of 1 GiB appear at once, one after the other; return the rules of the passes."""
    state, rules = AdaptiveState(), []
    for step in range(int(guests * every_s * 2)):
        running = {f"g{number}": GIB for number in range(1 + int(step / 2 / every_s))}
        decision, state = decide_all(ALWAYS, snap(step / 2, running), state=state)
        rules.append(decision.reason.rule)
    return rules


def test_6_in_a_series_of_starts_the_next_guest_is_waited_for() -> None:
    """And a guest that starts alone is covered some seconds later."""
    assert "full_scan" not in series(4, 4.0)
    assert "full_scan" in series(1, 16.0)


def test_6_guests_that_are_there_when_it_begins_have_not_just_started() -> None:
    state = AdaptiveState()
    for step in range(20):
        running = {"a": GIB} if step < 8 else {"a": GIB, "b": GIB}
        _, state = decide_all(ALWAYS, snap(step / 2, running), state=state)
    assert (state.arrivals.start_s, state.arrivals.interval_s) == (4.0, 0.0)


def test_6_after_a_series_its_backlog_is_covered() -> None:
    state = AdaptiveState(taken_s=0)
    for step in range(20):
        running = {"a": GIB} if step < 8 else {"a": GIB, "b": GIB}
        decision, state = decide_all(ALWAYS, snap(step / 2, running), state=state)
    assert decision.reason.rule == "full_scan"
    assert state.scans.current is not None
    assert state.scans.current.began.taken_s == pytest.approx(4 + 4 * 1.05, abs=0.5)


def test_6_a_little_backlog_beside_much_memory_pays_for_no_full_scan() -> None:
    state = AdaptiveState(taken_s=0, guests_kib={"a/1": 32 * GIB}, engaged=True, checks=CheckScans(due_s=10_000))
    decision, _ = decide_all(ALWAYS, *(snap(at, {"a": 32 * GIB + 1024}) for at in range(0, 9000, 10)), state=state)
    assert (decision.target, decision.reason.rule) == (IDLE, "idle")


def test_6_an_explicit_retune_waits_for_nothing() -> None:
    decision, _ = decide_all(ALWAYS, snap(0, {"a": GIB}), snap(2, {"a": GIB}), triggers=RETUNE)
    assert decision.reason.rule == "full_scan"


def test_7_where_ksm_knows_pages_the_first_full_scan_takes_two_full_scans_and_later_ones_one() -> None:
    """Nobody knows where ksmd's cursor stands then; a batch ends where a full scan does."""
    guests = {"a": GIB, "b": GIB}

    def seen(at_s: float, full_scans: int) -> Snapshot:
        return snap(at_s, guests, full_scans=full_scans, pages_unshared=1)

    decision, state = decide_all(ALWAYS, seen(0, 0), seen(3, 0), seen(10, 0))
    assert decision.reason.rule == "full_scan"
    decision, state = decide_all(ALWAYS, seen(12, 1), state=state)
    assert (decision.reason.rule, state.backlog.scanned_once_kib) == ("full_scan", 0)
    decision, state = decide_all(ALWAYS, seen(16, 2), state=state)
    assert (state.backlog.new_kib, state.backlog.scanned_once_kib) == (0, 2 * GIB)
    decision, state = decide_all(ALWAYS, seen(40, 2), state=state)
    assert decision.reason.rule == "full_scan"
    decision, state = decide_all(ALWAYS, seen(44, 3), state=state)
    assert (state.backlog.new_kib, state.backlog.scanned_once_kib, decision.reason.rule) == (0, 0, "idle")
    assert decision.target == IDLE


@pytest.mark.parametrize(("found", "more_scans"), [((0, 10_000), 1), ((123, 45), 2), ((5000, 60_001), 2)])
def test_7_where_somebody_else_had_ksmd_scan_nobody_knows_where_its_cursor_is(
    found: tuple[int, int], more_scans: int
) -> None:
    """So after an agent that gave the administrator's settings back when it stopped."""
    guests = {"a": GIB, "b": GIB}
    before = having_scanned()
    again = snap(1, guests, full_scans=5)
    settings = replace(again.ksm.settings, pages_to_scan=found[0], sleep_millisecs=found[1])
    again = replace(again, ksm=replace(again.ksm, settings=settings))
    _, state = decide_all(ALWAYS, again, *(snap(at, guests, full_scans=5) for at in range(2, 20)), state=before)
    assert state.scans.current is not None
    assert state.scans.current.ends_at_full_scans == 5 + more_scans


def test_7_a_full_scan_that_ends_at_settings_of_somebody_else_leaves_the_cursor_anywhere() -> None:
    guests = {"a": GIB}
    before = having_scanned()
    began = begin_full_scan(snap(1, guests, full_scans=5), before)
    for sleep_millisecs, known in ((FED_SLEEPS_MS[0], 8), (45, None)):
        ended = snap(2, guests, full_scans=8)
        settings = replace(ended.ksm.settings, pages_to_scan=123, sleep_millisecs=sleep_millisecs)
        _, state = decide_all(ALWAYS, replace(ended, ksm=replace(ended.ksm, settings=settings)), state=began)
        assert state.scans.cursor_full_scans == known


def test_7_where_ksm_knows_no_page_the_first_full_scan_is_one_full_scan() -> None:
    _, state = in_full_scan()
    assert state.scans.current is not None
    assert state.scans.current.ends_at_full_scans == 1


def test_4_a_full_scan_covers_what_is_settling_when_it_begins() -> None:
    """It is scanned like all else; what matters is that it begins no full scan."""
    state = AdaptiveState(guests_kib={"a/1": 16 * GIB}, taken_s=0, learned=Learned(full_scan_cost_s_per_kib=1e-9))
    grown = {"a": 32 * GIB + GIB // 64}
    _, state = decide_all(ALWAYS, snap(1, {"a": 32 * GIB}), snap(9, {"a": 32 * GIB}), snap(20, grown), state=state)
    assert state.scans.current is not None
    assert (state.scans.current.scanning_kib, state.backlog.settling, state.backlog.new_kib) == (
        16 * GIB + GIB // 64,
        (),
        0,
    )


def test_7_what_appears_during_a_first_full_scan_is_scanned_once_by_the_second_and_then_waits_for_another() -> None:
    _, state = in_full_scan()
    grown = {"a": GIB, "b": 2 * GIB}
    _, state = decide_all(ALWAYS, snap(11, grown), snap(40, grown, full_scans=2), state=state)
    assert state.backlog.scanned_once_kib == 2 * GIB
    assert state.scans.current is not None, "the second one begins at once"
    assert (state.scans.current.scanning_kib, state.backlog.new_kib) == (GIB, 0)
    waits, state = decide_all(ALWAYS, snap(50, grown, full_scans=3), state=state)
    assert (state.scans.current, state.backlog.scanned_once_kib, state.backlog.new_kib) == (None, GIB, 0)
    assert (waits.reason.rule, waits.target) == ("wait", IDLE)
    _, state = decide_all(ALWAYS, snap(60, grown, full_scans=3), state=state)
    assert state.scans.current is not None
    done, state = decide_all(ALWAYS, snap(70, grown, full_scans=4), state=state)
    assert (done.reason.rule, state.backlog.scanned_once_kib, state.backlog.new_kib) == ("idle", 0, 0), (
        "one full scan more, no pair"
    )


def test_7_full_scans_come_to_an_end_while_memory_goes_on_growing() -> None:
    """What a second full scan scans for the first time waits, or each would need another at once."""
    state, rules, full_scans = AdaptiveState(), [], 0
    for second in range(400):
        full_scans += state.scans.current is not None
        grown = snap(
            float(second),
            {"a": 8 * GIB + second * GIB // 16},
            full_scans=full_scans,
            pages_unshared=1,
            ksmd_cpu_seconds=2.0 * full_scans,
        )
        decision, state = decide_all(ALWAYS, grown, state=state)
        rules.append(decision.reason.rule)
    assert 10 < rules.count("full_scan") < len(rules) / 4


def test_8_every_tick_grants_one_batch_by_changing_the_sleep() -> None:
    first, state = in_full_scan()
    guests = {"a": GIB, "b": GIB}
    scanned = first.target.pages_to_scan or 0
    second, state = decide_all(ALWAYS, after(first, snap(11, guests, pages_scanned=scanned)), state=state)
    scanned += second.target.pages_to_scan or 0
    third, _ = decide_all(ALWAYS, after(second, snap(14, guests, pages_scanned=scanned)), state=state)
    sleeps = [decision.target.sleep_millisecs for decision in (first, second, third)]
    assert set(sleeps) == set(FED_SLEEPS_MS)
    assert sleeps[0] == sleeps[2] != sleeps[1]
    assert all(sleep is not None and sleep >= 60_000 for sleep in sleeps), "without passes: one batch a minute"


def test_8_a_batch_that_still_runs_is_left_to_end() -> None:
    """Longer than its estimate, too, as long as ksmd works; whether pages are counted as it goes or at the end."""
    guests = {"a": GIB, "b": GIB}
    first, state = in_full_scan()
    pages = first.target.pages_to_scan or 0
    for at_s, scanned in ((10.2, 0), (10.2, pages - 1), (11, 0), (11, pages - 1), (60, 0)):
        busy = snap(at_s, guests, ksmd_cpu_seconds=(at_s - 10) * 0.95, pages_scanned=scanned)
        decision, _ = decide_all(ALWAYS, after(first, busy), state=state)
        assert decision.target == replace(first.target, merge_across_nodes=None)
        assert MIN_WAIT_S <= (decision.next_pass_s or 0) <= MIN_WAIT_S + SLACK_S


def test_8_a_batch_is_over_where_a_full_scan_ends() -> None:
    guests = {"a": GIB, "b": GIB}
    known = {"pages_unshared": 1}
    first, state = decide_all(ALWAYS, *(snap(at_s, guests, **known) for at_s in (0, 3, 10)))
    ended = snap(10.3, guests, pages_scanned=5, full_scans=1, ksmd_cpu_seconds=0.1, **known)
    decision, state = decide_all(ALWAYS, after(first, ended), state=state)
    assert state.scans.current is not None
    assert decision.target.sleep_millisecs != first.target.sleep_millisecs


def test_8_a_grant_that_got_lost_is_repeated() -> None:
    first, state = in_full_scan()
    idle = snap(12, {"a": GIB, "b": GIB}, ksmd_cpu_seconds=0.1, pages_scanned=5)
    decision, _ = decide_all(ALWAYS, after(first, idle), state=state)
    assert decision.target.sleep_millisecs != first.target.sleep_millisecs


def test_8_without_the_kernel_s_count_of_pages_a_batch_has_the_time_it_is_meant_for() -> None:
    def seen(at_s: float) -> Snapshot:
        return snap(at_s, {"a": GIB, "b": GIB}, pages_scanned=None, ksmd_cpu_seconds=None)

    first, state = decide_all(ALWAYS, seen(0), seen(3), seen(10))
    assert first.next_pass_s == pytest.approx(BATCH_S + SLACK_S)
    early, _ = decide_all(ALWAYS, after(first, seen(11)), state=state)
    assert early.target.sleep_millisecs == first.target.sleep_millisecs
    due, _ = decide_all(ALWAYS, after(first, seen(12.1)), state=state)
    assert due.target.sleep_millisecs != first.target.sleep_millisecs


def test_8_passes_that_guests_ask_for_grant_nothing_beyond_the_budget() -> None:
    guests = {"a": GIB, "b": GIB}
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=50))
    first, state = decide_all(policy, snap(0, guests), snap(3, guests), snap(10, guests))
    started = Triggers(kinds=frozenset({Trigger.STARTED}))
    over = {"pages_scanned": first.target.pages_to_scan, "ksmd_cpu_seconds": 0.5}
    early, state = decide_all(policy, after(first, snap(10.6, guests, **over)), state=state, triggers=started)
    assert early.target.sleep_millisecs == first.target.sleep_millisecs
    assert early.next_pass_s == pytest.approx(0.4)
    due, _ = decide_all(policy, after(early, snap(11.0, guests, **over)), state=state)
    assert due.target.sleep_millisecs != first.target.sleep_millisecs


def test_8_a_batch_is_what_the_budget_allows_at_the_measured_cost() -> None:
    guests = {"a": GIB, "b": GIB}
    first, state = in_full_scan()
    measured = snap(20, guests, pages_scanned=100_000, ksmd_cpu_seconds=0.5)
    for percent in (10, 50, 100):
        policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=percent))
        decision, _ = decide_all(policy, after(first, measured), state=state)
        assert decision.target.pages_to_scan == pytest.approx(200_000 * BATCH_S * percent / 100, rel=0.01)


def test_8_a_cheap_batch_makes_the_next_one_no_larger_than_is_safe() -> None:
    guests = {"a": GIB, "b": GIB}
    first, state = in_full_scan()
    cheap = snap(20, guests, pages_scanned=400_000, ksmd_cpu_seconds=0.1)
    decision, _ = decide_all(ALWAYS, after(first, cheap), state=state)
    assert decision.target.pages_to_scan == pytest.approx(BATCH_S / CAUTIOUS_PAGE_COST_S, rel=0.01)


def test_9_a_full_scan_that_makes_no_progress_is_given_up() -> None:
    _, state = in_full_scan()
    decision, state = decide_all(ALWAYS, snap(1000, {"a": GIB, "b": GIB}, pages_volatile=1), state=state)
    assert (decision.reason.rule, decision.target, state.scans.current) == ("stalled", IDLE, None)
    assert state.backlog.new_kib == 2 * GIB, "the backlog stays"


@OF_ANY_PAGE_SIZE
def test_10_a_full_scan_that_skipped_most_pages_counts_as_no_second_one(page_kib: int) -> None:
    guests = {"a": GIB, "b": GIB}
    _, state = in_full_scan()
    first = (snap(at_s, guests, full_scans=2, page_kib=page_kib) for at_s in (20, 40))
    _, state = decide_all(ALWAYS, *first, state=state)
    alone = {"pages_unshared": 2_400_000 // page_kib, "page_kib": page_kib}
    narrow = snap(44, guests, full_scans=3, pages_skipped=240_000 // page_kib, **alone)
    _, left = decide_all(ALWAYS, narrow, state=state)
    assert (left.backlog.scanned_once_kib, left.scans.narrow) == (2 * GIB, 1)
    wide = snap(44, guests, full_scans=3, pages_skipped=80_000 // page_kib, **alone)
    _, done = decide_all(ALWAYS, wide, state=state)
    assert (done.backlog.scanned_once_kib, done.scans.narrow) == (0, 0)


def narrow_end(*, merged_kib: int = 0, **scans: int) -> AdaptiveState:
    """The state after a narrow full scan with 1 GiB scanned once before, which merged so much."""
    guests = {"a": 2 * GIB}
    before = having_scanned(2 * GIB, once_kib=GIB, **scans)
    began = begin_full_scan(snap(1, guests, full_scans=5), before)
    ended = snap(2, guests, full_scans=6, pages_skipped=200_000, pages_unshared=500_000, pages_sharing=merged_kib // 4)
    return decide_all(ALWAYS, ended, state=began)[1]


@pytest.mark.parametrize(
    ("scans", "scanned_once_kib"),
    [
        ({}, GIB),
        ({"narrow": 2}, GIB),
        ({"narrow": 3}, 0),
        ({"narrow": 3, "narrow_merged_kib": GIB // 16}, GIB),
        ({"narrow": 12, "narrow_merged_kib": GIB // 16}, GIB),
        ({"narrow": 13, "narrow_merged_kib": GIB // 16}, 0),
    ],
)
def test_10_it_looks_for_hidden_twins_for_as_long_as_it_finds_them(
    scans: dict[str, int], scanned_once_kib: int
) -> None:
    assert narrow_end(**scans).backlog.scanned_once_kib == scanned_once_kib


def test_10_where_most_of_the_backlog_has_merged_it_looks_for_no_hidden_twins() -> None:
    assert narrow_end(merged_kib=GIB).backlog.scanned_once_kib == 0


@pytest.mark.parametrize(
    ("split", "volatile_kib", "retries", "left_kib"),
    [
        (0, GIB, 0, 0),
        (100, GIB, 0, 100 * 2048),
        (600, GIB // 2, 1, GIB // 2),
        (600, GIB // 16, 0, 0),
        (600, GIB, 2, 0),
        (None, GIB, 0, 0),
        (0, GIB, 1, GIB),
        (0, GIB, 2, 0),
    ],
)
def test_10_what_was_left_of_split_huge_pages_is_scanned_again(
    split: int | None, volatile_kib: int, retries: int, left_kib: int
) -> None:
    """ksmd splits a huge page to merge a part of it; the others may be in neither tree after their second scan."""
    guests = {"a": GIB}
    before = having_scanned(once_kib=GIB, retries=retries)
    counted = None if split is None else 50
    began = begin_full_scan(snap(1, guests, full_scans=5, thp_split_page=counted), before)
    splits = None if split is None else 50 + split
    ended = snap(2, guests, full_scans=6, thp_split_page=splits, pages_volatile=volatile_kib // 4)
    _, state = decide_all(ALWAYS, ended, state=began)
    assert state.backlog.scanned_once_kib == left_kib


def test_10_split_pages_of_which_a_retry_has_merged_an_eighth_are_left_alone() -> None:
    before = having_scanned(once_kib=GIB, retries=1)
    began = begin_full_scan(snap(1, {"a": GIB}, full_scans=5, thp_split_page=50), before)
    for merged_kib, left_kib in ((GIB // 8, 0), (GIB // 8 - 4, GIB)):
        counters = {"pages_volatile": GIB // 4, "pages_sharing": merged_kib // 4, "thp_split_page": 50}
        ended = snap(2, {"a": GIB}, full_scans=6, **counters)
        assert decide_all(ALWAYS, ended, state=began)[1].backlog.scanned_once_kib == left_kib


def test_10_narrow_full_scans_come_to_an_end() -> None:
    guests = {"a": GIB, "b": GIB}
    _, state = in_full_scan()
    full_scans, skipped = 2, 0
    for step in range(40):
        at_s = 20 + step * 100.0
        _, state = decide_all(ALWAYS, snap(at_s, guests, full_scans=full_scans, pages_skipped=skipped), state=state)
        full_scans, skipped = full_scans + 1, skipped + 400_000
    assert state.backlog.scanned_once_kib == 0


# Rules 11 and 12


def thrash(state: AdaptiveState, number: int) -> AdaptiveState:
    """End a full scan that merged much, break all of that, and wait for the next to begin."""
    at_s, cpu_s, guests = state.taken_s or 0.0, 2.0 * number, {"a": GIB, "b": GIB}
    merged = snap(at_s, guests, full_scans=1 + number, pages_sharing=100_000, ksmd_cpu_seconds=cpu_s)
    _, state = decide_all(ALWAYS, merged, state=state)
    while state.scans.current is None:
        at_s += 10
        broken = snap(at_s, guests, full_scans=1 + number, ksmd_cpu_seconds=cpu_s)
        _, state = decide_all(ALWAYS, broken, state=state)
    return state


def test_11_pages_that_are_rewritten_quickly_make_full_scans_rarer() -> None:
    _, state = in_full_scan()
    backoffs, waits_s = [], []
    for number in range(1, 10):
        began_s = state.taken_s or 0.0
        state = thrash(state, number)
        backoffs.append(state.learned.backoff)
        waits_s.append((state.taken_s or 0.0) - began_s)
    assert backoffs == [2**number for number in range(9)], "the first one was needed, whatever became of what it merged"
    assert waits_s[-1] >= 4 * waits_s[1]


def test_11_writes_to_merged_pages_are_noticed_at_once_where_the_kernel_counts_them() -> None:
    """pages_sharing changes only when ksmd scans them, which it does not while it is idle."""
    guests = {"a": GIB, "b": GIB}
    state = AdaptiveState(
        taken_s=0, engaged=True, guests_kib={"a/1": GIB, "b/1": GIB}, learned=Learned(merged_kib=400_000)
    )
    state = replace(
        state,
        pages_sharing=100_000,
        cow_ksm=7,
        learned=replace(state.learned, full_scan_cost_s_per_kib=1e-6),
        scans=replace(state.scans, cursor_full_scans=2),
        checks=replace(state.checks, due_s=1e6),
    )
    _, state = decide_all(ALWAYS, snap(1, guests, pages_sharing=100_000, cow_ksm=100_007), state=state)
    assert (state.backlog.new_kib, state.learned.rewritten_kib, state.cow_ksm) == (400_000, 400_000, 100_007)
    decision, state = decide_all(ALWAYS, snap(30, guests, pages_sharing=100_000, cow_ksm=100_007), state=state)
    assert state.learned.backoff == 2
    assert "rewritten quickly: scanning 2 times less often" in decision.reason.text


def test_11_pages_that_stay_merged_bring_it_back() -> None:
    guests = {"a": GIB, "b": GIB}
    _, state = in_full_scan()
    state = replace(state, learned=replace(state.learned, backoff=16))
    _, state = decide_all(
        ALWAYS,
        *(snap(at_s, guests, full_scans=2, pages_sharing=100_000, ksmd_cpu_seconds=2.0) for at_s in (12, 1000)),
        state=state,
    )
    assert state.learned.backoff == 8


def rested(interval_s: float) -> AdaptiveState:
    return AdaptiveState(
        taken_s=0,
        guests_kib={"a/1": GIB},
        pages_sharing=0,
        engaged=True,
        scans=Scans(cursor_full_scans=5),
        checks=CheckScans(due_s=50, interval_s=interval_s),
    )


@pytest.mark.parametrize(
    ("merged", "before_s", "after_s"),
    [
        (0, 300, 600),
        (100_000, 300, 150),
        (0, MAX_INTERVAL_S, MAX_INTERVAL_S),
        (100_000, MIN_INTERVAL_S, MIN_INTERVAL_S),
    ],
)
def test_12_a_check_scan_that_finds_something_brings_the_next_one_nearer(
    merged: int, before_s: float, after_s: float
) -> None:
    guests = {"a": GIB}
    decision, state = decide_all(ALWAYS, snap(49, guests, full_scans=5), state=rested(before_s))
    assert decision.target == IDLE
    decision, state = decide_all(ALWAYS, snap(50, guests, full_scans=5), state=state)
    assert decision.reason.rule == "check_scan"
    decision, state = decide_all(ALWAYS, snap(52, guests, full_scans=6, pages_sharing=merged), state=state)
    assert decision.reason.rule == "check_scan"
    decision, state = decide_all(ALWAYS, snap(54, guests, full_scans=7, pages_sharing=merged), state=state)
    assert (decision.target, state.checks.interval_s) == (IDLE, after_s)


def test_12_a_clock_that_began_anew_puts_off_no_check_scan() -> None:
    state = replace(rested(300), taken_s=1e6, checks=replace(rested(300).checks, due_s=1e6 + 300))
    _, state = decide_all(ALWAYS, snap(10, {"a": GIB}, full_scans=5), state=state)
    assert state.checks.due_s is not None
    assert state.checks.due_s < 1000


def test_12_without_any_guest_a_check_scan_looks_for_memory_of_other_processes_one_batch_long_and_ever_later() -> None:
    """Memory that nothing told of must not wait for ever; where there is none, ksmd has nothing to scan."""
    state, at_s, began, scanned = AdaptiveState(), 0.0, [], 0
    while at_s < 86_400:
        decision, state = decide_all(ALWAYS, snap(at_s), state=state)
        if decision.reason.rule == "check_scan" and scanned == 0:
            began.append(round(at_s))
        scanned = scanned + 1 if decision.reason.rule == "check_scan" else 0
        assert scanned <= BATCH_S / MIN_WAIT_S
        at_s += decision.next_pass_s or 1
    assert began[:4] == [300, 902, 2104, 4506]
    assert state.checks.interval_s == MAX_INTERVAL_S


def test_9_where_ksm_knows_of_no_page_after_a_batch_there_is_no_backlog() -> None:
    """Guests that are all values out (nosharepages) are no backlog, and cause no four passes a second for ever."""
    guests = {"a": GIB, "b": GIB}
    decision, state = in_full_scan()
    rules = []
    for step in range(1, 400):
        decision, state = decide_all(ALWAYS, after(decision, snap(10 + step * MIN_WAIT_S, guests)), state=state)
        rules.append(decision.reason.rule)
    assert rules.index("empty") == round(BATCH_S / MIN_WAIT_S) - 1
    assert set(rules[rules.index("empty") + 1 :]) == {"idle"}
    assert (decision.target, state.backlog.new_kib, state.backlog.scanned_once_kib) == (IDLE, 0, 0)
    assert decision.reason.text == "no backlog, and KSM knows of no page that may merge, ksmd idle"
    decision, state = decide_all(ALWAYS, *(snap(at, {**guests, "c": GIB}) for at in (110, 115, 125)), state=state)
    assert decision.reason.rule == "full_scan", "one more guest may be one that can merge"


@pytest.mark.parametrize(
    "sign", [{"pages_volatile": 1}, {"pages_scanned": 1}, {"full_scans": 1}, {"ksmd_cpu_seconds": 2.5}]
)
def test_9_a_full_scan_that_has_got_anywhere_is_not_empty(sign: Mapping[str, float]) -> None:
    decision, state = in_full_scan()
    decision, state = decide_all(ALWAYS, after(decision, snap(13, {"a": GIB, "b": GIB}, **sign)), state=state)
    assert decision.reason.rule == "full_scan"


# Rule 3, of other processes


def resting() -> AdaptiveState:
    return replace(rested(300), checks=replace(rested(300).checks, due_s=1e4))


def test_3_memory_of_other_processes_is_backlog_as_guests_is() -> None:
    seen = [
        with_other_processes(snap(at, {"a": GIB}, full_scans=5), kib) for at, kib in ((60, 0), (70, GIB), (81, GIB))
    ]
    decision, state = decide_all(ALWAYS, *seen, state=resting())
    assert (state.guests_kib[OTHER_PROCESSES], state.backlog.new_kib) == (GIB, GIB)
    assert decision.reason.rule == "wait"
    assert decision.reason.numbers["other_processes_kib"] == GIB
    decision, state = decide_all(ALWAYS, with_other_processes(snap(90, {"a": GIB}, full_scans=5), GIB), state=state)
    assert decision.reason.rule == "full_scan"


def test_3_other_processes_that_end_leave_no_backlog_and_are_no_start_of_a_guest() -> None:
    seen = [
        with_other_processes(snap(at, {"a": GIB}, full_scans=5), kib) for at, kib in ((60, None), (70, GIB), (71, 0))
    ]
    _, state = decide_all(ALWAYS, *seen, state=resting())
    assert state.arrivals.start_s is None
    assert state.guests_kib[OTHER_PROCESSES] == 0
    _, state = decide_all(ALWAYS, with_other_processes(snap(72, {"a": GIB}, full_scans=5), None), state=state)
    assert OTHER_PROCESSES not in state.guests_kib, "where it can no longer be read it is not guessed"


def test_3_one_full_scan_takes_other_processes_that_ended_out_of_ksm_s_bookkeeping() -> None:
    state = replace(resting(), guests_kib={"a/1": GIB, OTHER_PROCESSES: GIB})
    decision, state = decide_all(
        ALWAYS, with_other_processes(snap(60, {"a": GIB}, full_scans=5), GIB // 2), state=state
    )
    assert (state.backlog.exited_kib, state.backlog.new_kib) == (GIB // 2, 0)
    decision, state = decide_all(
        ALWAYS, with_other_processes(snap(80, {"a": GIB}, full_scans=5), GIB // 2), state=state
    )
    assert (decision.reason.rule, state.backlog.exited_kib) == ("full_scan", 0)


def test_3_how_much_is_of_other_processes_is_said() -> None:
    state = replace(resting(), guests_kib={"a/1": GIB, OTHER_PROCESSES: GIB})
    decision, _ = decide_all(ALWAYS, with_other_processes(snap(60, {"a": GIB}, full_scans=5), GIB), state=state)
    assert decision.reason.text == "all 2.0 GiB scanned, 1.0 GiB of it of other processes, ksmd idle"


def test_12_a_check_scan_covers_other_processes_too() -> None:
    state = replace(rested(300), guests_kib={})
    decision, _ = decide_all(ALWAYS, snap(60, full_scans=5, pages_unshared=1000), state=state)
    assert decision.reason.rule == "check_scan"


def test_a_settled_host_is_left_in_peace_until_its_check_scan() -> None:
    guests = {"a": GIB}
    state = replace(rested(300), checks=replace(rested(300).checks, due_s=1000))
    for at_s in range(10, 1000, 10):
        decision, state = decide_all(ALWAYS, snap(at_s, guests, full_scans=5), state=state)
        assert decision.target == IDLE


@pytest.mark.parametrize(
    ("key", "shared", "target"), [("keep", 0, None), ("never", 0, 0), ("never", 5, None), ("always", 5, 1)]
)
def test_merge_across_nodes_waits_until_nothing_is_shared(key: str, shared: int, target: int | None) -> None:
    policy = AdaptivePolicy(params=AdaptiveParams(merge_across_nodes=key))  # type: ignore[arg-type]  # of the table
    decision, _ = decide_all(policy, snap(0, {"a": GIB}, pages_shared=shared))
    assert decision.target.merge_across_nodes == target
    assert ("merge_across_nodes waits" in decision.reason.text) == (key == "never" and shared > 0)


def test_a_merge_across_nodes_that_the_kernel_has_not_waits_for_nothing() -> None:
    policy = AdaptivePolicy(params=AdaptiveParams(merge_across_nodes="never"))
    seen = snap(0, {"a": GIB}, pages_shared=7)
    settings = replace(seen.ksm.settings, merge_across_nodes=None)
    decision, _ = policy.decide(replace(seen, ksm=replace(seen.ksm, settings=settings)), AdaptiveState(), TIMER)
    assert decision.target.merge_across_nodes == 0, "so that the pass says once that it is not offered"
    assert "waits" not in decision.reason.text


# What would change the decision: tests/property/test_thresholds.py tries whether it is true


Story = tuple[AdaptivePolicy, Snapshot, AdaptiveState]
"""A policy that is about to decide."""


def stories() -> dict[str, Story]:
    """One for each rule."""
    guests = {"a": GIB, "b": GIB}
    _, scanning = in_full_scan()
    _, started = decide_all(ALWAYS, snap(0, guests))
    _, waiting = decide_all(ALWAYS, snap(3, guests), state=started)
    covered = replace(
        scanning, scans=replace(scanning.scans, current=None), backlog=Backlog(), checks=CheckScans(due_s=10)
    )
    return {
        "off": (ALWAYS, snap(20, guests, run=0), scanning),
        "disengaged": (AUTO, snap(0, guests), AdaptiveState()),
        "idle": (ALWAYS, snap(20, {"a": GIB}, full_scans=5), resting()),
        "wait": (ALWAYS, snap(3, guests), started),
        "full_scan": (ALWAYS, snap(10, guests), waiting),
        "check_scan": (ALWAYS, snap(20, guests, full_scans=2), covered),
        "stalled": (ALWAYS, snap(1000, guests, pages_unshared=1), scanning),
        "empty": (ALWAYS, snap(1000, guests), scanning),
    }


def thresholds(policy: AdaptivePolicy, snapshot: Snapshot, state: AdaptiveState) -> list[Threshold]:
    decision, state = policy.decide(snapshot, state, TIMER)
    return list(find_thresholds(policy, snapshot, state, decision))


@pytest.mark.parametrize(
    ("rule", "sentences"),
    [
        ("off", ["decides by memory when run of /sys/kernel/mm/ksm rises to 1; now 0"]),
        (
            "disengaged",
            [
                "engages when available memory falls to 12.8 GiB; now 40.0 GiB",
                "engages when what guests can grow to rises to 51.2 GiB; now 2.0 GiB",
            ],
        ),
        (
            "idle",
            [
                "begins a check scan in 9980 s, if nothing else changes",
                "plans a full scan after 4.0 MiB of new guest memory",
            ],
        ),
        ("wait", ["begins a full scan in 4 s, if nothing else changes"]),
        (
            "full_scan",
            [
                "gives the full scan up in 2 s, if nothing else changes",
                "ends the full scan when full_scans rises to 1; now 0",
            ],
        ),
        (
            "check_scan",
            [
                "gives the full scan up in 120 s, if nothing else changes",
                "ends the full scan when full_scans rises to 4; now 2",
            ],
        ),
        ("stalled", ["begins a full scan in 4 s, if nothing else changes"]),
        (
            "empty",
            [
                "begins a check scan in 1468 s, if nothing else changes",
                "plans a full scan after 8.0 MiB of new guest memory",
            ],
        ),
    ],
)
def test_every_rule_says_what_would_change_it(rule: str, sentences: list[str]) -> None:
    policy, snapshot, state = stories()[rule]
    assert policy.decide(snapshot, state, TIMER)[0].reason.rule == rule
    assert [threshold.text for threshold in thresholds(policy, snapshot, state)] == sentences


def test_engaged_by_memory_it_says_when_it_disengages() -> None:
    found = thresholds(AUTO, with_available(snap(0, {"a": GIB}), 12 * GIB), AdaptiveState())
    (threshold,) = (one for one in found if one.then == "disengages")
    assert (threshold.quantity, threshold.value, threshold.present) == ("available_kib", 16 * GIB - 1, 12 * GIB)


def test_where_it_has_never_to_act_nothing_would_change_that() -> None:
    never = AdaptivePolicy(params=AdaptiveParams(engage="never"))
    assert thresholds(never, snap(0, {"a": GIB}), AdaptiveState()) == []


# The state as JSON


def test_a_state_survives_json() -> None:
    for _, state in (in_full_scan(), decide_all(ALWAYS, snap(0, {"a": GIB}))):
        assert load_state(json.loads(json.dumps(dump_state(state)))) == state


PARTS = {name: part for name, part in dump_state(AdaptiveState()).items() if isinstance(part, dict)}
NAMES = [*dump_state(AdaptiveState()), *(f"{name}.{field}" for name, part in PARTS.items() for field in part)]


@pytest.mark.parametrize("value", [None, "x", -1, 1e400, True, [], {}, [1], {"a": "b"}])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_past_is_a_value_error_or_a_state_that_can_be_decided_on(name: str, value: object) -> None:
    whole = dump_state(in_full_scan()[1])
    part, _, field = name.partition(".")
    inner = whole[part]
    values = {**whole, part: {**inner, field: value} if field and isinstance(inner, dict) else value}
    try:
        state = load_state(values)
    except ValueError:
        return
    ALWAYS.decide(snap(20, {"a": GIB}), state, TIMER)


@pytest.mark.parametrize("name", sorted(dump_state(AdaptiveState())))
def test_an_older_version_s_state_which_lacks_something_is_a_value_error(name: str) -> None:
    values = {key: value for key, value in dump_state(in_full_scan()[1]).items() if key != name}
    with pytest.raises(ValueError, match="AdaptiveState has other fields"):
        load_state(values)


@pytest.mark.parametrize(
    "change",
    [
        {"guests_kib": dict.fromkeys(map(str, range(MAX_MEMBERS + 1)), 1)},
        {"guests_kib": {"u" * (MAX_TEXT + 1): 1}},
        {"guests_kib": {1: 1}},
        {"backlog": {**dump(Backlog()), "settling": [(1.0, 1)] * (MAX_MEMBERS + 1)}},
        {"rule": "r" * (MAX_TEXT + 1)},
    ],
)
def test_a_state_beyond_any_size_is_a_value_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"guests_kib|settling|rule"):
        load_state({**dump_state(AdaptiveState()), **change})


@pytest.mark.parametrize(
    "values", [{}, {"npages": 1, "stepped_at_s": None}, {**dump_state(AdaptiveState()), "more": 1}]
)
def test_another_policy_s_state_is_a_value_error(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="AdaptiveState has other fields"):
        load_state(values)
