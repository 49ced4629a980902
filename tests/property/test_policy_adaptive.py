"""The adaptive law on any sequence of snapshots: its bounds hold, its state survives, and nothing makes it fail."""

import json
from functools import partial

from hypothesis import example, given, settings
from hypothesis import strategies as st

from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import (
    IDLE,
    IDLE_SLEEP_MS,
    KERNEL_MAXIMUM,
    LIBVIRT_COUNTERS,
    Guest,
    HostMemory,
    KsmState,
    MergedReading,
    NodeMemory,
    OtherProcesses,
    Settings,
    Snapshot,
    Source,
)
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.engage import judge_need
from virtksm.policy.adaptive.full_scans import FED_SLEEPS_MS
from virtksm.policy.adaptive.state import AdaptiveState, Arrivals, Learned, dump_state, load_state
from virtksm.policy.adaptive.worth import MIN_WAIT_S
from virtksm.store.state import MAX_CHARACTERS, dump_host_state, parse_host_state
from virtksm.tuning.ownership import HostState
from virtksm.values import replace

MAX_KIB = 2**40
kib = st.integers(0, MAX_KIB)
counter = st.none() | st.integers(0, 2**50)
params = st.builds(
    AdaptiveParams,
    engage=st.sampled_from(["auto", "short", "always", "never"]),
    reserve_percent=st.integers(0, 100),
    cpu_percent=st.integers(1, 100),
    max_cpu_percent=st.integers(0, 100),
    settle_s=st.integers(0, 3600),
    merge_across_nodes=st.sampled_from(["keep", "never", "always"]),
    exclude_rewriters=st.booleans(),
)
# Hypothesis makes up the fields of a NamedTuple that have a default, too, but none that `partial` has hidden.
guests = st.lists(
    st.builds(
        partial(Guest),
        uuid=st.sampled_from("abc"),
        name=st.just("g"),
        domain_id=st.integers(1, 2),
        rss_kib=st.none() | kib,
        shared_kib=st.none() | kib,
        can_merge=st.sampled_from([True, True, False]),
        max_kib=st.none() | kib,
        pool_kib=st.none() | kib,
        dirty_kib_per_s=st.none() | st.floats(0, 1e7),
        image=st.sampled_from([None, "image-1", "image-2"]),
        merged=st.none() | st.builds(MergedReading, taken_s=st.floats(0, 1e6), counted_kib=kib, mapped_kib=kib),
    ),
    max_size=3,
    unique_by=lambda guest: guest.key,
).map(tuple)
snapshots = st.builds(
    partial(Snapshot),
    taken_s=st.floats(0, 1e6),
    source=st.sampled_from(Source),
    host=st.builds(
        partial(HostMemory),
        **dict.fromkeys(("total_kib", "free_kib", "buffers_kib", "cached_kib"), kib),
        **dict.fromkeys(("available_kib", "hugetlb_kib", "arc_kib", "limit_kib", "limit_left_kib"), st.none() | kib),
    ),
    ksm=st.builds(
        partial(KsmState),
        settings=st.builds(
            Settings,
            pages_to_scan=st.integers(0, KERNEL_MAXIMUM),
            sleep_millisecs=st.integers(0, KERNEL_MAXIMUM),
            merge_across_nodes=st.none() | st.integers(0, 1),
        ),
        **dict.fromkeys((*LIBVIRT_COUNTERS, "pages_scanned", "pages_skipped", "cow_ksm"), counter),
        run=st.sampled_from([None, 0, 1, 1, 1, 2]),
        ksmd_cpu_seconds=st.none() | st.floats(0, 1e6),
    ),
    guests=guests,
    other_processes=st.none()
    | st.builds(OtherProcesses, kib=kib, processes=st.integers(0, 9), unread=st.integers(0, 9)),
    cpus=st.none() | st.integers(1, 8192),
)
trigger_sets = st.builds(Triggers, kinds=st.frozensets(st.sampled_from(Trigger), min_size=1))
passes = st.lists(st.tuples(snapshots, trigger_sets), min_size=1, max_size=12)


@given(params, passes)
def test_whatever_it_sees_its_bounds_hold_and_its_state_survives_json(
    chosen: AdaptiveParams, seen: list[tuple[Snapshot, Triggers]]
) -> None:
    """Clocks that jump, counters that vanish or fall back, guests that come, go and cannot be read."""
    policy = AdaptivePolicy(params=chosen)
    state = AdaptiveState()
    for snapshot, triggers in seen:
        decision, state = policy.decide(snapshot, state, triggers)
        pages, sleep_ms = decision.target.pages_to_scan, decision.target.sleep_millisecs
        assert pages is not None
        assert 0 <= pages <= KERNEL_MAXIMUM
        assert sleep_ms in (FED_SLEEPS_MS if pages else (IDLE_SLEEP_MS,))
        assert decision.next_pass_s is not None
        assert MIN_WAIT_S <= decision.next_pass_s <= 60
        assert decision.reason.text
        assert set(decision.rewriters) <= (
            {guest.key for guest in snapshot.guests} if chosen.exclude_rewriters else set()
        )
        assert state.backlog.new_kib >= 0
        assert state.backlog.scanned_once_kib >= 0
        assert state.backlog.new_kib + state.backlog.scanned_once_kib <= sum(state.guests_kib.values()) + 4 * 2**52
        assert load_state(json.loads(json.dumps(dump_state(state)))) == state


