"""What ksmtuned's law keeps to on every host and with every configuration that the schema admits."""

import json

from hypothesis import given
from hypothesis import strategies as st

from virtksm.config.schema import KsmtunedParams
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import IDLE, Guest, HostMemory, KsmState, Settings, Snapshot, Source
from virtksm.policy.ksmtuned import KsmtunedPolicy, KsmtunedState
from virtksm.values import replace

UINT_MAX = 2**32 - 1
STEP = Triggers(kinds=frozenset({Trigger.TIMER}))

memory_kib = st.one_of(st.integers(0, 64), st.integers(0, 2**24), st.integers(0, 2**53), st.integers(0, 2**70))
times_s = st.floats(-1e9, 1e9)
states = st.builds(
    KsmtunedState, npages=st.one_of(st.integers(0, 3000), st.integers(0, UINT_MAX)), stepped_at_s=st.none() | times_s
)
trigger_sets = st.builds(Triggers, kinds=st.frozensets(st.sampled_from(Trigger), min_size=1))


@st.composite
def policies(draw: st.DrawFn) -> KsmtunedPolicy:
    least, most = sorted(draw(st.tuples(*[st.integers(1, 2000) | st.integers(1, 1_000_000)] * 2)))
    params = KsmtunedParams(
        monitor_interval=draw(st.integers(1, 86_400)),
        sleep_msec=draw(st.integers(0, 100) | st.integers(0, 1_000_000)),
        npages_boost=draw(st.integers(0, 600) | st.integers(0, 1_000_000)),
        npages_decay=draw(st.integers(-100, 0) | st.integers(-1_000_000, 0)),
        npages_min=least,
        npages_max=most,
        thres_coef=draw(st.integers(0, 100)),
        thres_const=draw(st.integers(0, 4096) | st.integers(0, 2**40)),
    )
    return KsmtunedPolicy(params=params)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Hosts of any size; free and committed memory lie near the thresholds more often than chance would have it."""
    total_kib = draw(memory_kib)
    thirds = st.integers(-2, total_kib + 2) | st.integers(total_kib // 5 - 2, total_kib // 5 + 2)
    guests = [Guest(uuid=str(i), name=str(i), rss_kib=draw(st.none() | thirds)) for i in range(draw(st.integers(0, 3)))]
    return Snapshot(
        taken_s=draw(times_s),
        source=draw(st.sampled_from(Source)),
        host=HostMemory(
            total_kib=total_kib, free_kib=draw(thirds), buffers_kib=draw(memory_kib), cached_kib=draw(memory_kib)
        ),
        ksm=KsmState(settings=Settings(pages_to_scan=draw(st.none() | st.integers(0, UINT_MAX)), sleep_millisecs=20)),
        guests=tuple(guests),
    )


@given(policies(), snapshots(), states, trigger_sets)
def test_bounds_hold_and_the_state_survives_json(
    policy: KsmtunedPolicy, snapshot: Snapshot, state: KsmtunedState, triggers: Triggers
) -> None:
    decision, after = policy.decide(snapshot, state, triggers)
    pages, sleep_ms = decision.target.pages_to_scan, decision.target.sleep_millisecs
    assert pages is not None
    assert sleep_ms is not None
    if decision.is_idle:
        assert (decision.target, after.npages) == (IDLE, state.npages)
    else:
        assert policy.params.npages_min <= pages <= policy.params.npages_max
        assert 10 <= sleep_ms <= UINT_MAX
        assert after.npages == (pages if triggers.is_step else state.npages)
    assert decision.target.merge_across_nodes is None
    assert decision.next_pass_s is not None
    assert 0 <= decision.next_pass_s <= policy.params.monitor_interval
    for known in (state, policy.first_state(snapshot), after):
        assert policy.load_state(json.loads(json.dumps(policy.dump_state(known)))) == known
    if not triggers.is_step:
        assert after == state
        assert decision.is_idle == policy.decide(snapshot, state, STEP)[0].is_idle


@given(policies(), snapshots(), states, trigger_sets, st.integers(0, 2**24))
def test_less_free_or_more_committed_memory_never_slows_scanning(
    policy: KsmtunedPolicy, snapshot: Snapshot, state: KsmtunedState, triggers: Triggers, kib: int
) -> None:
    scarcer = replace(snapshot, host=replace(snapshot.host, free_kib=snapshot.host.free_kib - kib))
    fuller = replace(snapshot, guests=(*snapshot.guests, Guest(uuid="x", name="x", rss_kib=kib)))
    pages = policy.decide(snapshot, state, triggers)[0].target.pages_to_scan or 0
    for tighter in (scarcer, fuller):
        assert (policy.decide(tighter, state, triggers)[0].target.pages_to_scan or 0) >= pages


@given(policies(), snapshots(), states)
def test_a_settled_host_comes_to_settings_that_no_longer_change(
    policy: KsmtunedPolicy, snapshot: Snapshot, state: KsmtunedState
) -> None:
    rule = policy.decide(snapshot, state, STEP)[0].reason.rule
    pace = {"boost": policy.params.npages_boost, "decay": -policy.params.npages_decay}.get(rule, 0)
    # One step leads within the bounds, which lie at most 50 paces apart here, and 50 more to the one it strives for.
    most = min(policy.params.npages_max, policy.params.npages_min + 50 * max(pace, 1))
    policy = KsmtunedPolicy(params=replace(policy.params, npages_max=most))
    for _ in range(51):
        decision, state = policy.decide(snapshot, state, STEP)
    again, past_again = policy.decide(snapshot, state, STEP)
    assert again.target == decision.target
    assert past_again == state
