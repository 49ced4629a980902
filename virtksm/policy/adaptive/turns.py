"""What would turn the adaptive policy's decision at its next look: its rules read backwards. Pure.

Each turn is exact for the state that the decision leaves behind (virtksm/model/decision.py has what is promised). While
the debt is still changing by itself, or more is expected, nobody can say when a round begins: then only the waiting
that is worth one is named.
"""

from __future__ import annotations

from collections.abc import Iterator

from virtksm.model.decision import PASSED_S, Turn
from virtksm.model.snapshot import Snapshot
from virtksm.policy.adaptive.debt import NEGLIGIBLE, account, known_kib, owed_kib, total_kib
from virtksm.policy.adaptive.engage import Need
from virtksm.policy.adaptive.growth import Growth, judge_growth
from virtksm.policy.adaptive.rounds import LOOK_S, seconds_until_empty, seconds_until_stalled, worth_kib_s
from virtksm.policy.adaptive.state import MAX_SUM, AdaptiveState, Round
from virtksm.policy.adaptive.yields import judge_lasting

OWES = "owes a round"


def find_turns(snapshot: Snapshot, state: AdaptiveState, need: Need, settle_s: float) -> Iterator[Turn]:
    """Yield what would turn a decision that has left `state` behind; `settle_s` seconds make young memory fresh."""
    if snapshot.ksm.run not in (None, 1):
        yield Turn(then="decides by memory", quantity="run", threshold=1, present=snapshot.ksm.run)
        return
    if need.engaged and state.round is not None:
        yield from _of_round(snapshot, state, state.round)
    elif need.engaged:
        yield from _between_rounds(snapshot, state, need, settle_s)
    yield from need.turns


def _of_round(snapshot: Snapshot, state: AdaptiveState, current: Round) -> Iterator[Turn]:
    """Yield a round's ends: its full scan is done (rule 7), or it does not get on (rule 9)."""
    if snapshot.ksm.full_scans is not None:
        yield Turn(
            then="ends the round",
            quantity="full_scans",
            threshold=current.ends_at_full_scans,
            present=snapshot.ksm.full_scans,
        )
    left_s, empty_s = seconds_until_stalled(snapshot, state, current), seconds_until_empty(snapshot, current)
    left_s = max(left_s if empty_s is None else min(left_s, empty_s), 0.0)
    yield Turn(then="gives the round up", quantity=PASSED_S, threshold=left_s, present=0.0)


def _between_rounds(snapshot: Snapshot, state: AdaptiveState, need: Need, settle_s: float) -> Iterator[Turn]:
    memory_kib = total_kib(snapshot, state)
    counted = account(snapshot, state, settle_s)  # as the next look does first
    if owed_kib(counted) * NEGLIGIBLE > memory_kib:
        yield from _of_debt(snapshot, counted, need, memory_kib, is_settled=counted == state and not state.young)
    else:
        yield from _of_rest(snapshot, counted, memory_kib, settle_s)
    if state.probe_due_s is not None:  # rule 12
        yield Turn(then="probes", quantity=PASSED_S, threshold=state.probe_due_s - snapshot.taken_s, present=0.0)


def _of_debt(
    snapshot: Snapshot, state: AdaptiveState, need: Need, memory_kib: int, *, is_settled: bool
) -> Iterator[Turn]:
    """Yield when waiting is worth a round (rule 6), by the price that holds once it is judged whether merges last."""
    debt_kib, waited_kib_s = owed_kib(state), state.waited_kib_s
    judged = judge_lasting(state, memory_kib)
    worth = max(worth_kib_s(snapshot, state, need), worth_kib_s(snapshot, judged, need)) - LOOK_S * debt_kib
    if worth > MAX_SUM:
        return
    if worth > waited_kib_s:
        yield Turn(then="begins a round", quantity="waited_kib_s", threshold=worth, present=waited_kib_s)
    if is_settled and judge_growth(state) is Growth.SETTLED:
        left_s = max(worth - waited_kib_s, 0.0) / debt_kib
        yield Turn(then="begins a round", quantity=PASSED_S, threshold=left_s, present=0.0)


def _of_rest(snapshot: Snapshot, state: AdaptiveState, memory_kib: int, settle_s: float) -> Iterator[Turn]:
    """Yield when the debt is no longer negligible: once what is young has settled, or if guests grow (rules 3, 4)."""
    guests_kib = sum(state.guests_kib.values())
    young_kib = 0
    for at_s, kib in state.young:
        young_kib += kib
        if _owed_kib(state, young_kib, guests_kib) * NEGLIGIBLE > memory_kib:
            yield Turn(then=OWES, quantity=PASSED_S, threshold=at_s + settle_s - snapshot.taken_s, present=0.0)
            return
    owed = _owed_kib(state, young_kib, guests_kib)
    grows_kib = (guests_kib - owed * NEGLIGIBLE) // (NEGLIGIBLE - 1) + 1  # what grows is owed, and is memory, too
    grows_kib = max(grows_kib, (known_kib(snapshot) - owed * NEGLIGIBLE) // NEGLIGIBLE + 1)
    yield Turn(then=OWES, quantity="owed_kib", threshold=owed + grows_kib, present=owed)


def _owed_kib(state: AdaptiveState, settled_kib: int, guests_kib: int) -> int:
    """Return the debt once so much of what is young has settled."""
    return min(state.fresh_kib + state.half_kib + settled_kib, guests_kib) + state.gone_kib