@settings(max_examples=25)
@given(
    st.integers(0, 3600),
    st.lists(st.tuples(st.integers(1, 150), st.floats(0.25, 1000), st.floats(0, 0.3)), min_size=1, max_size=5),
)
@example(3600, [(150, 0.5, 1.0)])
@example(3600, [(150, 0.5 * 4.0**one, available) for one, available in enumerate((0.01, 0.04, 0.1, 0.15, 1.0))])
def test_whatever_grows_its_state_is_never_too_long_to_be_loaded(
    settle_s: int, times: list[tuple[int, float, float]]
) -> None:
    """Of 500 guests; so many passes so far apart, with such a share of memory available."""
    policy, state, at_s, grown_kib = AdaptivePolicy(params=AdaptiveParams(settle_s=settle_s)), AdaptiveState(), 0.0, 0
    ksm = KsmState(
        settings=IDLE, pages_shared=0, pages_sharing=0, pages_unshared=0, pages_volatile=0, full_scans=0, run=1
    )
    uuids = [f"3f2504e0-4f89-11d3-9a0c-{number:012x}" for number in range(2)]
    for number, every_s, available in times:
        host = HostMemory(
            total_kib=2**31, free_kib=0, buffers_kib=0, cached_kib=0, available_kib=int(2**31 * available)
        )
        for _ in range(number):
            at_s, grown_kib = at_s + every_s, grown_kib + 4
            held = tuple(
                Guest(uuid=one, name="g", domain_id=99, rss_kib=2**22 + grown_kib, max_kib=2**31) for one in uuids
            )
            snapshot = Snapshot(taken_s=at_s, source=Source.LOCAL, host=host, ksm=ksm, guests=held)
            state = policy.decide(snapshot, state, Triggers(kinds=frozenset({Trigger.TIMER})))[1]
    saved = HostState(policy_name=policy.name, policy_state=policy.dump_state(state))
    text = dump_host_state(saved)
    assert load_state(parse_host_state(text).policy_state or {}) == state
    assert len(text) * 500 / len(uuids) < MAX_CHARACTERS


@given(params, passes)
def test_it_never_scans_when_it_may_not(chosen: AdaptiveParams, seen: list[tuple[Snapshot, Triggers]]) -> None:
    policy = AdaptivePolicy(params=replace(chosen, engage="never"))
    state = AdaptiveState()
    for snapshot, triggers in seen:
        decision, state = policy.decide(snapshot, state, triggers)
        assert decision.is_idle


@given(params, passes, kib, kib)
def test_less_memory_never_makes_it_scan_slower(
    chosen: AdaptiveParams, seen: list[tuple[Snapshot, Triggers]], one_kib: int, other_kib: int
) -> None:
    """The last pass of any history, once with less and once with more memory available."""
    policy = AdaptivePolicy(params=chosen)
    state = AdaptiveState()
    for snapshot, triggers in seen[:-1]:
        state = policy.decide(snapshot, state, triggers)[1]
    snapshot, triggers = seen[-1]
    less_kib, more_kib = sorted((one_kib, other_kib))
    batches = []
    for available_kib in (less_kib, more_kib):
        scarce = replace(snapshot, host=replace(snapshot.host, available_kib=available_kib))
        target = policy.decide(scarce, state, triggers)[0].target
        grants = target.sleep_millisecs != snapshot.ksm.settings.sleep_millisecs
        batches.append((target.pages_to_scan or 0) if grants else 0)
    assert batches[0] >= batches[1]


@given(params, snapshots, st.booleans())
def test_what_is_no_memory_to_be_short_of_never_presses(
    chosen: AdaptiveParams, snapshot: Snapshot, was_engaged: bool
) -> None:
    """A pool taken out, or a cache that comes back, never raises pressure; a guest in the pool never engages."""
    need = judge_need(snapshot, chosen, was_engaged=was_engaged)
    assert 0 <= need.pressure <= 1
    host = snapshot.host
    assert 0 <= host.usable_kib <= host.total_kib
    assert host.spare_kib is None or host.spare_kib >= 0
    for bare_host in (replace(host, hugetlb_kib=None), replace(host, arc_kib=None)):
        bare = judge_need(replace(snapshot, host=bare_host), chosen, was_engaged=was_engaged)
        assert need.pressure <= bare.pressure
    guest = Guest(uuid="d", name="d", rss_kib=0, max_kib=MAX_KIB, pool_kib=MAX_KIB)
    beside = judge_need(replace(snapshot, guests=(*snapshot.guests, guest)), chosen, was_engaged=was_engaged)
    assert beside == need


