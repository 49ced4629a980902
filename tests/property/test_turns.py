"""What would turn a decision is true: at the threshold the policy decides so, just short of it not yet.

For every decision of any history, each of its turns is tried: `decide` sees the same host with that one quantity moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_policy_adaptive import params, snapshots
from tests.property.test_policy_ksmtuned import pasts as ksmtuned_pasts
from tests.property.test_policy_ksmtuned import policies as ksmtuned_policies
from tests.property.test_policy_ksmtuned import snapshots as ksmtuned_snapshots
from tests.property.test_policy_ksmtuned import trigger_sets as ksmtuned_triggers
from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import PASSED_S, Decision, SwitchedOff, Trigger, Triggers, Turn
from virtksm.model.snapshot import Guest, HostMemory, KsmState, OtherProcesses, Settings, Snapshot, Source
from virtksm.policy.adaptive import AdaptivePolicy, settle_seconds
from virtksm.policy.adaptive.engage import judge_need
from virtksm.policy.adaptive.state import AdaptiveState
from virtksm.policy.ksmtuned import KsmtunedPolicy, KsmtunedState
from virtksm.policy.off import decide_off

TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))
MARGIN_S = 0.002
ROUGHLY = 1e-9
"""Times and sums of waiting are floats: their thresholds are true but for rounding."""

KSMTUNED: Mapping[str, Callable[[Decision], bool]] = {
    "decides by memory": lambda decision: decision.reason.rule != "unknown",
    "scans": lambda decision: not decision.is_idle,
    "parks": lambda decision: decision.is_idle,
    "eases off (decay)": lambda decision: decision.reason.rule == "decay",
    "scans harder (boost)": lambda decision: decision.reason.rule == "boost",
}

ADAPTIVE: Mapping[str, Callable[[str], bool]] = {
    "decides by memory": lambda rule: rule != "off",
    "engages": lambda rule: rule != "disengaged",
    "disengages": lambda rule: rule == "disengaged",
    "owes a round": lambda rule: rule in ("wait", "round"),
    "begins a round": lambda rule: rule == "round",
    "probes": lambda rule: rule == "probe",
    "gives the round up": lambda rule: rule in ("stalled", "empty"),
}


def holding(snapshot: Snapshot, quantity: str, value: int) -> Snapshot:
    """Return the snapshot with one quantity of ksmtuned's law moved there."""
    host = snapshot.host
    match quantity:
        case "free_kib":
            return replace(snapshot, host=replace(host, free_kib=value - host.buffers_kib - host.cached_kib))
        case "total_kib":
            return replace(snapshot, host=replace(host, total_kib=value))
    assert quantity == "committed_kib"
    return replace(snapshot, guests=(Guest(uuid="all", name="all", rss_kib=value),))


@given(ksmtuned_policies(), ksmtuned_snapshots(), ksmtuned_pasts, ksmtuned_triggers)
def test_ksmtuned_turns_where_it_says(
    policy: KsmtunedPolicy, snapshot: Snapshot, state: KsmtunedState, triggers: Triggers
) -> None:
    decision, after = policy.decide(snapshot, state, triggers)
    for turn in decision.reason.turns_when:
        happens, threshold = KSMTUNED[turn.then], int(turn.threshold)
        short = threshold - (1 if threshold > turn.present else -1)
        assert not happens(decision)
        assert happens(policy.decide(holding(snapshot, turn.quantity, threshold), after, triggers)[0])
        assert not happens(policy.decide(holding(snapshot, turn.quantity, short), after, triggers)[0])


@given(ksmtuned_policies(), ksmtuned_snapshots(), ksmtuned_pasts)
def test_ksmtuned_says_what_turns_every_step_that_one_quantity_can_turn(
    policy: KsmtunedPolicy, snapshot: Snapshot, state: KsmtunedState
) -> None:
    """Parked it may scan; scanning it may do something else, as long as its threshold is above nothing."""
    decision, _ = policy.decide(snapshot, state, TIMER)
    if decision.reason.numbers.get("thres_kib") != 0:
        assert decision.reason.turns_when


