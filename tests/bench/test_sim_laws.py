"""What holds of the simulator whatever happens on the host: bounds, completeness, silence."""

from functools import partial
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.sim.driver import Event, Outcome, run_fixed
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.runs import Runs
from bench.sim.visit import Rules
from bench.steps import Start, Stop
from demo.guests import PayloadGuest
from virtksm.model.snapshot import Settings

NAMES = "abcdef"
UNTIL_S = 40.0

mib = st.integers(0, 40)


@st.composite
def scenarios(draw: st.DrawFn) -> list[Event]:
    """Guests of all kinds start, some end."""
    events: list[Event] = []
    for number, name in enumerate(NAMES[: draw(st.integers(1, len(NAMES)))]):
        at_s = draw(st.floats(0.0, 20.0))
        guest = PayloadGuest(
            name=name,
            memory_mib=200,
            common_mib=draw(st.integers(1, 40)),
            zero_mib=draw(mib),
            own_mib=draw(st.integers(1, 40)),
            seed=number,
            rewrite_per_s=draw(st.sampled_from([0, 0, 200])),
            rewrite_common_per_s=draw(st.sampled_from([0, 0, 100])),
            slow_mib_per_s=draw(st.sampled_from([0, 5])),
            grow_mib_per_min=draw(st.sampled_from([0, 30])),
        )
        events.append(Start(at_s=at_s, guest=guest))
        if draw(st.booleans()):
            events.append(Stop(at_s=at_s + draw(st.floats(0.1, 40.0)), name=name))
    return events


kernel_settings = st.builds(
    partial(Settings),  # else Hypothesis makes up the fields of a NamedTuple that have a default, too
    pages_to_scan=st.sampled_from([0, 1, 100, 5000, 100_000]) | st.integers(0, 2**32 - 1),
    sleep_millisecs=st.sampled_from([1, 20, 200, 10_000, 2**32 - 1]) | st.integers(1, 1000),
)
kernels = st.builds(Rules, smart_scan=st.booleans(), checksum_first=st.booleans())


def check_counters(host: SimHost, run: Outcome) -> None:
    ksmd, trees = host.ksmd, host.ksmd.trees
    known = sum(
        (high - low) * state.known
        for process in ksmd.processes
        for region in process.regions
        for low, high, state in region.states.within(0, region.most_pages)
    )
    assert trees.known == known == trees.stable.pages + trees.inserted + trees.pages_volatile
    assert min(trees.pages_shared, trees.pages_sharing, trees.inserted, trees.in_tree, trees.pages_volatile) >= 0
    resident = sum(region.filled(host.now_s) for one in host.guests_by_name.values() for region in one.regions)
    assert 0 <= host.saved_pages <= resident
    assert all(earlier.pages_scanned <= later.pages_scanned for earlier, later in pairwise(run.samples))
    assert run.samples[-1].ksmd_cpu_seconds <= UNTIL_S * 1.001


@settings(max_examples=20)
@given(scenario=scenarios(), fixed=kernel_settings, rules=kernels)
def test_counters_agree_with_the_pages(scenario: list[Event], fixed: Settings, rules: Rules) -> None:
    host = SimHost(total_kib=2**24, ksmd=Ksmd(rules=rules))
    check_counters(host, run_fixed(host, fixed, scenario, until_s=UNTIL_S))


ranges = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))


@given(assignments=st.lists(ranges, max_size=30))
def test_runs_are_a_list_of_values(assignments: list[tuple[int, int, int]]) -> None:
    runs, values = Runs(0), [0] * 61
    for low, high, value in assignments:
        runs.assign(low, high, value)
        values[low:high] = [value] * max(0, high - low)
        found = [(low, high, value) for low, high, value in runs.within(0, 61)]
        assert [value for start, end, value in found for _ in range(start, end)] == values
        assert all(earlier[2] != later[2] for earlier, later in pairwise(found))
        assert all(runs.run_at(place)[2] == values[place] for place in range(61))
