"""The adaptive law, rule by rule, on snapshots made by hand; whole stories are told on the simulator.

Numbers in the names are the rules of virtksm/policy/adaptive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from virtksm.config.schema import AdaptiveParams
from virtksm.model import PARKED, Decision, Guest, HostMemory, KsmState, Occasion, Settings, Snapshot, Source, Trigger
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.past import AdaptivePast, dump_past, load_past
from virtksm.policy.adaptive.rounds import FED_SLEEPS_MS, begin_round, seconds_to_wait
from virtksm.policy.adaptive.yields import LEAST_PROBE_S, MOST_PROBE_S

GIB = 1024 * 1024
TOTAL = 64 * GIB
TIMER = Occasion(triggers=frozenset({Trigger.TIMER}))
RETUNE = Occasion(triggers=frozenset({Trigger.RETUNE}))
ALWAYS = AdaptivePolicy(params=AdaptiveParams(engage="always"))
AUTO = AdaptivePolicy(params=AdaptiveParams())


def snap(at_s: float, guests: Mapping[str, int] | None = None, **ksm: float | None) -> Snapshot:
    """A local host of 64 GiB with 40 available; `guests` are name to KiB, `ksm` what differs from an idle kernel."""
    state = {
        "pages_shared": 0, "pages_sharing": 0, "pages_unshared": 0, "pages_volatile": 0, "full_scans": 0, "run": 1,
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


def with_available(snapshot: Snapshot, available_kib: int) -> Snapshot:
    return replace(snapshot, host=replace(snapshot.host, available_kib=available_kib))


def after(decision: Decision, snapshot: Snapshot) -> Snapshot:
    """The snapshot of a kernel that has taken the decision's settings."""
    return replace(snapshot, ksm=replace(snapshot.ksm, settings=decision.target))


def decide_all(
    policy: AdaptivePolicy, *snapshots: Snapshot, past: AdaptivePast | None = None, occasion: Occasion = TIMER
) -> tuple[Decision, AdaptivePast]:
    """Decide over one snapshot after the other; return the last decision and past."""
    past = past or AdaptivePast()
    for snapshot in snapshots:
        decision, past = policy.decide(snapshot, past, occasion)
    return decision, past


def in_round() -> tuple[Decision, AdaptivePast]:
    """Two guests of 1 GiB that settled, and the first round just begun at 10 s."""
    guests = {"a": GIB, "b": GIB}
    return decide_all(ALWAYS, snap(0, guests), snap(3, guests), snap(10, guests))


# Rule 1 and 2


def test_1_with_memory_to_spare_it_leaves_guests_alone() -> None:
    decision, _ = decide_all(AUTO, snap(0, {"a": GIB}), snap(100, {"a": GIB}))
    assert (decision.target, decision.reason.rule) == (PARKED, "disengaged")


def test_1_it_engages_below_the_reserve_and_disengages_well_above_it() -> None:
    guests = {"a": 4 * GIB}
    _, past = decide_all(AUTO, with_available(snap(0, guests), 12 * GIB))
    assert past.engaged, "less than 20 % of 64 GiB are available"
    _, past = decide_all(AUTO, with_available(snap(1, guests), 15 * GIB), past=past)
    assert past.engaged, "not yet a quarter above it"
    _, past = decide_all(AUTO, with_available(snap(2, guests), 17 * GIB), past=past)
    assert not past.engaged
    _, past = decide_all(AUTO, with_available(snap(3, guests), 15 * GIB), past=past)
    assert not past.engaged


def test_1_it_engages_before_guests_have_grown_to_what_they_may() -> None:
    small = snap(0, {"a": GIB})
    may_grow = replace(small, guests=(replace(small.guests[0], max_kib=60 * GIB),))
    decision, past = decide_all(AUTO, may_grow)
    assert past.engaged
    assert decision.reason.rule != "disengaged"


def test_1_never_only_observes() -> None:
    policy = AdaptivePolicy(params=AdaptiveParams(engage="never"))
    decision, past = decide_all(policy, *(with_available(snap(at, {"a": GIB}), 0) for at in range(100)))
    assert (decision.target, decision.reason.rule) == (PARKED, "disengaged")
    assert past.fresh_kib == GIB, "the debt is known, should it engage"


def test_2_less_memory_never_scans_slower() -> None:
    _, past = in_round()
    batches = []
    for available_kib in (40 * GIB, 12 * GIB, 6 * GIB, GIB, 0):
        snapshot = with_available(snap(12, {"a": GIB, "b": GIB}, pages_scanned=100_000), available_kib)
        decision, _ = decide_all(ALWAYS, snapshot, past=past)
        batches.append(decision.target.pages_to_scan or 0)
    assert batches == sorted(batches)
    assert batches[-1] > batches[0]


