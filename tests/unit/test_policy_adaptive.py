"""The adaptive law, rule by rule, on snapshots made by hand; whole stories are told on the simulator.

Numbers in the names are the rules of virtksm/policy/adaptive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from virtksm.codec import MAX_MEMBERS, MAX_TEXT
from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Decision, Trigger, Triggers
from virtksm.model.snapshot import IDLE, Guest, HostMemory, KsmState, OtherProcesses, Settings, Snapshot, Source
from virtksm.policy.adaptive import YOUNG_WATCH_S, AdaptivePolicy
from virtksm.policy.adaptive.debt import OTHER_PROCESSES
from virtksm.policy.adaptive.engage import judge_need
from virtksm.policy.adaptive.growth import RECENT_S, Growth, judge_growth
from virtksm.policy.adaptive.rounds import (
    BATCH_S,
    CAUTIOUS_PAGE_COST_S,
    FED_SLEEPS_MS,
    LOOK_S,
    SLACK_S,
    begin_round,
    seconds_to_wait,
)
from virtksm.policy.adaptive.state import AdaptiveState, dump_state, load_state
from virtksm.policy.adaptive.yields import MAX_PROBE_S, MIN_PROBE_S

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


def with_others(snapshot: Snapshot, kib: int | None) -> Snapshot:
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


def in_round() -> tuple[Decision, AdaptiveState]:
    """Two guests of 1 GiB that settled, and the first round just begun at 10 s."""
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
    assert state.fresh_kib == GIB, "the debt is known, should it engage"


def test_2_less_memory_never_scans_slower() -> None:
    _, state = in_round()
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=50))
    batches = []
    for available_kib in (40 * GIB, 12 * GIB, 6 * GIB, GIB, 0):
        snapshot = with_available(snap(12, {"a": GIB, "b": GIB}, pages_scanned=100_000), available_kib)
        decision, _ = decide_all(policy, snapshot, state=state)
        batches.append(decision.target.pages_to_scan or 0)
    assert batches == sorted(batches)
    assert batches[-1] > batches[0]


def test_without_ksm_switched_on_nothing_is_scanned_and_the_debt_stays() -> None:
    guests = {"a": GIB}
    decision, state = decide_all(ALWAYS, *(snap(at, guests, run=0) for at in range(0, 100, 10)))
    assert (decision.target, decision.reason.rule) == (IDLE, "off")
    decision, _ = decide_all(ALWAYS, snap(101, guests), state=state)
    assert decision.reason.rule == "round"


# Rules 3 to 5


def test_3_a_guest_s_memory_is_debt_and_what_grows_is_more() -> None:
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(3, {"a": GIB}), snap(6, {"a": 2 * GIB}))
    assert (state.fresh_kib, state.young) == (GIB, ((6, GIB),))
    _, state = decide_all(AUTO, snap(9, {"a": 2 * GIB}), state=state)
    assert (state.fresh_kib, state.young) == (2 * GIB, ())


def test_3_another_run_of_a_guest_is_new_memory() -> None:
    again = snap(10, {"a": GIB})
    again = replace(again, guests=(replace(again.guests[0], domain_id=2),))
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(5, {"a": GIB}), again)
    assert (state.fresh_kib, state.young) == (0, ((10, GIB),)), "what the first run owed has gone with it"


def test_3_what_has_stopped_owes_nothing() -> None:
    _, state = decide_all(
        AUTO, snap(0, {"a": GIB, "b": 3 * GIB}), snap(3, {"a": GIB, "b": 3 * GIB}), snap(4, {"a": GIB})
    )
    assert state.fresh_kib == GIB
    _, state = decide_all(AUTO, snap(5), state=state)
    assert state.fresh_kib == 0


def test_3_what_stops_while_a_round_covers_it_owes_no_second_visit() -> None:
    guests = {"a": GIB, "b": 3 * GIB}
    known = {"pages_unshared": GIB, "full_scans": 5}
    state = AdaptiveState(
        taken_s=0, engaged=True, guests_kib={"a/1": GIB, "b/1": 3 * GIB}, fresh_kib=4 * GIB, full_scans=5
    )
    state = begin_round(snap(1, guests, **known), state)
    assert state.round is not None
    assert state.round.scanning_kib == 4 * GIB
    _, state = decide_all(
        ALWAYS, snap(2, {"a": GIB}, **known), snap(3, {"a": GIB}, **{**known, "full_scans": 6}), state=state
    )
    assert state.half_kib == GIB


@OF_ANY_PAGE_SIZE
def test_3_what_has_stopped_is_struck_off_ksmd_s_books_by_one_round(page_kib: int) -> None:
    """The kernel's counters tell of an ended guest until ksmd has come by."""
    known = {"pages_unshared": 2 * GIB // page_kib, "full_scans": 5, "page_kib": page_kib}
    state = AdaptiveState(taken_s=0, engaged=True, guests_kib={"a/1": GIB, "b/1": GIB}, full_scans=5, probe_due_s=1e6)
    state = replace(state, round_cost_s_per_kib=1e-6)
    decision, state = decide_all(ALWAYS, snap(1, {"a": GIB}, **known), state=state)
    assert (decision.reason.rule, state.gone_kib, state.fresh_kib) == ("wait", GIB, 0)
    decision, state = decide_all(ALWAYS, snap(60, {"a": GIB}, **known), state=state)
    assert (decision.reason.rule, state.gone_kib) == ("round", 0)
    struck_off = snap(62, {"a": GIB}, pages_unshared=GIB // page_kib, full_scans=6, page_kib=page_kib)
    decision, state = decide_all(ALWAYS, struck_off, state=state)
    assert (decision.reason.rule, decision.target) == ("rest", IDLE)


def test_3_what_ksmd_never_knew_has_not_to_be_struck_off() -> None:
    state = AdaptiveState(taken_s=0, engaged=True, guests_kib={"a/1": GIB, "b/1": GIB}, probe_due_s=1e6)
    decision, state = decide_all(ALWAYS, snap(1, {"a": GIB}), state=state)
    assert (decision.reason.rule, state.gone_kib) == ("rest", 0)


def test_3_a_guest_that_cannot_be_read_for_once_has_not_stopped() -> None:
    unread = snap(10, {"a": GIB})
    unread = replace(unread, guests=(replace(unread.guests[0], rss_kib=None),))
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(5, {"a": GIB}), unread, snap(11, {"a": GIB}))
    assert (state.fresh_kib, state.young) == (GIB, ())


@OF_ANY_PAGE_SIZE
def test_3_merges_that_were_broken_are_debt_but_not_those_of_a_guest_that_stopped(page_kib: int) -> None:
    guests = {"a": GIB, "b": GIB}
    covered = AdaptiveState(taken_s=0, guests_kib={"a/1": GIB, "b/1": GIB}, pages_sharing=1000, engaged=True)
    _, state = decide_all(ALWAYS, snap(1, guests, pages_sharing=400, page_kib=page_kib), state=covered)
    assert state.fresh_kib == 600 * page_kib
    counted = snap(1, guests, pages_sharing=400, cow_ksm=107, page_kib=page_kib)
    assert decide_all(ALWAYS, counted, state=replace(covered, cow_ksm=7))[1].fresh_kib == 100 * page_kib
    _, state = decide_all(ALWAYS, snap(1, {"a": GIB}, pages_sharing=400, page_kib=page_kib), state=covered)
    assert state.fresh_kib == 0


@pytest.mark.parametrize(("full_scans", "known", "fresh_kib"), [(5, 0, GIB), (5, 1000, 0), (None, 0, 0)])
def test_3_what_was_unmerged_is_owed_anew(full_scans: int | None, known: int, fresh_kib: int) -> None:
    """Whoever writes 2 to run has ksmd forget every page; before any round it knows of none either."""
    before = AdaptiveState(taken_s=0, engaged=True, guests_kib={"a/1": GIB}, full_scans=full_scans, probe_due_s=1e6)
    _, state = decide_all(ALWAYS, snap(1, {"a": GIB}, full_scans=5, pages_unshared=known), state=before)
    assert state.fresh_kib == fresh_kib


def test_5_debt_that_waits_adds_up() -> None:
    _, state = decide_all(AUTO, snap(0, {"a": GIB}), snap(2, {"a": GIB}), snap(12, {"a": GIB}))
    assert state.waited_kib_s == pytest.approx(10 * GIB)


# Rules 6 to 10


@pytest.mark.parametrize(
    ("appeared_kib", "growth"),
    [(0, Growth.SETTLED), (GIB // 512, Growth.SETTLED), (GIB // 32, Growth.STEADY), (GIB, Growth.BURST)],
)
def test_6_growth_is_judged_by_what_it_would_come_to(appeared_kib: int, growth: Growth) -> None:
    """A second's growth: a burst if two minutes of it would double the memory, steady if 40 s would the debt."""
    _, state = grown(appeared_kib)
    assert judge_growth(state) is growth


def grown(appeared_kib: int) -> tuple[Snapshot, AdaptiveState]:
    """A guest of 32 GiB that is covered but for half a GiB, and grows by so much now."""
    state = AdaptiveState(guests_kib={"old/1": 32 * GIB}, taken_s=0)
    settled, last = snap(9, {"old": 65 * GIB // 2}), snap(10, {"old": 65 * GIB // 2 + appeared_kib})
    return last, decide_all(AUTO, snap(0, {"old": 65 * GIB // 2}), settled, last, state=state)[1]


def filling(*rates_mib: int, old_kib: int = 0) -> Growth:
    """Judge guests that fill at so many MiB a second, one second after the other, looked at three times in each."""
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
    state = AdaptiveState(taken_s=10.0, guests_kib={"a/1": GIB}, burst_since_s=2.0, burst_at_s=10.0)
    assert decide_all(AUTO, snap(at_s, {"a": 2 * GIB}), state=state)[1].burst_since_s == since_s


def test_6_debt_waits_longer_while_more_is_to_come() -> None:
    waits_s = []
    for appeared_kib in (0, GIB // 32):
        last, state = grown(appeared_kib)
        waits_s.append(seconds_to_wait(last, state, judge_need(last, ALWAYS.params, was_engaged=True)))
    settled_s, steady_s = waits_s
    assert settled_s is not None
    assert steady_s is not None
    assert settled_s * 4 < steady_s


def waits_s(**changes: object) -> float:
    """Tell how long half a GiB of a guest of 32 GiB waits, with so much of the state changed."""
    last, state = grown(0)
    state = replace(state, **changes)  # type: ignore[arg-type]  # as in AdaptiveState
    wait_s = seconds_to_wait(last, state, judge_need(last, ALWAYS.params, was_engaged=True))
    assert wait_s is not None
    return wait_s


def test_6_growth_waits_longer_the_less_of_it_has_merged_lately() -> None:
    series = [waits_s(yielded=share) for share in (1.0, 0.5, 0.1, 0.0)]
    assert series == sorted(series)
    assert series[1] < series[2] < series[3] < 12 * series[1], "it comes back carefully, but it does"


def test_6_guests_that_start_are_given_the_benefit_of_the_doubt() -> None:
    assert waits_s(yielded=0.0, has_starts=True) == waits_s(yielded=0.5)


@pytest.mark.parametrize(("merged_kib", "yielded"), [(0, 0.25), (GIB // 2, 0.5), (GIB, 0.75), (3 * GIB, 0.75)])
def test_6_what_merged_of_the_debt_that_was_paid_is_learnt(merged_kib: int, yielded: float) -> None:
    assert half_paid(merged_kib, pair_left=1).yielded == yielded


def test_6_a_pair_s_first_round_teaches_nothing() -> None:
    """Most of what it merges is of what it visits for the first time."""
    assert half_paid(GIB, pair_left=0).yielded == AdaptiveState().yielded


@OF_ANY_PAGE_SIZE
def test_7_what_a_round_merged_counts_in_memory(page_kib: int) -> None:
    assert half_paid(GIB, pair_left=1, page_kib=page_kib).gained_kib == GIB


def half_paid(merged_kib: int, *, pair_left: int, page_kib: int = 4) -> AdaptiveState:
    """The state after a round that paid a GiB of half debt, and merged so much."""
    guests = {"a": GIB}
    before = AdaptiveState(
        taken_s=0,
        engaged=True,
        guests_kib={"a/1": GIB},
        full_scans=5,
        half_kib=GIB,
        pair_left=pair_left,
        probe_due_s=1e6,
    )
    began = begin_round(snap(1, guests, full_scans=5, page_kib=page_kib), before)
    ended = snap(2, guests, full_scans=6, pages_sharing=merged_kib // page_kib, page_kib=page_kib)
    return decide_all(ALWAYS, ended, state=began)[1]


@pytest.mark.parametrize(("cpu_s", "reckoned_s"), [(4.0, 4.0), (1.0, 2.0 - 0.3)])
def test_6_a_round_is_reckoned_as_dear_as_the_last_dear_one(cpu_s: float, reckoned_s: float) -> None:
    guests = {"a": GIB}
    before = AdaptiveState(
        taken_s=0, engaged=True, guests_kib={"a/1": GIB}, full_scans=5, round_cost_s_per_kib=2 / GIB, probe_due_s=1e6
    )
    began = begin_round(snap(1, guests, full_scans=5), before)
    _, state = decide_all(ALWAYS, snap(9, guests, full_scans=6, ksmd_cpu_seconds=cpu_s), state=began)
    assert state.round_cost_s_per_kib == pytest.approx(reckoned_s / GIB)


def test_6_a_burst_is_waited_for_and_its_end_is_not_missed() -> None:
    state = AdaptiveState()
    for step in range(20):
        decision, state = decide_all(ALWAYS, snap(step / 2, {"a": GIB + step * GIB // 8}), state=state)
        assert decision.target == IDLE
        assert (decision.next_pass_s or 9) <= YOUNG_WATCH_S
    decision, state = decide_all(ALWAYS, snap(10.0, {"a": GIB + 19 * GIB // 8}), state=state)
    assert decision.reason.rule == "wait"
    assert decision.next_pass_s == pytest.approx(RECENT_S - 0.5)
    decision, _ = decide_all(ALWAYS, snap(10.5, {"a": GIB + 19 * GIB // 8}), state=state)
    assert decision.reason.rule == "round"


def series(guests: int, every_s: float) -> list[str]:
    """Guests of 1 GiB appear at once, one after the other; return the rules of the passes."""
    state, rules = AdaptiveState(), []
    for tick in range(int(guests * every_s * 2)):
        running = {f"g{number}": GIB for number in range(1 + int(tick / 2 / every_s))}
        decision, state = decide_all(ALWAYS, snap(tick / 2, running), state=state)
        rules.append(decision.reason.rule)
    return rules


def test_6_in_a_series_of_starts_the_next_guest_is_waited_for() -> None:
    """And a guest that starts alone is covered some seconds later."""
    assert "round" not in series(4, 4.0)
    assert "round" in series(1, 16.0)


def test_6_guests_that_are_there_when_it_begins_have_not_just_started() -> None:
    state = AdaptiveState()
    for tick in range(20):
        running = {"a": GIB} if tick < 8 else {"a": GIB, "b": GIB}
        _, state = decide_all(ALWAYS, snap(tick / 2, running), state=state)
    assert (state.start_s, state.interval_s) == (4.0, 0.0)


def test_6_after_a_series_its_debt_is_covered() -> None:
    state = AdaptiveState(taken_s=0)
    for tick in range(20):
        running = {"a": GIB} if tick < 8 else {"a": GIB, "b": GIB}
        decision, state = decide_all(ALWAYS, snap(tick / 2, running), state=state)
    assert decision.reason.rule == "round"
    assert state.round is not None
    assert state.round.began.taken_s == pytest.approx(4 + 4 * 1.05, abs=0.5)


def test_6_a_little_debt_beside_much_memory_pays_for_no_round() -> None:
    state = AdaptiveState(taken_s=0, guests_kib={"a/1": 32 * GIB}, engaged=True, probe_due_s=10_000)
    decision, _ = decide_all(ALWAYS, *(snap(at, {"a": 32 * GIB + 1024}) for at in range(0, 9000, 10)), state=state)
    assert (decision.target, decision.reason.rule) == (IDLE, "rest")


def test_6_an_explicit_retune_waits_for_nothing() -> None:
    decision, _ = decide_all(ALWAYS, snap(0, {"a": GIB}), snap(2, {"a": GIB}), triggers=RETUNE)
    assert decision.reason.rule == "round"


def test_7_where_ksm_knows_pages_the_first_round_takes_two_full_scans_and_later_ones_one() -> None:
    """Nobody knows where ksmd's cursor stands then; a batch ends where a full scan does."""
    guests = {"a": GIB, "b": GIB}

    def seen(at_s: float, full_scans: int) -> Snapshot:
        return snap(at_s, guests, full_scans=full_scans, pages_unshared=1)

    decision, state = decide_all(ALWAYS, seen(0, 0), seen(3, 0), seen(10, 0))
    assert decision.reason.rule == "round"
    decision, state = decide_all(ALWAYS, seen(12, 1), state=state)
    assert (decision.reason.rule, state.half_kib) == ("round", 0)
    decision, state = decide_all(ALWAYS, seen(16, 2), state=state)
    assert (state.fresh_kib, state.half_kib) == (0, 2 * GIB)
    decision, state = decide_all(ALWAYS, seen(40, 2), state=state)
    assert decision.reason.rule == "round"
    decision, state = decide_all(ALWAYS, seen(44, 3), state=state)
    assert (state.fresh_kib, state.half_kib, decision.reason.rule) == (0, 0, "rest")
    assert decision.target == IDLE


@pytest.mark.parametrize(("found", "more_scans"), [((0, 10_000), 1), ((123, 45), 2), ((5000, 60_001), 2)])
def test_7_where_somebody_else_had_ksmd_scan_nobody_knows_where_its_cursor_is(
    found: tuple[int, int], more_scans: int
) -> None:
    """So after an agent that gave the administrator's settings back when it stopped."""
    guests = {"a": GIB, "b": GIB}
    before = AdaptiveState(taken_s=0, engaged=True, guests_kib={"a/1": GIB}, full_scans=5, probe_due_s=1e6)
    again = snap(1, guests, full_scans=5)
    settings = replace(again.ksm.settings, pages_to_scan=found[0], sleep_millisecs=found[1])
    again = replace(again, ksm=replace(again.ksm, settings=settings))
    _, state = decide_all(ALWAYS, again, *(snap(at, guests, full_scans=5) for at in range(2, 20)), state=before)
    assert state.round is not None
    assert state.round.ends_at_full_scans == 5 + more_scans


def test_7_a_round_that_ends_at_settings_of_somebody_else_leaves_the_cursor_anywhere() -> None:
    guests = {"a": GIB}
    before = AdaptiveState(taken_s=0, engaged=True, guests_kib={"a/1": GIB}, full_scans=5, probe_due_s=1e6)
    began = begin_round(snap(1, guests, full_scans=5), before)
    for sleep_millisecs, known in ((FED_SLEEPS_MS[0], 8), (45, None)):
        ended = snap(2, guests, full_scans=8)
        settings = replace(ended.ksm.settings, pages_to_scan=123, sleep_millisecs=sleep_millisecs)
        _, state = decide_all(ALWAYS, replace(ended, ksm=replace(ended.ksm, settings=settings)), state=began)
        assert state.full_scans == known


def test_7_where_ksm_knows_no_page_the_first_round_is_one_full_scan() -> None:
    _, state = in_round()
    assert state.round is not None
    assert state.round.ends_at_full_scans == 1


def test_4_a_round_covers_what_is_young_when_it_begins() -> None:
    """It is visited like all else; what matters is that waiting for it begins nothing."""
    state = AdaptiveState(guests_kib={"a/1": 16 * GIB}, taken_s=0, round_cost_s_per_kib=1e-9)
    grown = {"a": 32 * GIB + GIB // 64}
    _, state = decide_all(ALWAYS, snap(1, {"a": 32 * GIB}), snap(9, {"a": 32 * GIB}), snap(20, grown), state=state)
    assert state.round is not None
    assert (state.round.scanning_kib, state.young, state.fresh_kib) == (16 * GIB + GIB // 64, (), 0)


def test_7_what_appears_during_a_first_round_has_its_first_visit_in_the_second_and_then_waits_for_one() -> None:
    _, state = in_round()
    grown = {"a": GIB, "b": 2 * GIB}
    _, state = decide_all(ALWAYS, snap(11, grown), snap(40, grown, full_scans=2), state=state)
    assert state.half_kib == 2 * GIB
    assert state.round is not None, "the second one begins at once"
    assert (state.round.scanning_kib, state.fresh_kib) == (GIB, 0)
    waits, state = decide_all(ALWAYS, snap(50, grown, full_scans=3), state=state)
    assert (state.round, state.half_kib, state.fresh_kib) == (None, GIB, 0)
    assert (waits.reason.rule, waits.target) == ("wait", IDLE)
    _, state = decide_all(ALWAYS, snap(60, grown, full_scans=3), state=state)
    assert state.round is not None
    done, state = decide_all(ALWAYS, snap(70, grown, full_scans=4), state=state)
    assert (done.reason.rule, state.half_kib, state.fresh_kib) == ("rest", 0, 0), "one round more, no pair"


def test_7_rounds_come_to_an_end_while_memory_goes_on_growing() -> None:
    """What a second round visits for the first time waits, or each would be owed another at once."""
    state, rules, full_scans = AdaptiveState(), [], 0
    for second in range(400):
        full_scans += state.round is not None
        grown = snap(
            float(second),
            {"a": 8 * GIB + second * GIB // 16},
            full_scans=full_scans,
            pages_unshared=1,
            ksmd_cpu_seconds=2.0 * full_scans,
        )
        decision, state = decide_all(ALWAYS, grown, state=state)
        rules.append(decision.reason.rule)
    assert 10 < rules.count("round") < len(rules) / 4


def test_8_every_tick_grants_one_batch_by_changing_the_sleep() -> None:
    first, state = in_round()
    guests = {"a": GIB, "b": GIB}
    scanned = first.target.pages_to_scan or 0
    second, state = decide_all(ALWAYS, after(first, snap(11, guests, pages_scanned=scanned)), state=state)
    scanned += second.target.pages_to_scan or 0
    third, _ = decide_all(ALWAYS, after(second, snap(14, guests, pages_scanned=scanned)), state=state)
    sleeps = [decision.target.sleep_millisecs for decision in (first, second, third)]
    assert set(sleeps) == set(FED_SLEEPS_MS)
    assert sleeps[0] == sleeps[2] != sleeps[1]
    assert all(sleep is not None and sleep >= 60_000 for sleep in sleeps), "without ticks: one batch a minute"


def test_8_a_batch_that_still_runs_is_left_to_end() -> None:
    """Longer than was reckoned, too, as long as ksmd works; whether its visits are counted as it goes or at the end."""
    guests = {"a": GIB, "b": GIB}
    first, state = in_round()
    pages = first.target.pages_to_scan or 0
    for at_s, scanned in ((10.2, 0), (10.2, pages - 1), (11, 0), (11, pages - 1), (60, 0)):
        busy = snap(at_s, guests, ksmd_cpu_seconds=(at_s - 10) * 0.95, pages_scanned=scanned)
        decision, _ = decide_all(ALWAYS, after(first, busy), state=state)
        assert decision.target == replace(first.target, merge_across_nodes=None)
        assert LOOK_S <= (decision.next_pass_s or 0) <= LOOK_S + SLACK_S


def test_8_a_batch_is_over_where_a_full_scan_ends() -> None:
    guests = {"a": GIB, "b": GIB}
    known = {"pages_unshared": 1}
    first, state = decide_all(ALWAYS, *(snap(at_s, guests, **known) for at_s in (0, 3, 10)))
    ended = snap(10.3, guests, pages_scanned=5, full_scans=1, ksmd_cpu_seconds=0.1, **known)
    decision, state = decide_all(ALWAYS, after(first, ended), state=state)
    assert state.round is not None
    assert decision.target.sleep_millisecs != first.target.sleep_millisecs


def test_8_a_grant_that_got_lost_is_repeated() -> None:
    first, state = in_round()
    idle = snap(12, {"a": GIB, "b": GIB}, ksmd_cpu_seconds=0.1, pages_scanned=5)
    decision, _ = decide_all(ALWAYS, after(first, idle), state=state)
    assert decision.target.sleep_millisecs != first.target.sleep_millisecs


def test_8_without_the_kernel_s_count_of_visits_a_batch_has_the_time_it_is_meant_for() -> None:
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
    first, state = in_round()
    measured = snap(20, guests, pages_scanned=100_000, ksmd_cpu_seconds=0.5)
    for percent in (10, 50, 100):
        policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=percent))
        decision, _ = decide_all(policy, after(first, measured), state=state)
        assert decision.target.pages_to_scan == pytest.approx(200_000 * BATCH_S * percent / 100, rel=0.01)


def test_8_a_cheap_batch_makes_the_next_one_no_larger_than_is_safe() -> None:
    guests = {"a": GIB, "b": GIB}
    first, state = in_round()
    cheap = snap(20, guests, pages_scanned=400_000, ksmd_cpu_seconds=0.1)
    decision, _ = decide_all(ALWAYS, after(first, cheap), state=state)
    assert decision.target.pages_to_scan == pytest.approx(BATCH_S / CAUTIOUS_PAGE_COST_S, rel=0.01)


def test_9_a_round_that_does_not_get_on_is_given_up() -> None:
    _, state = in_round()
    decision, state = decide_all(ALWAYS, snap(1000, {"a": GIB, "b": GIB}, pages_volatile=1), state=state)
    assert (decision.reason.rule, decision.target, state.round) == ("stalled", IDLE, None)
    assert state.fresh_kib == 2 * GIB, "the debt is owed still"


@OF_ANY_PAGE_SIZE
def test_10_a_round_that_skipped_most_pages_pays_for_no_second_visit(page_kib: int) -> None:
    guests = {"a": GIB, "b": GIB}
    _, state = in_round()
    first = (snap(at_s, guests, full_scans=2, page_kib=page_kib) for at_s in (20, 40))
    _, state = decide_all(ALWAYS, *first, state=state)
    alone = {"pages_unshared": 2_400_000 // page_kib, "page_kib": page_kib}
    narrow = snap(44, guests, full_scans=3, pages_skipped=240_000 // page_kib, **alone)
    _, tail = decide_all(ALWAYS, narrow, state=state)
    assert (tail.half_kib, tail.narrow_rounds) == (2 * GIB, 1)
    wide = snap(44, guests, full_scans=3, pages_skipped=80_000 // page_kib, **alone)
    _, done = decide_all(ALWAYS, wide, state=state)
    assert (done.half_kib, done.narrow_rounds) == (0, 0)


def narrow_end(*, merged_kib: int = 0, **state: int) -> AdaptiveState:
    """The state after a narrow round with 1 GiB half paid, which merged so much."""
    guests = {"a": 2 * GIB}
    before = AdaptiveState(
        taken_s=0, engaged=True, guests_kib={"a/1": 2 * GIB}, full_scans=5, half_kib=GIB, probe_due_s=1e6
    )
    before = replace(before, **state)  # type: ignore[arg-type]  # whole numbers alone
    began = begin_round(snap(1, guests, full_scans=5), before)
    ended = snap(2, guests, full_scans=6, pages_skipped=200_000, pages_unshared=500_000, pages_sharing=merged_kib // 4)
    return decide_all(ALWAYS, ended, state=began)[1]


@pytest.mark.parametrize(
    ("state", "half_kib"),
    [
        ({}, GIB),
        ({"narrow_rounds": 2}, GIB),
        ({"narrow_rounds": 3}, 0),
        ({"narrow_rounds": 3, "tail_gained_kib": GIB // 16}, GIB),
        ({"narrow_rounds": 12, "tail_gained_kib": GIB // 16}, GIB),
        ({"narrow_rounds": 13, "tail_gained_kib": GIB // 16}, 0),
    ],
)
def test_10_it_looks_for_hidden_twins_for_as_long_as_it_finds_them(state: dict[str, int], half_kib: int) -> None:
    assert narrow_end(**state).half_kib == half_kib


def test_10_where_most_of_the_debt_has_merged_it_looks_for_no_hidden_twins() -> None:
    assert narrow_end(merged_kib=GIB).half_kib == 0


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
def test_10_what_was_left_of_split_huge_pages_is_visited_again(
    split: int | None, volatile_kib: int, retries: int, left_kib: int
) -> None:
    """ksmd splits a huge page to merge a part of it; the others may be in neither tree after their second visit."""
    guests = {"a": GIB}
    before = AdaptiveState(
        taken_s=0, engaged=True, guests_kib={"a/1": GIB}, full_scans=5, half_kib=GIB, probe_due_s=1e6
    )
    counted = None if split is None else 50
    began = begin_round(snap(1, guests, full_scans=5, thp_split_page=counted), replace(before, retries=retries))
    splits = None if split is None else 50 + split
    ended = snap(2, guests, full_scans=6, thp_split_page=splits, pages_volatile=volatile_kib // 4)
    _, state = decide_all(ALWAYS, ended, state=began)
    assert state.half_kib == left_kib


def test_10_split_pages_of_which_a_retry_has_merged_an_eighth_are_left_alone() -> None:
    before = AdaptiveState(
        taken_s=0, engaged=True, guests_kib={"a/1": GIB}, full_scans=5, half_kib=GIB, probe_due_s=1e6
    )
    began = begin_round(snap(1, {"a": GIB}, full_scans=5, thp_split_page=50), replace(before, retries=1))
    for merged_kib, left_kib in ((GIB // 8, 0), (GIB // 8 - 4, GIB)):
        counters = {"pages_volatile": GIB // 4, "pages_sharing": merged_kib // 4, "thp_split_page": 50}
        ended = snap(2, {"a": GIB}, full_scans=6, **counters)
        assert decide_all(ALWAYS, ended, state=began)[1].half_kib == left_kib


def test_10_narrow_rounds_come_to_an_end() -> None:
    guests = {"a": GIB, "b": GIB}
    _, state = in_round()
    full_scans, skipped = 2, 0
    for step in range(40):
        at_s = 20 + step * 100.0
        _, state = decide_all(ALWAYS, snap(at_s, guests, full_scans=full_scans, pages_skipped=skipped), state=state)
        full_scans, skipped = full_scans + 1, skipped + 400_000
    assert state.half_kib == 0


# Rules 11 and 12


def thrash(state: AdaptiveState, number: int) -> AdaptiveState:
    """End a round that merged much, break all of that, and wait for the next to begin."""
    at_s, cpu_s, guests = state.taken_s or 0.0, 2.0 * number, {"a": GIB, "b": GIB}
    merged = snap(at_s, guests, full_scans=1 + number, pages_sharing=100_000, ksmd_cpu_seconds=cpu_s)
    _, state = decide_all(ALWAYS, merged, state=state)
    while state.round is None:
        at_s += 10
        broken = snap(at_s, guests, full_scans=1 + number, ksmd_cpu_seconds=cpu_s)
        _, state = decide_all(ALWAYS, broken, state=state)
    return state


def test_11_merges_that_do_not_last_make_rounds_rarer() -> None:
    _, state = in_round()
    backoffs, waits_s = [], []
    for number in range(1, 10):
        began_s = state.taken_s or 0.0
        state = thrash(state, number)
        backoffs.append(state.backoff)
        waits_s.append((state.taken_s or 0.0) - began_s)
    assert backoffs == [2**number for number in range(9)], "the first one was owed, whatever became of its merges"
    assert waits_s[-1] >= 4 * waits_s[1]


def test_11_writes_to_merged_pages_are_noticed_at_once_where_the_kernel_counts_them() -> None:
    """pages_sharing learns of them only when ksmd comes by, which it does not while it is parked."""
    guests = {"a": GIB, "b": GIB}
    state = AdaptiveState(taken_s=0, engaged=True, guests_kib={"a/1": GIB, "b/1": GIB}, gained_kib=400_000)
    state = replace(state, pages_sharing=100_000, cow_ksm=7, round_cost_s_per_kib=1e-6, full_scans=2, probe_due_s=1e6)
    _, state = decide_all(ALWAYS, snap(1, guests, pages_sharing=100_000, cow_ksm=100_007), state=state)
    assert (state.fresh_kib, state.broken_kib, state.cow_ksm) == (400_000, 400_000, 100_007)
    decision, state = decide_all(ALWAYS, snap(30, guests, pages_sharing=100_000, cow_ksm=100_007), state=state)
    assert state.backoff == 2
    assert "merges do not last" in decision.reason.text


def test_11_merges_that_last_bring_it_back() -> None:
    guests = {"a": GIB, "b": GIB}
    _, state = in_round()
    state = replace(state, backoff=16)
    _, state = decide_all(
        ALWAYS,
        *(snap(at_s, guests, full_scans=2, pages_sharing=100_000, ksmd_cpu_seconds=2.0) for at_s in (12, 1000)),
        state=state,
    )
    assert state.backoff == 8


def rested(interval_s: float) -> AdaptiveState:
    return AdaptiveState(
        taken_s=0, guests_kib={"a/1": GIB}, pages_sharing=0, engaged=True, full_scans=5, probe_due_s=50,
        probe_interval_s=interval_s,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("merged", "before_s", "after_s"),
    [
        (0, 300, 600),
        (100_000, 300, 150),
        (0, MAX_PROBE_S, MAX_PROBE_S),
        (100_000, MIN_PROBE_S, MIN_PROBE_S),
    ],
)
def test_12_a_probe_that_finds_something_brings_the_next_one_nearer(
    merged: int, before_s: float, after_s: float
) -> None:
    guests = {"a": GIB}
    decision, state = decide_all(ALWAYS, snap(49, guests, full_scans=5), state=rested(before_s))
    assert decision.target == IDLE
    decision, state = decide_all(ALWAYS, snap(50, guests, full_scans=5), state=state)
    assert decision.reason.rule == "probe"
    decision, state = decide_all(ALWAYS, snap(52, guests, full_scans=6, pages_sharing=merged), state=state)
    assert decision.reason.rule == "probe"
    decision, state = decide_all(ALWAYS, snap(54, guests, full_scans=7, pages_sharing=merged), state=state)
    assert (decision.target, state.probe_interval_s) == (IDLE, after_s)


def test_12_a_clock_that_began_anew_puts_off_no_probe() -> None:
    state = replace(rested(300), taken_s=1e6, probe_due_s=1e6 + 300)
    _, state = decide_all(ALWAYS, snap(10, {"a": GIB}, full_scans=5), state=state)
    assert state.probe_due_s is not None
    assert state.probe_due_s < 1000


def test_12_without_any_guest_a_probe_looks_for_memory_of_others_one_batch_long_and_ever_later() -> None:
    """Memory that nobody told of must not wait for ever; where there is none, ksmd has nothing to visit."""
    state, at_s, began, scanned = AdaptiveState(), 0.0, [], 0
    while at_s < 86_400:
        decision, state = decide_all(ALWAYS, snap(at_s), state=state)
        if decision.reason.rule == "probe" and scanned == 0:
            began.append(round(at_s))
        scanned = scanned + 1 if decision.reason.rule == "probe" else 0
        assert scanned <= BATCH_S / LOOK_S
        at_s += decision.next_pass_s or 1
    assert began[:4] == [300, 902, 2104, 4506]
    assert state.probe_interval_s == MAX_PROBE_S


def test_9_where_ksm_knows_of_no_page_after_a_batch_nothing_is_owed() -> None:
    """Guests that are all kept out (nosharepages) owe nothing, and are not looked at four times a second for ever."""
    guests = {"a": GIB, "b": GIB}
    decision, state = in_round()
    rules = []
    for tick in range(1, 400):
        decision, state = decide_all(ALWAYS, after(decision, snap(10 + tick * LOOK_S, guests)), state=state)
        rules.append(decision.reason.rule)
    assert rules.index("empty") == round(BATCH_S / LOOK_S) - 1
    assert set(rules[rules.index("empty") + 1 :]) == {"rest"}
    assert (decision.target, state.fresh_kib, state.half_kib) == (IDLE, 0, 0)
    assert decision.reason.text == "nothing is owed, and KSM knows of no page that may merge: parked"
    decision, state = decide_all(ALWAYS, *(snap(at, {**guests, "c": GIB}) for at in (110, 115, 125)), state=state)
    assert decision.reason.rule == "round", "one more guest may be one that can merge"


@pytest.mark.parametrize(
    "sign", [{"pages_volatile": 1}, {"pages_scanned": 1}, {"full_scans": 1}, {"ksmd_cpu_seconds": 2.5}]
)
def test_9_a_round_that_has_got_anywhere_is_not_empty(sign: Mapping[str, float]) -> None:
    decision, state = in_round()
    decision, state = decide_all(ALWAYS, after(decision, snap(13, {"a": GIB, "b": GIB}, **sign)), state=state)
    assert decision.reason.rule == "round"


# Rule 3, of others


def resting() -> AdaptiveState:
    return replace(rested(300), probe_due_s=1e4)


def test_3_memory_of_others_is_debt_as_guests_is() -> None:
    looks = [with_others(snap(at, {"a": GIB}, full_scans=5), kib) for at, kib in ((60, 0), (70, GIB), (81, GIB))]
    decision, state = decide_all(ALWAYS, *looks, state=resting())
    assert (state.guests_kib[OTHER_PROCESSES], state.fresh_kib) == (GIB, GIB)
    assert decision.reason.rule == "wait"
    assert decision.reason.numbers["other_processes_kib"] == GIB
    decision, state = decide_all(ALWAYS, with_others(snap(90, {"a": GIB}, full_scans=5), GIB), state=state)
    assert decision.reason.rule == "round"


def test_3_others_that_end_owe_nothing_and_are_no_start_of_a_guest() -> None:
    looks = [with_others(snap(at, {"a": GIB}, full_scans=5), kib) for at, kib in ((60, None), (70, GIB), (71, 0))]
    _, state = decide_all(ALWAYS, *looks, state=resting())
    assert state.start_s is None
    assert state.guests_kib[OTHER_PROCESSES] == 0
    _, state = decide_all(ALWAYS, with_others(snap(72, {"a": GIB}, full_scans=5), None), state=state)
    assert OTHER_PROCESSES not in state.guests_kib, "where it can no longer be read it is not guessed"


def test_3_what_others_that_ended_have_left_in_ksmds_books_is_owed_one_round() -> None:
    state = replace(resting(), guests_kib={"a/1": GIB, OTHER_PROCESSES: GIB})
    decision, state = decide_all(ALWAYS, with_others(snap(60, {"a": GIB}, full_scans=5), GIB // 2), state=state)
    assert (state.gone_kib, state.fresh_kib) == (GIB // 2, 0)
    decision, state = decide_all(ALWAYS, with_others(snap(80, {"a": GIB}, full_scans=5), GIB // 2), state=state)
    assert (decision.reason.rule, state.gone_kib) == ("round", 0)


def test_3_how_much_is_others_is_said() -> None:
    state = replace(resting(), guests_kib={"a/1": GIB, OTHER_PROCESSES: GIB})
    decision, _ = decide_all(ALWAYS, with_others(snap(60, {"a": GIB}, full_scans=5), GIB), state=state)
    assert decision.reason.text == "all of 2.0 GiB, 1.0 GiB of it of others than guests, is covered: parked"


def test_12_memory_of_others_is_probed_too() -> None:
    state = replace(rested(300), guests_kib={})
    decision, _ = decide_all(ALWAYS, snap(60, full_scans=5, pages_unshared=1000), state=state)
    assert decision.reason.rule == "probe"


def test_a_settled_host_is_left_in_peace_until_its_probe() -> None:
    guests = {"a": GIB}
    state = replace(rested(300), probe_due_s=1000)
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


# What would turn the decision: tests/property/test_turns.py tries whether it is true


def stories() -> dict[str, Decision]:
    """One decision for each rule."""
    guests = {"a": GIB, "b": GIB}
    begun, state = in_round()
    off = snap(20, guests, run=0)
    rest = replace(rested(300), probe_due_s=1000)
    short = replace(state, round=None, fresh_kib=0, half_kib=0, probe_due_s=10)
    return {
        "off": decide_all(ALWAYS, off, state=state)[0],
        "disengaged": decide_all(AUTO, snap(0, guests))[0],
        "rest": decide_all(ALWAYS, snap(20, {"a": GIB}, full_scans=5), state=rest)[0],
        "wait": decide_all(ALWAYS, snap(0, guests), snap(3, guests))[0],
        "round": begun,
        "probe": decide_all(ALWAYS, snap(20, guests, full_scans=2), state=short)[0],
        "stalled": decide_all(ALWAYS, snap(1000, guests, pages_unshared=1), state=state)[0],
        "empty": decide_all(ALWAYS, snap(1000, guests), state=state)[0],
    }


@pytest.mark.parametrize(
    ("rule", "thens"),
    [
        ("off", {"decides by memory"}),
        ("disengaged", {"engages"}),
        ("rest", {"owes a round", "probes"}),
        ("wait", {"begins a round", "probes"}),
        ("round", {"ends the round", "gives the round up"}),
        ("probe", {"ends the round", "gives the round up"}),
        ("stalled", {"begins a round", "probes"}),
        ("empty", {"owes a round", "probes"}),
    ],
)
def test_every_rule_says_what_would_turn_it(rule: str, thens: set[str]) -> None:
    decision = stories()[rule]
    assert decision.reason.rule == rule
    assert {turn.then for turn in decision.reason.turns_when} == thens


def test_engaged_by_memory_it_says_when_it_disengages() -> None:
    decision, _ = decide_all(AUTO, with_available(snap(0, {"a": GIB}), 12 * GIB))
    (turn,) = (turn for turn in decision.reason.turns_when if turn.then == "disengages")
    assert (turn.quantity, turn.threshold, turn.present) == ("available_kib", 16 * GIB - 1, 12 * GIB)


def test_what_has_never_to_act_says_of_no_turn() -> None:
    decision, _ = decide_all(AdaptivePolicy(params=AdaptiveParams(engage="never")), snap(0, {"a": GIB}))
    assert decision.reason.turns_when == ()


# The state as JSON


def test_a_past_survives_json() -> None:
    for _, state in (in_round(), decide_all(ALWAYS, snap(0, {"a": GIB}))):
        assert load_state(json.loads(json.dumps(dump_state(state)))) == state


@pytest.mark.parametrize("value", [None, "x", -1, 1e400, True, [], {}, [1], {"a": "b"}])
@pytest.mark.parametrize("name", sorted(dump_state(AdaptiveState())))
def test_a_damaged_past_is_a_value_error_or_a_past_that_can_be_decided_on(name: str, value: object) -> None:
    kept = {**dump_state(in_round()[1]), name: value}
    try:
        state = load_state(kept)
    except ValueError:
        return
    ALWAYS.decide(snap(20, {"a": GIB}), state, TIMER)


@pytest.mark.parametrize("name", sorted(dump_state(AdaptiveState())))
def test_an_older_version_s_past_which_lacks_something_is_a_value_error(name: str) -> None:
    kept = {key: value for key, value in dump_state(in_round()[1]).items() if key != name}
    with pytest.raises(ValueError, match="AdaptiveState has other fields"):
        load_state(kept)


@pytest.mark.parametrize(
    "change",
    [
        {"guests_kib": dict.fromkeys(map(str, range(MAX_MEMBERS + 1)), 1)},
        {"guests_kib": {"u" * (MAX_TEXT + 1): 1}},
        {"guests_kib": {1: 1}},
        {"young": [(1.0, 1)] * (MAX_MEMBERS + 1)},
        {"rule": "r" * (MAX_TEXT + 1)},
    ],
)
def test_a_past_beyond_any_size_is_a_value_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"guests_kib|young|rule"):
        load_state({**dump_state(AdaptiveState()), **change})


@pytest.mark.parametrize("kept", [{}, {"npages": 1, "stepped_at_s": None}, {**dump_state(AdaptiveState()), "more": 1}])
def test_another_policy_s_past_is_a_value_error(kept: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="AdaptiveState has other fields"):
        load_state(kept)