nodes = st.builds(NodeMemory, usable_kib=kib, available_kib=kib, potential_kib=kib, nodes=st.tuples(st.integers(0, 7)))


@given(params, snapshots, st.booleans(), st.lists(nodes, max_size=3), st.sampled_from(["auto", "short"]))
def test_nodes_are_named_where_they_are_shorter_of_memory_than_the_host_and_never_make_it_less_so(
    chosen: AdaptiveParams, snapshot: Snapshot, was_engaged: bool, bound: list[NodeMemory], engage: str
) -> None:
    chosen = replace(chosen, engage=engage)
    alone, beside = (
        judge_need(replace(snapshot, bound=tuple(places)), chosen, was_engaged=was_engaged) for places in ((), bound)
    )
    assert (beside.pressure, beside.engaged) >= (alone.pressure, alone.engaged)
    assert bool(beside.where) == ((beside.pressure, beside.engaged) > (alone.pressure, alone.engaged))
    assert alone.where == ""


@given(params, snapshots)
def test_a_host_that_has_settled_is_left_in_peace(chosen: AdaptiveParams, snapshot: Snapshot) -> None:
    """No backlog, nothing changes in place, all is seen: the same idle settings for ever."""
    seen = OtherProcesses(kib=0, processes=0, unread=0)
    still = tuple(replace(guest, dirty_kib_per_s=0.0) for guest in snapshot.guests if guest.rss_kib is not None)
    snapshot = replace(snapshot, guests=still, other_processes=seen)
    known = {guest.key: guest.rss_kib for guest in snapshot.guests if guest.rss_kib is not None}
    state = AdaptiveState(
        taken_s=snapshot.taken_s,
        guests_kib=known,
        pages_sharing=snapshot.ksm.pages_sharing,
        cow_ksm=snapshot.ksm.cow_ksm,
        learned=Learned(ended_s=snapshot.taken_s),
    )
    policy = AdaptivePolicy(params=replace(chosen, merge_across_nodes="keep"))
    timer = Triggers(kinds=frozenset({Trigger.TIMER}))
    targets = set()
    for later_s in range(0, 1000, 50):
        decision, state = policy.decide(replace(snapshot, taken_s=snapshot.taken_s + later_s), state, timer)
        targets.add(decision.target)
    assert len(targets) == 1
    assert targets.pop().pages_to_scan == 0


@given(params, passes, st.lists(kib, min_size=1))
def test_a_guest_that_cannot_merge_changes_nothing_whatever_it_holds(
    chosen: AdaptiveParams, seen: list[tuple[Snapshot, Triggers]], held_kib: list[int]
) -> None:
    """Apart from the need for memory, to which it adds like every other."""
    policy = AdaptivePolicy(params=replace(chosen, engage="always"))
    state = with_it = AdaptiveState()
    for number, (snapshot, triggers) in enumerate(seen):
        apart = Guest(uuid="apart", name="apart", rss_kib=held_kib[number % len(held_kib)], can_merge=False)
        decision, state = policy.decide(snapshot, state, triggers)
        beside, with_it = policy.decide(replace(snapshot, guests=(*snapshot.guests, apart)), with_it, triggers)
        assert (beside.target, beside.reason.text, with_it) == (decision.target, decision.reason.text, state)


@given(params, passes, kib)
def test_a_guest_found_unable_to_merge_while_its_memory_settles_leaves_nothing_behind(
    chosen: AdaptiveParams, seen: list[tuple[Snapshot, Triggers]], held_kib: int
) -> None:
    """The agent reads a guest's XML after the first pass that sees it."""
    policy = AdaptivePolicy(params=replace(chosen, engage="always", settle_s=3600))
    state = AdaptiveState()
    for snapshot, triggers in seen:
        state = policy.decide(snapshot, state, triggers)[1]
    policy = AdaptivePolicy(params=replace(policy.params, engage="never"))  # no full scan is under way or begins
    snapshot = replace(snapshot, host=replace(snapshot.host, available_kib=2 * MAX_KIB, limit_left_kib=None))
    late = Guest(uuid="late", name="late", rss_kib=held_kib)
    found = replace(late, can_merge=False)
    states = []
    for first, then in (((), ()), ((late,), (found,))):
        after = state
        for more in (first, then):
            after = policy.decide(replace(snapshot, guests=(*snapshot.guests, *more)), after, triggers)[1]
        states.append(replace(after, arrivals=Arrivals(recent=after.arrivals.recent)))
    none, both = (replace(one, backlog=replace(one.backlog, changed={}, changed_kib_s=0.0)) for one in states)
    assert both == none