def test_without_ksm_switched_on_nothing_is_scanned_and_the_debt_stays() -> None:
    guests = {"a": GIB}
    decision, past = decide_all(ALWAYS, *(snap(at, guests, run=0) for at in range(0, 100, 10)))
    assert (decision.target, decision.reason.rule) == (PARKED, "off")
    decision, _ = decide_all(ALWAYS, snap(101, guests), past=past)
    assert decision.reason.rule == "round"


# Rules 3 to 5


def test_3_a_guest_s_memory_is_debt_and_what_grows_is_more() -> None:
    _, past = decide_all(AUTO, snap(0, {"a": GIB}), snap(3, {"a": GIB}), snap(6, {"a": 2 * GIB}))
    assert (past.fresh_kib, past.young) == (GIB, ((6, GIB),))
    _, past = decide_all(AUTO, snap(9, {"a": 2 * GIB}), past=past)
    assert (past.fresh_kib, past.young) == (2 * GIB, ())


def test_3_another_run_of_a_guest_is_new_memory() -> None:
    again = snap(10, {"a": GIB})
    again = replace(again, guests=(replace(again.guests[0], domain_id=2),))
    _, past = decide_all(AUTO, snap(0, {"a": GIB}), snap(5, {"a": GIB}), again)
    assert (past.fresh_kib, past.young) == (0, ((10, GIB),)), "what the first run owed has gone with it"


def test_3_what_has_stopped_owes_nothing() -> None:
    _, past = decide_all(
        AUTO, snap(0, {"a": GIB, "b": 3 * GIB}), snap(3, {"a": GIB, "b": 3 * GIB}), snap(4, {"a": GIB})
    )
    assert past.fresh_kib == GIB
    _, past = decide_all(AUTO, snap(5), past=past)
    assert past.fresh_kib == 0


def test_3_a_guest_that_cannot_be_read_for_once_has_not_stopped() -> None:
    unread = snap(10, {"a": GIB})
    unread = replace(unread, guests=(replace(unread.guests[0], rss_kib=None),))
    _, past = decide_all(AUTO, snap(0, {"a": GIB}), snap(5, {"a": GIB}), unread, snap(11, {"a": GIB}))
    assert (past.fresh_kib, past.young) == (GIB, ())


def test_3_merges_that_were_broken_are_debt_but_not_those_of_a_guest_that_stopped() -> None:
    guests = {"a": GIB, "b": GIB}
    covered = AdaptivePast(taken_s=0, guests_kib={"a/1": GIB, "b/1": GIB}, pages_sharing=1000, engaged=True)
    _, past = decide_all(ALWAYS, snap(1, guests, pages_sharing=400), past=covered)
    assert past.fresh_kib == 600 * 4
    _, past = decide_all(ALWAYS, snap(1, {"a": GIB}, pages_sharing=400), past=covered)
    assert past.fresh_kib == 0


def test_5_debt_that_waits_adds_up() -> None:
    _, past = decide_all(AUTO, snap(0, {"a": GIB}), snap(2, {"a": GIB}), snap(12, {"a": GIB}))
    assert past.waited_kib_s == pytest.approx(10 * GIB)


# Rules 6 to 10


def test_6_settled_debt_is_scanned_soon_and_growing_debt_later() -> None:
    waits_s = []
    for last in (snap(6, {"a": GIB}), snap(6, {"a": GIB, "b": GIB})):
        _, past = decide_all(AUTO, snap(0, {"a": GIB}), snap(5.9, {"a": GIB}), last)
        assert past.fresh_kib == GIB
        waits_s.append(seconds_to_wait(last, past, pressure=0.0))
    assert waits_s[0] is not None
    assert waits_s[1] is not None
    assert waits_s[0] * 10 < waits_s[1]


def test_6_a_little_debt_beside_much_memory_pays_for_no_round() -> None:
    past = AdaptivePast(taken_s=0, guests_kib={"a/1": 32 * GIB}, engaged=True, probe_due_s=10_000)
    decision, _ = decide_all(ALWAYS, *(snap(at, {"a": 32 * GIB + 1024}) for at in range(0, 9000, 10)), past=past)
    assert (decision.target, decision.reason.rule) == (PARKED, "rest")