@st.composite
def histories(draw: st.DrawFn) -> list[Snapshot]:
    """Looks at one host: guests that come, grow and go, memory around the reserve, rounds that end or do not."""
    total_kib = draw(st.integers(1, 2**24))
    at_s, full_scans = draw(st.floats(0, 1e5)), 0
    held: dict[str, int] = {}
    other_processes_kib = 0
    counts = {"processes": st.just(1), "unread": st.just(0)}
    looks = []
    for _ in range(draw(st.integers(1, 8))):
        at_s += draw(st.sampled_from([0.25, 1.0, 5.0, 30.0, 150.0, 2000.0]))
        full_scans += draw(st.integers(0, 2))
        if draw(st.booleans()):
            held[draw(st.sampled_from("abc"))] = draw(st.integers(0, total_kib // 2))
        if draw(st.integers(0, 9)) == 0:
            held.clear()
        known = draw(st.sampled_from([0, 0, sum(held.values()) // 4, total_kib // 8]))
        available_kib = draw(st.integers(0, total_kib) | st.integers(total_kib // 5 - 3, total_kib // 5 + 3))
        broken = draw(st.integers(0, known))
        other_processes_kib = draw(st.sampled_from([0, other_processes_kib, total_kib // 8]))
        looks.append(
            Snapshot(
                taken_s=at_s,
                source=draw(st.sampled_from(Source)),
                host=HostMemory(
                    total_kib=total_kib, free_kib=0, buffers_kib=0, cached_kib=0, available_kib=max(available_kib, 0)
                ),
                ksm=KsmState(
                    settings=Settings(pages_to_scan=0, sleep_millisecs=10_000),
                    pages_shared=0,
                    pages_sharing=broken,
                    pages_unshared=known - broken,
                    pages_volatile=0,
                    full_scans=draw(st.sampled_from([full_scans, full_scans, full_scans, None])),
                    run=draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 0, 2, None])),
                    pages_scanned=full_scans * known,
                    pages_skipped=draw(st.integers(0, full_scans * known)),
                    ksmd_cpu_seconds=full_scans * draw(st.sampled_from([0.001, 1.0, 30.0])),
                ),
                guests=tuple(
                    Guest(
                        uuid=name,
                        name=name,
                        domain_id=1,
                        rss_kib=draw(st.sampled_from([kib, kib, kib, None])),
                        max_kib=draw(st.none() | st.integers(0, total_kib)),
                    )
                    for name, kib in held.items()
                ),
                other_processes=draw(st.none() | st.builds(OtherProcesses, kib=st.just(other_processes_kib), **counts)),
            )
        )
    return looks


def covered(snapshot: Snapshot, owed_kib: int, backoff: int) -> AdaptiveState:
    """Return the state of a host whose guests are visited but for so much, and that has been at it for long."""
    held = {guest.key: guest.rss_kib for guest in snapshot.guests if guest.rss_kib is not None}
    return AdaptiveState(
        taken_s=max(snapshot.taken_s - 1, 0.0),
        engaged=True,
        guests_kib=held,
        half_kib=min(owed_kib, sum(held.values())),
        broken_kib=backoff * owed_kib // 8,
        gained_kib=owed_kib // 2,
        backoff=backoff,
        probe_due_s=snapshot.taken_s + 1000,
        round_cost_s_per_kib=1e-6,
    )


@given(
    params,
    histories() | st.lists(snapshots, min_size=1, max_size=6),
    st.none() | st.integers(0, 64) | st.integers(0, 2**22),
    st.sampled_from([1, 2, 64]),
)
def test_adaptive_turns_where_it_says(
    chosen: AdaptiveParams, looks: list[Snapshot], owed_kib: int | None, backoff: int
) -> None:
    policy = AdaptivePolicy(params=chosen)
    state = AdaptiveState() if owed_kib is None else covered(looks[0], owed_kib, backoff)
    for snapshot in looks:
        decision, state = policy.decide(snapshot, state, TIMER)
        for turn in decision.reason.turns_when:
            check_turn(policy, snapshot, state, turn)


def check_turn(policy: AdaptivePolicy, snapshot: Snapshot, state: AdaptiveState, turn: Turn) -> None:
    """Try one turn of a decision that has left `state` behind."""
    probe_s = float("inf") if state.probe_due_s is None else state.probe_due_s - snapshot.taken_s
    if turn.then == "owes a round" and turn.quantity == "owed_kib" and probe_s <= policy.params.settle_s + 2 * MARGIN_S:
        return  # what grows has to settle first, and the probe comes before that
    step = step_of(turn)
    short = turn.threshold - step if turn.threshold > turn.present else turn.threshold + step
    crossed = turn.threshold + step if is_float(turn) else turn.threshold
    if turn.quantity == PASSED_S and turn.then != "probes" and probe_s <= crossed:
        return
    assert happens(policy, snapshot, state, turn, crossed), turn
    if short >= 0 and (turn.quantity != PASSED_S or turn.threshold > 0):
        assert not happens(policy, snapshot, state, turn, short), turn


def is_float(turn: Turn) -> bool:
    return turn.quantity in (PASSED_S, "waited_kib_s")


def step_of(turn: Turn) -> float:
    if turn.quantity == PASSED_S:
        return MARGIN_S
    return max(turn.threshold, 1.0) * ROUGHLY if turn.quantity == "waited_kib_s" else 1


def happens(policy: AdaptivePolicy, snapshot: Snapshot, state: AdaptiveState, turn: Turn, value: float) -> bool:
    """Tell whether the policy decides as the turn says, with its quantity at that value."""
    if turn.quantity == "waited_kib_s":
        decision, after = policy.decide(snapshot, replace(state, waited_kib_s=value), TIMER)
    elif turn.quantity == "owed_kib":
        grown = with_guest(snapshot, Guest(uuid="new", name="new", rss_kib=int(value - turn.present)))
        decision, after = policy.decide(grown, state, TIMER)
        settle_s = settle_seconds(policy.params, judge_need(grown, policy.params, was_engaged=True))
        if settle_s > 0 and not ADAPTIVE[turn.then](decision.reason.rule):  # until then it is young
            settled = replace(grown, taken_s=grown.taken_s + settle_s + MARGIN_S)
            decision, after = policy.decide(settled, after, TIMER)
    else:
        decision, after = policy.decide(moved(snapshot, turn.quantity, value), state, TIMER)
    if turn.then == "ends the round":
        assert state.round is not None
        return after.round is None or after.round.ends_at_full_scans != state.round.ends_at_full_scans
    return ADAPTIVE[turn.then](decision.reason.rule)


def moved(snapshot: Snapshot, quantity: str, value: float) -> Snapshot:
    """Return the snapshot with one quantity of the adaptive law moved there."""
    match quantity:
        case "available_kib":
            return replace(snapshot, host=replace(snapshot.host, available_kib=int(value)))
        case "full_scans":
            return replace(snapshot, ksm=replace(snapshot.ksm, full_scans=int(value)))
        case "run":
            return replace(snapshot, ksm=replace(snapshot.ksm, run=int(value)))
        case "passed_s":
            return replace(snapshot, taken_s=snapshot.taken_s + value)
    assert quantity == "potential_kib"
    held = tuple(replace(guest, max_kib=None) for guest in snapshot.guests)
    free_kib = int(value) - snapshot.committed_kib
    assert free_kib >= 0, "guests cannot shrink to less than they hold by what they may grow to"
    return with_guest(replace(snapshot, guests=held), Guest(uuid="x", name="x", rss_kib=None, max_kib=free_kib))


def with_guest(snapshot: Snapshot, guest: Guest) -> Snapshot:
    return replace(snapshot, guests=(*snapshot.guests, guest))


@given(st.booleans())
def test_switched_off_it_turns_with_the_switch_alone(was_off: bool) -> None:
    turns = decide_off(SwitchedOff(), was_off=was_off).reason.turns_when
    assert [turn.text for turn in turns] == ["asks the policy again after `virtksm on`"]


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (
            Turn(then="engages", quantity="available_kib", threshold=4_823_449, present=7_444_889),
            "engages when available memory falls to 4.6 GiB; now 7.1 GiB",
        ),
        (
            Turn(then="engages", quantity="available_kib", threshold=4_823_449, present=4_823_451),
            "engages when available memory falls to 4823449 KiB; now 4823451 KiB",
        ),
        (
            Turn(then="begins a round", quantity="waited_kib_s", threshold=2_097_152.5, present=1024.0),
            "begins a round when the waiting of what is owed rises to 2.0 GiB s; now 1.0 MiB s",
        ),
        (
            Turn(then="probes", quantity="passed_s", threshold=240.4, present=0.0),
            "probes in 240 s, if nothing else changes",
        ),
        (
            Turn(then="begins a round", quantity="passed_s", threshold=0.0, present=0.0),
            "begins a round at the next look, if nothing else changes",
        ),
        (
            Turn(then="decides by memory", quantity="run", threshold=1, present=2),
            "decides by memory when run of /sys/kernel/mm/ksm falls to 1; now 2",
        ),
        (
            Turn(then="ends the round", quantity="full_scans", threshold=12_345_679, present=12_345_678),
            "ends the round when full_scans rises to 12345679; now 12345678",
        ),
    ],
)
def test_a_turn_is_a_sentence(turn: Turn, text: str) -> None:
    assert turn.text == text
