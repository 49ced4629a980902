"""What would change a decision is true: at the threshold the policy decides so, just short of it not yet.

For every decision of any history, each of its thresholds is tried again, with the quantity moved there.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.test_policy_adaptive import params, snapshots
from tests.property.test_policy_ksmtuned import policies as ksmtuned_policies
from tests.property.test_policy_ksmtuned import snapshots as ksmtuned_snapshots
from tests.property.test_policy_ksmtuned import states as ksmtuned_states
from tests.property.test_policy_ksmtuned import trigger_sets as ksmtuned_triggers
from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Decision, Threshold, Triggers
from virtksm.model.snapshot import Guest, HostMemory, KsmState, OtherProcesses, Settings, Snapshot, Source
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.changes import CHANGED, total_kib
from virtksm.policy.adaptive.engage import judge_need, with_available
from virtksm.policy.adaptive.full_scans import cpu_share, seconds_until_stalled
from virtksm.policy.adaptive.quantities import name_change
from virtksm.policy.adaptive.state import AdaptiveState, Backlog, Learned, Ratio
from virtksm.policy.adaptive.worth import seconds_to_wait
from virtksm.policy.base import Policy, State
from virtksm.policy.ksmtuned import KsmtunedPolicy, KsmtunedState
from virtksm.policy.off import RESUMED
from virtksm.policy.thresholds import LATER_S, TIMER, find_thresholds, step_to
from virtksm.values import replace


def check_thresholds(policy: Policy[State], snapshot: Snapshot, state: State, decision: Decision) -> list[Threshold]:
    """Try every threshold of a decision that has left `state` behind, and return them."""
    found = list(find_thresholds(policy, snapshot, state, decision))
    quantities = list(policy.quantities(snapshot, state, decision))
    for threshold in found:
        value, present = threshold.value, threshold.present
        asks = [
            ask
            for name, _, points, ask in quantities
            if name == threshold.quantity and (points[-1] - present) * (value - present) >= 0
        ]
        assert asks[0](value) == threshold.then
        step = step_to(value, threshold.quantity, present)
        if value != present:
            assert not asks[0](max(value - step, 0) if value > present else value + step)
    return found


def moved(snapshot: Snapshot, quantity: str, value: float) -> Snapshot | None:
    """Return the host, with all its guests, with one quantity of the adaptive law moved; None if it is another one.

    Of time as well: what changes is rounded for each guest, and the threshold was found with all of them in one.
    """
    match quantity:
        case "available_kib":
            return with_available(snapshot, int(value))
        case "full_scans":
            return replace(snapshot, ksm=replace(snapshot.ksm, full_scans=int(value)))
        case "run":
            return replace(snapshot, ksm=replace(snapshot.ksm, run=int(value)))
        case "potential_kib":
            held = tuple(replace(guest, max_kib=None) for guest in snapshot.guests)
            more = Guest(uuid="more", name="more", max_kib=int(value) - snapshot.committed_kib)
            return replace(snapshot, guests=(*held, more))
    return None


@given(ksmtuned_policies(), ksmtuned_snapshots(), ksmtuned_states, ksmtuned_triggers)
def test_ksmtuned_decides_so_at_the_threshold_and_not_just_short_of_it(
    policy: KsmtunedPolicy, snapshot: Snapshot, state: KsmtunedState, triggers: Triggers
) -> None:
    decision, after = policy.decide(snapshot, state, triggers)
    check_thresholds(policy, snapshot, after, decision)


@given(ksmtuned_policies(), ksmtuned_snapshots(), ksmtuned_states)
def test_ksmtuned_says_what_changes_every_step_that_one_quantity_can_change(
    policy: KsmtunedPolicy, snapshot: Snapshot, state: KsmtunedState
) -> None:
    """Idle it may scan; scanning it may do something else, as long as a host can have as much as its threshold."""
    decision, after = policy.decide(snapshot, state, TIMER)
    if 0 < (decision.reason.numbers.get("thres_kib") or 0) <= snapshot.host.total_kib:
        assert list(find_thresholds(policy, snapshot, after, decision))


@st.composite
def histories(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots of one host: guests that come, grow and go, memory around the reserve, full scans that end or not."""
    total_kib = draw(st.integers(1, 2**24))
    at_s, full_scans = draw(st.floats(0, 1e5)), 0
    held: dict[str, int] = {}
    other_processes_kib = 0
    counts = {"processes": st.just(1), "unread": st.just(0)}
    seen = []
    for _ in range(draw(st.integers(1, 8))):
        at_s += draw(st.sampled_from([0.25, 1.0, 5.0, 30.0, 150.0, 2000.0]))
        full_scans += draw(st.integers(0, 2))
        if draw(st.booleans()):
            held[draw(st.sampled_from("abc"))] = draw(st.integers(0, total_kib // 2))
        if draw(st.integers(0, 9)) == 0:
            held.clear()
        known = draw(st.sampled_from([0, 0, sum(held.values()) // 4, total_kib // 8]))
        available_kib = draw(st.integers(0, total_kib) | st.integers(total_kib // 5 - 3, total_kib // 5 + 3))
        sharing = draw(st.integers(0, known))
        other_processes_kib = draw(st.sampled_from([0, other_processes_kib, total_kib // 8]))
        seen.append(
            Snapshot(
                taken_s=at_s,
                source=draw(st.sampled_from(Source)),
                host=HostMemory(
                    total_kib=total_kib,
                    free_kib=0,
                    buffers_kib=0,
                    cached_kib=0,
                    available_kib=max(available_kib, 0),
                    hugetlb_kib=draw(st.none() | st.integers(0, total_kib)),
                    arc_kib=draw(st.none() | st.integers(0, total_kib // 8)),
                    limit_kib=draw(st.none() | st.integers(0, 2 * total_kib)),
                    limit_left_kib=draw(st.none() | st.integers(0, total_kib)),
                ),
                ksm=KsmState(
                    settings=Settings(pages_to_scan=0, sleep_millisecs=10_000),
                    pages_shared=0,
                    pages_sharing=sharing,
                    pages_unshared=known - sharing,
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
    return seen


def covered(snapshot: Snapshot, backlog_kib: int, lasting: int) -> AdaptiveState:
    """Return the state of a host whose guests are scanned but for so much, by an agent that has run for long."""
    held = {guest.key: guest.rss_kib for guest in snapshot.guests if guest.rss_kib is not None}
    backlog = {key: min(backlog_kib, kib) for key, kib in held.items() if backlog_kib and kib}
    return AdaptiveState(
        taken_s=max(snapshot.taken_s - 1, 0.0),
        engaged=True,
        guests_kib=held,
        backlog=Backlog(scanned_once=backlog),
        learned=Learned(
            pair={CHANGED + key: kib for key, kib in backlog.items()},
            ratios={CHANGED + key: Ratio(0.2, 0.0) for key in backlog},
            expected_kib=0.2 * sum(backlog.values()),
            merged_kib=int(sum(backlog.values())) // lasting,
            full_scan_cost_s_per_kib=1e-6,
        ),
    )


MAX_TOTAL_KIB = 2**30
"""A larger host's full scan may wait for longer than is asked for."""


@settings(max_examples=50)
@given(
    params,
    histories() | st.lists(snapshots, min_size=1, max_size=6),
    st.none() | st.integers(0, 64) | st.integers(0, 2**22),
    st.sampled_from([1, 2, 64]),
)
def test_adaptive_decides_so_at_the_threshold_and_not_just_short_of_it(
    chosen: AdaptiveParams, seen: list[Snapshot], backlog_kib: int | None, lasting: int
) -> None:
    policy = AdaptivePolicy(params=chosen)
    state = AdaptiveState() if backlog_kib is None else covered(seen[0], backlog_kib, lasting)
    for snapshot in seen:
        decision, state = policy.decide(snapshot, state, TIMER)
        found = check_thresholds(policy, snapshot, state, decision)
        for threshold in found:
            host = moved(snapshot, threshold.quantity, threshold.value)
            if host is not None and total_kib(snapshot, state) <= MAX_TOTAL_KIB:
                assert name_change(decision.reason.rule, state, *policy.decide(host, state, TIMER)) == threshold.then
        current, need = state.scans.current, judge_need(snapshot, chosen, was_engaged=state.engaged)
        if current is None:
            left_s = seconds_to_wait(snapshot, state, need) or 0.0
        else:
            left_s = seconds_until_stalled(snapshot, state, current, cpu_share(snapshot, chosen, need.pressure))
        is_long = left_s > LATER_S[-1] / 2 or total_kib(snapshot, state) > MAX_TOTAL_KIB
        assert found or is_long or decision.reason.rule in ("disengaged", "idle", "stalled", "empty"), (
            "while it acts, time alone brings something about"
        )


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (RESUMED, "asks the policy again after `virtksm resume`"),
        (
            Threshold(then="engages", quantity="available_kib", value=4_823_449, present=7_444_889),
            "engages when available memory falls to 4.6 GiB; now 7.1 GiB",
        ),
        (
            Threshold(then="plans a full scan", quantity="growth_kib", value=4096, present=0),
            "plans a full scan after 4.0 MiB of new guest memory",
        ),
        (
            Threshold(then="begins a check scan", quantity="passed_s", value=240.4, present=0),
            "begins a check scan in 240 s, if nothing else changes",
        ),
        (
            Threshold(then="begins a full scan", quantity="passed_s", value=0.0, present=0),
            "begins a full scan at the next pass, if nothing else changes",
        ),
        (
            Threshold(then="ends the full scan", quantity="full_scans", value=12_345_679, present=12_345_678),
            "ends the full scan when full_scans rises to 12345679; now 12345678",
        ),
    ],
)
def test_a_threshold_is_a_sentence(threshold: Threshold, text: str) -> None:
    assert threshold.text == text