def test_6_an_explicit_retune_waits_for_nothing() -> None:
    decision, _ = decide_all(ALWAYS, snap(0, {"a": GIB}), snap(2, {"a": GIB}), occasion=RETUNE)
    assert decision.reason.rule == "round"


def test_7_where_ksm_knows_pages_the_first_round_takes_two_full_scans_and_later_ones_one() -> None:
    """Nobody knows where ksmd's cursor stands then; a batch ends where a full scan does."""
    guests = {"a": GIB, "b": GIB}

    def seen(at_s: float, full_scans: int) -> Snapshot:
        return snap(at_s, guests, full_scans=full_scans, pages_unshared=1)

    decision, past = decide_all(ALWAYS, seen(0, 0), seen(3, 0), seen(10, 0))
    assert decision.reason.rule == "round"
    decision, past = decide_all(ALWAYS, seen(12, 1), past=past)
    assert (decision.reason.rule, past.half_kib) == ("round", 0)
    decision, past = decide_all(ALWAYS, seen(16, 2), past=past)
    assert (past.fresh_kib, past.half_kib) == (0, 2 * GIB)
    decision, past = decide_all(ALWAYS, seen(40, 2), past=past)
    assert decision.reason.rule == "round"
    decision, past = decide_all(ALWAYS, seen(44, 3), past=past)
    assert (past.fresh_kib, past.half_kib, decision.reason.rule) == (0, 0, "rest")
    assert decision.target == PARKED


def test_7_where_ksm_knows_no_page_the_first_round_is_one_full_scan() -> None:
    _, past = in_round()
    assert past.round is not None
    assert past.round.ends_at_full_scans == 1


def test_7_what_appears_during_a_round_is_owed_two_of_its_own() -> None:
    _, past = in_round()
    grown = {"a": GIB, "b": 2 * GIB}
    _, past = decide_all(ALWAYS, snap(11, grown), snap(20, grown, full_scans=2), past=past)
    assert past.half_kib == 2 * GIB
    assert past.round is not None, "it has waited for long enough"
    assert past.round.scanning_kib == GIB


def test_8_every_tick_grants_one_batch_by_changing_the_sleep() -> None:
    first, past = in_round()
    guests = {"a": GIB, "b": GIB}
    second, past = decide_all(ALWAYS, after(first, snap(11, guests, pages_scanned=120_000)), past=past)
    third, _ = decide_all(ALWAYS, after(second, snap(12, guests, pages_scanned=240_000)), past=past)
    sleeps = [decision.target.sleep_millisecs for decision in (first, second, third)]
    assert set(sleeps) == set(FED_SLEEPS_MS)
    assert sleeps[0] == sleeps[2] != sleeps[1]
    assert all(sleep is not None and sleep >= 60_000 for sleep in sleeps), "without ticks: one batch a minute"


def test_8_a_batch_that_still_runs_is_left_to_end() -> None:
    first, past = in_round()
    busy = snap(11, {"a": GIB, "b": GIB}, ksmd_cpu_seconds=0.95)
    decision, past = decide_all(ALWAYS, after(first, busy), past=past)
    assert decision.target.sleep_millisecs == first.target.sleep_millisecs
    assert decision.next_pass_s == pytest.approx(0.25)


def test_8_passes_that_guests_ask_for_grant_no_batch_of_their_own() -> None:
    guests = {"a": GIB, "b": GIB}
    first, past = in_round()
    started = Occasion(triggers=frozenset({Trigger.STARTED}))
    early, past = decide_all(
        ALWAYS, after(first, snap(10.4, guests, pages_scanned=120_000)), past=past, occasion=started
    )
    assert early.target.sleep_millisecs == first.target.sleep_millisecs
    assert early.next_pass_s == pytest.approx(0.6)
    due, _ = decide_all(ALWAYS, after(early, snap(11.0, guests, pages_scanned=120_000)), past=past)
    assert due.target.sleep_millisecs != first.target.sleep_millisecs


def test_8_a_batch_is_what_the_budget_allows_at_the_measured_cost() -> None:
    guests = {"a": GIB, "b": GIB}
    _, past = in_round()
    measured = snap(11, guests, pages_scanned=100_000, ksmd_cpu_seconds=0.5)
    for percent in (10, 50, 100):
        policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=percent))
        decision, _ = decide_all(policy, measured, past=past)
        assert decision.target.pages_to_scan == pytest.approx(200_000 * percent / 100, rel=0.01)


