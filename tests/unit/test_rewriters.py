"""Rule 6 of the adaptive law: who is named for rewriting what merges, by what readings, and for how long."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from tests.unit.test_policy_adaptive import GIB, TIMER, having_scanned, scans, snap
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import MergedReading, Snapshot
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.changes import BLIND_S
from virtksm.policy.adaptive.full_scans import begin_full_scan
from virtksm.policy.adaptive.rewriters import REPEATS, wants_merged, watch
from virtksm.policy.adaptive.state import AdaptiveState, Learned, dump_state, load_state
from virtksm.policy.observe import ObservePolicy
from virtksm.values import replace

MIB = 1024
GUESTS = {"calm": 4 * GIB, "loud": 4 * GIB}
COST_S, PAID_S, EVERY_S = 10.0, 3000.0, 5000.0
"""What a full scan costs, how long that takes to pay (PAYS_COST), and how often there is one."""
ASKED = AdaptiveParams(engage="always", exclude_rewriters=True)


class Seen(NamedTuple):
    """What was read of "loud" in a rest: what ksmd counts as merged and what is, in MiB, so long after its beginning.

    So many COW breaks the host has counted since the full scan before it began, in MiB.
    """

    counted_mib: int = 1024
    mapped_mib: int = 100
    after_s: float = 60.0
    broken_mib: int = 4096


LOST, HELD, SKIPPED = Seen(), Seen(mapped_mib=600), Seen(counted_mib=400, mapped_mib=400)
"""Of 1 GiB; the last: smart_scan has left alone what was rewritten."""


def snapshot_of(seen: Seen | None, began_s: float, passed_s: float = 0.0) -> Snapshot:
    """The snapshot of a pass a second after the reading, or so much later."""
    if seen is None:
        return snap(began_s + 61 + passed_s, GUESTS, cow_ksm=1_000_000)
    read_s = began_s + seen.after_s
    snapshot = snap(read_s + 1 + passed_s, GUESTS, cow_ksm=seen.broken_mib * 256)
    calm = MergedReading(taken_s=read_s, counted_kib=1024 * MIB, mapped_kib=1000 * MIB)
    loud = MergedReading(taken_s=read_s, counted_kib=seen.counted_mib * MIB, mapped_kib=seen.mapped_mib * MIB)
    readings = {"calm": calm, "loud": loud}
    guests = tuple(replace(guest, merged=readings[guest.name]) for guest in snapshot.guests)
    return replace(snapshot, guests=guests)


def resting(began_s: float, state: AdaptiveState) -> AdaptiveState:
    learned = Learned(ended_s=began_s, began_cow_ksm=0, full_scan_cost_s_per_kib=COST_S / (8 * GIB))
    return replace(state, learned=learned, scans=scans())


def after_rests(rests: Sequence[Seen | None], state: AdaptiveState | None = None, first: int = 1) -> AdaptiveState:
    """The state after these rests, each with two passes; None: nothing was read."""
    state = state or having_scanned(GUESTS)
    for number, seen in enumerate(rests, start=first):
        state = resting(number * EVERY_S, state)
        for passed_s in (0.0, 20.0):
            state = watch(snapshot_of(seen, number * EVERY_S, passed_s), state, is_wanted=True)
    return state


@pytest.mark.parametrize(
    ("rests", "named"),
    [
        ([LOST] * REPEATS, True),
        ([LOST] * (REPEATS - 1), False),
        ([HELD] * 9, False),
        ([LOST, LOST, HELD, LOST, LOST], False),
        ([LOST, LOST, None, LOST], True),
        ([LOST, SKIPPED, LOST, None, SKIPPED, LOST], True),
        ([LOST, LOST, HELD, SKIPPED, LOST, LOST], False),
        ([LOST, LOST, HELD, *[LOST] * REPEATS], True),
        # One hundredth of 4 GiB, all of little, less than is a backlog.
        ([Seen(counted_mib=4096, mapped_mib=4056)] * 9, False),
        ([Seen(counted_mib=33, mapped_mib=0)] * REPEATS, True),
        ([Seen(counted_mib=32, mapped_mib=0)] * 9, False),
        # What khugepaged has taken apart is no COW break.
        ([Seen(broken_mib=500)] * 9, False),
        ([Seen(broken_mib=513)] * REPEATS, True),
        # It was read before this rest, or what was merged has paid.
        ([Seen(after_s=-1.0)] * 9, False),
        ([Seen(after_s=PAID_S - 1)] * REPEATS, True),
        ([Seen(after_s=PAID_S)] * 9, False),
    ],
)
def test_6_a_guest_is_named_that_loses_most_of_what_merged_so_many_times_in_a_row(
    rests: list[Seen | None], named: bool
) -> None:
    assert list(after_rests(rests).rewriters) == ["loud/1"] * named


def test_6_what_holds_speaks_for_a_guest_once_it_has_paid() -> None:
    watched, held_s = after_rests([LOST, LOST]), 3 * EVERY_S

    def named(*rests: tuple[float, Seen]) -> list[str]:
        state = watched
        for began_s, seen in rests:
            state = watch(snapshot_of(seen, began_s), resting(began_s, state), is_wanted=True)
        return list(state.rewriters)

    assert named((held_s, HELD), (held_s + PAID_S - 100, LOST)) == ["loud/1"], "another full scan came before"
    assert named((held_s, HELD), (held_s + PAID_S, LOST)) == []
    assert named((held_s, HELD), (held_s, LOST)) == ["loud/1"], "it was read before it wrote"
    assert named((held_s, HELD), (held_s + 100, SKIPPED), (held_s + PAID_S, LOST)) == ["loud/1"], "it holds no more"
    assert named((held_s, HELD), (held_s + 100, HELD), (held_s + PAID_S, LOST)) == []


def test_6_of_several_as_few_are_named_as_leave_no_backlog() -> None:
    state = having_scanned(GUESTS)
    for number in range(1, REPEATS + 1):
        began_s = number * EVERY_S
        snapshot = snapshot_of(Seen(counted_mib=21, mapped_mib=0), began_s)
        calm, loud = snapshot.guests
        calm = replace(calm, merged=MergedReading(taken_s=began_s + 60, counted_kib=20 * MIB, mapped_kib=0))
        state = watch(replace(snapshot, guests=(calm, loud)), resting(began_s, state), is_wanted=True)
    assert (list(state.rewriters), state.watched) == (["loud/1"], {})


def test_6_no_rest_counts_twice_and_one_that_no_pass_has_seen_is_none() -> None:
    state = having_scanned(GUESTS)
    for number in (1, 3, 5):
        assert state.rewriters == {}
        state = resting((number - 1) * EVERY_S, state)
        state = resting(number * EVERY_S, state)
        for passed_s in range(0, 200, 20):
            state = watch(snapshot_of(LOST, number * EVERY_S, passed_s), state, is_wanted=True)
    assert list(state.rewriters) == ["loud/1"]


def test_6_it_is_out_for_a_day_and_then_watched_anew() -> None:
    state = after_rests([LOST] * REPEATS)
    (end_s,) = state.rewriters.values()
    assert end_s == REPEATS * EVERY_S + 61 + BLIND_S
    assert state.watched == {}
    state = resting(end_s - 100, state)
    state = watch(snapshot_of(LOST, end_s - 100), state, is_wanted=True)
    assert list(state.rewriters) == ["loud/1"], "it merges on for as long as nobody could take it out"
    state = watch(snapshot_of(HELD, end_s - 60), state, is_wanted=True)
    assert (state.rewriters, state.watched) == ({}, {})
    later = round(end_s / EVERY_S) + 1
    assert after_rests([LOST] * (REPEATS - 1), state, first=later).rewriters == {}
    assert list(after_rests([LOST] * REPEATS, state, first=later).rewriters) == ["loud/1"]


def test_6_guests_that_end_or_cannot_merge_are_forgotten_and_all_where_nobody_asks() -> None:
    watched, named = after_rests([LOST, LOST]), after_rests([LOST] * REPEATS)
    for state in (watched, named):
        gone = snap(4 * EVERY_S, {"calm": 4 * GIB})
        for left in (watch(gone, state, is_wanted=True), watch(snapshot_of(LOST, 9e5), state, is_wanted=False)):
            assert (left.watched, left.rewriters) == ({}, {})
    snapshot = snapshot_of(LOST, 3 * EVERY_S)
    out = replace(snapshot, guests=tuple(replace(guest, can_merge=False) for guest in snapshot.guests))
    assert watch(out, resting(3 * EVERY_S, watched), is_wanted=True).rewriters == {}


def test_6_while_ksmd_scans_nothing_is_judged_and_no_reading_is_of_use() -> None:
    state, snapshot = resting(2 * EVERY_S, after_rests([LOST])), snapshot_of(LOST, 2 * EVERY_S)
    scanning = begin_full_scan(snapshot, state)
    assert watch(snapshot, scanning, is_wanted=True) == scanning
    assert wants_merged(snapshot, state)
    assert not wants_merged(snapshot, scanning)
    assert not wants_merged(snapshot_of(Seen(broken_mib=32), 2 * EVERY_S), state), "that is no backlog"
    assert not wants_merged(snapshot_of(LOST, 2 * EVERY_S, PAID_S), state), "what is written to now has paid"
    assert not wants_merged(replace(snapshot, ksm=replace(snapshot.ksm, cow_ksm=None)), state)
    early, unread = (snapshot_of(Seen(after_s=-1.0, broken_mib=0), 2 * EVERY_S, one) for one in (2.0, PAID_S / 2 + 1))
    assert wants_merged(unread, state), "what a guest that has rewritten it holds again"
    assert not wants_merged(early, state)
    assert not wants_merged(unread, resting(2 * EVERY_S, having_scanned(GUESTS)))


def decided(policy: AdaptivePolicy, rests: Sequence[Seen]) -> Mapping[str, object]:
    state = after_rests(rests)
    decision, left = policy.decide(snapshot_of(LOST, len(rests) * EVERY_S, 40.0), state, TIMER)
    assert load_state(json.loads(json.dumps(dump_state(left)))) == left
    return {"rewriters": decision.rewriters, "wants": decision.wants_merged, "text": decision.reason.text}


def test_6_the_decision_names_them_and_says_so() -> None:
    told = decided(AdaptivePolicy(params=ASKED), [LOST] * REPEATS)
    assert told["rewriters"] == ("loud/1",)
    assert str(told["text"]).endswith("; guests that are out for a day, as they rewrite what merges: 1")
    told = decided(ObservePolicy(params=ASKED), [LOST] * REPEATS)
    assert told["rewriters"] == ("loud/1",), "the agent does nothing of it"
    assert str(told["text"]).endswith("; guests that would be out for a day, as they rewrite what merges: 1")
    told = decided(AdaptivePolicy(params=replace(ASKED, exclude_rewriters=False)), [LOST] * REPEATS)
    assert (told["rewriters"], told["wants"]) == ((), False)
    assert "rewrite" not in str(told["text"])