def test_9_a_round_that_does_not_get_on_is_given_up() -> None:
    _, past = in_round()
    decision, past = decide_all(ALWAYS, snap(1000, {"a": GIB, "b": GIB}), past=past)
    assert (decision.reason.rule, decision.target, past.round) == ("stalled", PARKED, None)
    assert past.fresh_kib == 2 * GIB, "the debt is owed still"


def test_10_a_round_that_skipped_most_pages_pays_for_no_second_visit() -> None:
    guests = {"a": GIB, "b": GIB}
    _, past = in_round()
    _, past = decide_all(ALWAYS, snap(20, guests, full_scans=2), snap(40, guests, full_scans=2), past=past)
    alone = {"pages_unshared": 600_000}
    narrow = snap(44, guests, full_scans=3, pages_skipped=60_000, **alone)
    _, tail = decide_all(ALWAYS, narrow, past=past)
    assert (tail.half_kib, tail.narrow_rounds) == (2 * GIB, 1)
    wide = snap(44, guests, full_scans=3, pages_skipped=20_000, **alone)
    _, done = decide_all(ALWAYS, wide, past=past)
    assert (done.half_kib, done.narrow_rounds) == (0, 0)


def narrow_end(**past: int) -> AdaptivePast:
    """The past after a narrow round with 1 GiB half paid, which merged nothing."""
    guests = {"a": 2 * GIB}
    before = AdaptivePast(
        taken_s=0, engaged=True, guests_kib={"a/1": 2 * GIB}, full_scans=5, half_kib=GIB, probe_due_s=1e6
    )
    before = replace(before, **past)  # type: ignore[arg-type]  # whole numbers alone
    began = begin_round(snap(1, guests, full_scans=5), before)
    return decide_all(ALWAYS, snap(2, guests, full_scans=6, pages_skipped=200_000, pages_unshared=500_000), past=began)[
        1
    ]


@pytest.mark.parametrize(
    ("past", "half_kib", "limit"),
    [
        ({}, GIB, 14),
        ({"half_gained_kib": GIB // 2}, 0, 14),
        ({"narrow_rounds": 13}, GIB, 14),
        ({"narrow_rounds": 14}, 0, 7),
        ({"narrow_rounds": 14, "half_gained_kib": GIB // 4}, 0, 14),
        ({"narrow_rounds": 1, "narrow_limit": 1}, 0, 0),
        ({"narrow_limit": 0}, 0, 0),
    ],
)
def test_10_it_looks_for_hidden_twins_where_little_has_merged_and_less_after_looking_in_vain(
    past: dict[str, int], half_kib: int, limit: int
) -> None:
    after = narrow_end(**past)
    assert (after.half_kib, after.narrow_limit) == (half_kib, limit)


def test_10_narrow_rounds_come_to_an_end() -> None:
    guests = {"a": GIB, "b": GIB}
    _, past = in_round()
    full_scans, skipped = 2, 0
    for step in range(40):
        at_s = 20 + step * 100.0
        _, past = decide_all(ALWAYS, snap(at_s, guests, full_scans=full_scans, pages_skipped=skipped), past=past)
        full_scans, skipped = full_scans + 1, skipped + 400_000
    assert past.half_kib == 0


# Rules 11 and 12


def thrash(past: AdaptivePast, number: int) -> AdaptivePast:
    """End a round that merged much, break all of that, and wait for the next to begin."""
    at_s, cpu_s, guests = past.taken_s or 0.0, 2.0 * number, {"a": GIB, "b": GIB}
    merged = snap(at_s, guests, full_scans=1 + number, pages_sharing=100_000, ksmd_cpu_seconds=cpu_s)
    _, past = decide_all(ALWAYS, merged, past=past)
    while past.round is None:
        at_s += 10
        broken = snap(at_s, guests, full_scans=1 + number, ksmd_cpu_seconds=cpu_s)
        _, past = decide_all(ALWAYS, broken, past=past)
    return past


def test_11_merges_that_do_not_last_make_rounds_rarer() -> None:
    _, past = in_round()
    backoffs, waits_s = [], []
    for number in range(1, 10):
        began_s = past.taken_s or 0.0
        past = thrash(past, number)
        backoffs.append(past.backoff)
        waits_s.append((past.taken_s or 0.0) - began_s)
    assert backoffs == [2**number for number in range(1, 10)]
    assert waits_s[-1] > 10 * waits_s[0]


def test_11_merges_that_last_bring_it_back() -> None:
    guests = {"a": GIB, "b": GIB}
    _, past = in_round()
    past = replace(past, backoff=16)
    _, past = decide_all(
        ALWAYS,
        *(snap(at_s, guests, full_scans=2, pages_sharing=100_000, ksmd_cpu_seconds=2.0) for at_s in (12, 1000)),
        past=past,
    )
    assert past.backoff == 8


def rested(interval_s: float) -> AdaptivePast:
    return AdaptivePast(
        taken_s=0, guests_kib={"a/1": GIB}, pages_sharing=0, engaged=True, full_scans=5, probe_due_s=50,
        probe_interval_s=interval_s,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("merged", "before_s", "after_s"),
    [
        (0, 300, 600),
        (100_000, 300, 150),
        (0, MOST_PROBE_S, MOST_PROBE_S),
        (100_000, LEAST_PROBE_S, LEAST_PROBE_S),
    ],
)
def test_12_a_probe_that_finds_something_brings_the_next_one_nearer(
    merged: int, before_s: float, after_s: float
) -> None:
    guests = {"a": GIB}
    decision, past = decide_all(ALWAYS, snap(49, guests, full_scans=5), past=rested(before_s))
    assert decision.target == PARKED
    decision, past = decide_all(ALWAYS, snap(50, guests, full_scans=5), past=past)
    assert decision.reason.rule == "probe"
    decision, past = decide_all(ALWAYS, snap(52, guests, full_scans=6, pages_sharing=merged), past=past)
    assert decision.reason.rule == "probe"
    decision, past = decide_all(ALWAYS, snap(54, guests, full_scans=7, pages_sharing=merged), past=past)
    assert (decision.target, past.probe_interval_s) == (PARKED, after_s)


def test_12_a_clock_that_began_anew_puts_off_no_probe() -> None:
    past = replace(rested(300), taken_s=1e6, probe_due_s=1e6 + 300)
    _, past = decide_all(ALWAYS, snap(10, {"a": GIB}, full_scans=5), past=past)
    assert past.probe_due_s is not None
    assert past.probe_due_s < 1000


def test_12_without_any_memory_to_merge_nothing_is_probed() -> None:
    decision, _ = decide_all(ALWAYS, *(snap(at) for at in range(0, 100_000, 100)))
    assert decision.target == PARKED


def test_12_memory_of_others_is_probed_too() -> None:
    past = replace(rested(300), guests_kib={})
    decision, _ = decide_all(ALWAYS, snap(60, full_scans=5, pages_unshared=1000), past=past)
    assert decision.reason.rule == "probe"


def test_a_settled_host_is_left_in_peace_until_its_probe() -> None:
    guests = {"a": GIB}
    past = replace(rested(300), probe_due_s=1000)
    for at_s in range(10, 1000, 10):
        decision, past = decide_all(ALWAYS, snap(at_s, guests, full_scans=5), past=past)
        assert decision.target == PARKED


@pytest.mark.parametrize(
    ("key", "shared", "target"), [("keep", 0, None), ("never", 0, 0), ("never", 5, None), ("always", 5, 1)]
)
def test_merge_across_nodes_waits_until_nothing_is_shared(key: str, shared: int, target: int | None) -> None:
    policy = AdaptivePolicy(params=AdaptiveParams(merge_across_nodes=key))  # type: ignore[arg-type]  # of the table
    decision, _ = decide_all(policy, snap(0, {"a": GIB}, pages_shared=shared))
    assert decision.target.merge_across_nodes == target
    assert ("merge_across_nodes waits" in decision.reason.text) == (key == "never" and shared > 0)


# The past as JSON


def test_a_past_survives_json() -> None:
    for _, past in (in_round(), decide_all(ALWAYS, snap(0, {"a": GIB}))):
        assert load_past(json.loads(json.dumps(dump_past(past)))) == past


@pytest.mark.parametrize("value", [None, "x", -1, 1e400, True, [], {}, [1], {"a": "b"}])
@pytest.mark.parametrize("name", sorted(dump_past(AdaptivePast())))
def test_a_damaged_past_is_a_value_error_or_a_past_that_can_be_decided_on(name: str, value: object) -> None:
    kept = {**dump_past(in_round()[1]), name: value}
    try:
        past = load_past(kept)
    except ValueError:
        return
    ALWAYS.decide(snap(20, {"a": GIB}), past, TIMER)


@pytest.mark.parametrize("kept", [{}, {"npages": 1, "stepped_at_s": None}, {**dump_past(AdaptivePast()), "more": 1}])
def test_another_policy_s_past_is_a_value_error(kept: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not what the adaptive policy keeps"):
        load_past(kept)
