"""The cycle on fakes: what is written, in which order, what is kept, and what another writer or a refusal does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import pytest

from tests.fakes import FakeClock, FakeFacts, FakeHypervisor, FakeStore, FakeSwitch, TargetPolicy
from virtksm.cli.render import restore_lines
from virtksm.errors import Cause, ExitCode, LibvirtUnreachable, StateUnusable, Unsupported
from virtksm.model.decision import SwitchedOff, Trigger, Triggers
from virtksm.model.report import Outcome
from virtksm.model.snapshot import IDLE, KERNEL_DEFAULTS, PARAMETERS, KsmState, Settings
from virtksm.tuning.cycle import Cycle, Tenure
from virtksm.tuning.ownership import HostState, Ownership

TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))
RETUNE = Triggers(kinds=frozenset({Trigger.RETUNE}))
BUSY = Settings(pages_to_scan=400, sleep_millisecs=10)


@dataclass
class Bench:
    """A cycle and everything around it."""

    hypervisor: FakeHypervisor = field(default_factory=FakeHypervisor)
    facts: FakeFacts = field(default_factory=FakeFacts)
    policy: TargetPolicy = field(default_factory=lambda: TargetPolicy(target=BUSY))
    store: FakeStore = field(default_factory=FakeStore)
    switch: FakeSwitch = field(default_factory=FakeSwitch)
    clock: FakeClock = field(default_factory=FakeClock)
    tenure: Tenure = field(default_factory=Tenure)
    on_conflict: Literal["reassert", "yield"] = "reassert"

    @property
    def cycle(self) -> Cycle[int]:
        return Cycle(
            hypervisor=self.hypervisor,
            local=self.facts,
            policy=self.policy,
            store=self.store,
            switch=self.switch,
            clock=self.clock,
            on_conflict=self.on_conflict,
            tenure=self.tenure,
        )

    def new_process(self) -> None:
        self.tenure = Tenure()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_kernel_without_ksm_is_unsupported_and_nothing_is_written(bench: Bench) -> None:
    bench.hypervisor.values.clear()
    with pytest.raises(Unsupported, match="has no KSM"):
        bench.cycle.run(TIMER)
    assert (bench.hypervisor.calls, bench.store.saved) == ([], [])


def agreeing(bench: Bench) -> Bench:
    """Let this machine's files say what libvirt does."""
    bench.hypervisor = CountingHypervisor()
    bench.facts.counters = bench.hypervisor.values
    return bench


class CountingHypervisor(FakeHypervisor):
    """Counts how often it was asked for KSM's state."""

    asked = 0

    def ksm_state(self) -> KsmState:
        self.asked += 1
        return super().ksm_state()


def asked(bench: Bench) -> int:
    assert isinstance(bench.hypervisor, CountingHypervisor)
    return bench.hypervisor.asked


def test_ksm_is_read_from_this_machines_files_once_libvirt_has_said_the_same(bench: Bench) -> None:
    agreeing(bench).cycle.run(TIMER)
    first = asked(bench)
    assert bench.cycle.run(TIMER).outcome is Outcome.UNCHANGED
    assert asked(bench) == first, "nothing was written, so libvirt was not asked"
    bench.hypervisor.values["pages_to_scan"] = 77
    report = bench.cycle.run(TIMER)
    assert (report.before.pages_to_scan, report.after.pages_to_scan) == (77, 400)
    assert asked(bench) == first + 1, "what was written is read back through libvirt"
    bench.new_process()
    bench.cycle.run(TIMER)
    assert asked(bench) == first + 2


def test_files_that_say_something_else_are_not_believed(bench: Bench) -> None:
    """As where the connection only seems to lead to this machine."""
    agreeing(bench).facts.counters = {"pages_to_scan": 5, "sleep_millisecs": 20, "merge_across_nodes": 1}
    for _ in range(3):
        assert bench.cycle.run(TIMER).before.pages_to_scan != 5
    assert not bench.tenure.files_agree


def test_files_that_vanish_leave_libvirts_answer(bench: Bench) -> None:
    agreeing(bench).cycle.run(TIMER)
    before = asked(bench)
    bench.facts.counters = dict.fromkeys(PARAMETERS)
    assert bench.cycle.run(TIMER).before == Settings(pages_to_scan=400, sleep_millisecs=10, merge_across_nodes=1)
    assert asked(bench) > before


def test_it_writes_pages_before_sleep_in_one_call_and_only_what_differs(bench: Bench) -> None:
    report = bench.cycle.run(TIMER)
    assert [list(call.items()) for call in bench.hypervisor.calls] == [
        [("pages_to_scan", 400), ("sleep_millisecs", 10)]
    ]
    assert report.outcome is Outcome.APPLIED
    assert report.changed == {"pages_to_scan": 400, "sleep_millisecs": 10}
    assert bench.cycle.run(TIMER).outcome is Outcome.UNCHANGED
    assert len(bench.hypervisor.calls) == 1


def test_merge_across_nodes_goes_last_and_alone(bench: Bench) -> None:
    bench.policy.target = dataclasses.replace(BUSY, merge_across_nodes=0)
    bench.cycle.run(TIMER)
    assert [list(call) for call in bench.hypervisor.calls] == [
        ["pages_to_scan", "sleep_millisecs"],
        ["merge_across_nodes"],
    ]


def test_a_refused_merge_across_nodes_does_not_keep_the_others_back(bench: Bench) -> None:
    bench.hypervisor.pages_shared = 5
    bench.policy.target = dataclasses.replace(BUSY, merge_across_nodes=0)
    report = bench.cycle.run(TIMER)
    assert report.after == dataclasses.replace(BUSY, merge_across_nodes=1)
    assert [(error.parameter, error.cause) for error in report.refusals] == [("merge_across_nodes", Cause.PAGES_SHARED)]


def test_baseline_and_intention_are_kept_before_the_first_write(bench: Bench) -> None:
    seen: list[HostState] = []
    bench.hypervisor.before_write = lambda name, value: seen.append(bench.store.state)
    bench.cycle.run(TIMER)
    assert seen[0].ownership == {
        "pages_to_scan": Ownership(baseline=100, intended=400),
        "sleep_millisecs": Ownership(baseline=20, intended=10),
    }
    assert bench.store.state.ownership["pages_to_scan"] == Ownership(baseline=100, intended=400, applied=400)


def test_nothing_is_written_when_the_state_cannot_be_kept(bench: Bench) -> None:
    bench.store.is_full = True
    with pytest.raises(StateUnusable):
        bench.cycle.run(TIMER)
    assert bench.hypervisor.calls == []


def test_nothing_is_written_when_sensing_fails(bench: Bench) -> None:
    bench.hypervisor.reading_fails = LibvirtUnreachable("gone")
    with pytest.raises(LibvirtUnreachable):
        bench.cycle.run(TIMER)
    assert bench.hypervisor.calls == []
    assert bench.store.saved == []


def test_a_dry_run_writes_nothing_anywhere(bench: Bench) -> None:
    report = bench.cycle.run(TIMER, dry_run=True)
    assert report.outcome is Outcome.DRY_RUN
    assert report.decision.target == BUSY
    assert bench.hypervisor.calls == []
    assert bench.store.saved == []


@pytest.mark.parametrize("crash_at", ["pages_to_scan", "sleep_millisecs"])
def test_a_crash_between_the_writes_keeps_the_administrators_baseline(bench: Bench, crash_at: str) -> None:
    class Crash(BaseException):
        pass

    def crash(name: str, _value: int) -> None:
        if name == crash_at:
            raise Crash

    bench.hypervisor.before_write = crash
    with pytest.raises(Crash):
        bench.cycle.run(TIMER)
    bench.hypervisor.before_write = lambda name, value: None
    bench.new_process()
    bench.cycle.run(TIMER)
    bench.cycle.restore()
    assert bench.hypervisor.values == {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1}


def test_a_state_that_is_lost_under_the_process_is_kept_again(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.store.state = HostState()
    bench.policy.target = dataclasses.replace(BUSY, pages_to_scan=500)
    bench.cycle.run(TIMER)
    bench.new_process()
    bench.cycle.restore()
    assert bench.hypervisor.values == {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1}


def test_a_state_that_is_lost_just_before_the_end_is_restored_all_the_same(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.store.state = HostState()
    bench.cycle.restore()
    assert bench.hypervisor.values["pages_to_scan"] == 100


def test_a_new_process_takes_a_value_that_is_not_ours_for_the_baseline(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.hypervisor.values["pages_to_scan"] = 77
    bench.new_process()
    report = bench.cycle.run(TIMER)
    assert report.foreign == ()
    bench.cycle.restore()
    assert bench.hypervisor.values["pages_to_scan"] == 77
    assert bench.hypervisor.values["sleep_millisecs"] == 20


def test_restore_leaves_what_somebody_else_has_changed(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.hypervisor.values["pages_to_scan"] = 77
    report = bench.cycle.restore()
    assert report.left == ("pages_to_scan",)
    assert bench.hypervisor.values == {"pages_to_scan": 77, "sleep_millisecs": 20, "merge_across_nodes": 1}


def test_restore_reports_a_refused_merge_across_nodes_and_goes_on(bench: Bench) -> None:
    bench.policy.target = dataclasses.replace(BUSY, merge_across_nodes=0)
    bench.cycle.run(TIMER)
    bench.hypervisor.pages_shared = 9
    report = bench.cycle.restore()
    assert [(error.parameter, error.cause) for error in report.refusals] == [("merge_across_nodes", Cause.PAGES_SHARED)]
    assert report.exit_code is ExitCode.DONE, "while memory is merged it has to wait"
    assert bench.hypervisor.values == {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 0}
    bench.hypervisor.pages_shared = 0
    assert bench.cycle.restore().refusals == ()
    assert bench.hypervisor.values["merge_across_nodes"] == 1


PLANTED = HostState(
    ownership={
        "pages_to_scan": Ownership(baseline=2**32 - 1, intended=0, applied=0),
        "sleep_millisecs": Ownership(baseline=0, intended=10_000, applied=10_000),
        "merge_across_nodes": Ownership(baseline=0, intended=1, applied=1),
    }
)


def test_a_baseline_that_may_be_planted_and_that_nobody_sets_is_the_kernels_default(bench: Bench) -> None:
    bench.store.is_own, bench.store.state = False, PLANTED
    bench.hypervisor.values |= dict(IDLE.items())
    report = bench.cycle.restore()
    assert bench.hypervisor.values == {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 0}
    assert report.as_dict()["doubted"] == ["pages_to_scan", "sleep_millisecs"]
    assert "".join(restore_lines(report.as_dict())).count("doubted") == 2
    assert bench.store.state == HostState()


def test_of_a_doubtful_baseline_nothing_is_told_where_somebody_else_has_set_the_parameter(bench: Bench) -> None:
    bench.store.is_own, bench.store.state = False, PLANTED
    bench.hypervisor.values |= {"pages_to_scan": 77, "sleep_millisecs": 10_000}
    report = bench.cycle.restore()
    assert (report.left, report.doubted) == (("pages_to_scan",), ("sleep_millisecs",))
    assert bench.hypervisor.values["pages_to_scan"] == 77


def test_an_administrators_own_odd_baseline_is_given_back_as_it_was(bench: Bench) -> None:
    odd = {"pages_to_scan": 2**32 - 1, "sleep_millisecs": 0, "merge_across_nodes": 1}
    bench.hypervisor.values = dict(odd)
    bench.cycle.run(TIMER)
    assert bench.cycle.restore().doubted == ()
    assert bench.hypervisor.values == odd


@pytest.mark.parametrize(("pages", "sleep_ms"), [(1_000_000, 1), (0, 3_600_000), (100, 20)])
def test_a_baseline_that_somebody_may_have_set_is_given_back_whoever_kept_it(
    bench: Bench, pages: int, sleep_ms: int
) -> None:
    bench.hypervisor.values |= {"pages_to_scan": pages, "sleep_millisecs": sleep_ms}
    bench.cycle.run(TIMER)
    bench.store.is_own = False
    assert bench.cycle.restore().doubted == ()
    assert bench.hypervisor.values == {"pages_to_scan": pages, "sleep_millisecs": sleep_ms, "merge_across_nodes": 1}


def test_restore_with_a_baseline_gives_that_and_the_next_tenure_begins_with_it(bench: Bench) -> None:
    bench.hypervisor.values |= {"pages_to_scan": 1250, "sleep_millisecs": 10}  # as ksmtuned leaves it
    report = bench.cycle.restore(KERNEL_DEFAULTS)
    assert report.left == ()
    assert bench.hypervisor.values == {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1}
    bench.new_process()
    bench.cycle.run(TIMER)
    bench.cycle.restore()
    assert bench.hypervisor.values == {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1}


def test_restore_with_a_baseline_that_is_refused_keeps_it_for_the_next(bench: Bench) -> None:
    bench.hypervisor.values["pages_to_scan"] = 1250
    bench.hypervisor.advisor_on = True
    assert [error.parameter for error in bench.cycle.restore(KERNEL_DEFAULTS).refusals] == ["pages_to_scan"]
    bench.hypervisor.advisor_on = False
    bench.cycle.restore()
    assert bench.hypervisor.values["pages_to_scan"] == 100


def test_switched_off_a_restore_with_a_baseline_parks_and_gives_it_once_on(bench: Bench) -> None:
    bench.hypervisor.values |= {"pages_to_scan": 1250, "sleep_millisecs": 10}
    bench.switch.turn_off()
    assert bench.cycle.restore(KERNEL_DEFAULTS).switched_off
    assert bench.hypervisor.values["pages_to_scan"] == 0
    bench.switch.turn_on()
    bench.cycle.restore()
    assert bench.hypervisor.values == {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1}


def test_restoring_twice_changes_nothing_more(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.cycle.restore()
    calls = len(bench.hypervisor.calls)
    report = bench.cycle.restore()
    assert len(bench.hypervisor.calls) == calls
    assert report.left == ()


def test_park_stops_scanning_and_keeps_the_baseline(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.cycle.idle()
    assert bench.hypervisor.values["pages_to_scan"] == IDLE.pages_to_scan
    assert bench.hypervisor.values["sleep_millisecs"] == IDLE.sleep_millisecs
    bench.new_process()
    bench.cycle.restore()
    assert bench.hypervisor.values["pages_to_scan"] == 100


def test_park_leaves_what_somebody_else_has_set(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.hypervisor.values["pages_to_scan"] = 77
    assert bench.cycle.idle().left == ("pages_to_scan",)
    assert bench.hypervisor.values["pages_to_scan"] == 77


def test_another_writer_is_reported_once_a_change_and_overruled(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.hypervisor.values["pages_to_scan"] = 77
    report = bench.cycle.run(TIMER)
    assert [(value.parameter, value.ours, value.found) for value in report.foreign] == [("pages_to_scan", 400, 77)]
    assert bench.hypervisor.values["pages_to_scan"] == 400
    assert bench.cycle.run(TIMER).foreign == ()


def test_after_three_reassertions_in_ten_minutes_it_yields_with_one_warning(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    for _ in range(3):
        bench.hypervisor.values["pages_to_scan"] = 77
        assert bench.cycle.run(TIMER).outcome is Outcome.APPLIED
    bench.hypervisor.values["pages_to_scan"] = 78
    yielding = bench.cycle.run(TIMER)
    assert (yielding.outcome, yielding.yields_now, len(yielding.foreign)) == (Outcome.YIELDED, True, 1)
    later = bench.cycle.run(TIMER)
    assert (later.outcome, later.yields_now, later.foreign) == (Outcome.YIELDED, False, ())
    assert bench.hypervisor.values["pages_to_scan"] == 78


@pytest.mark.parametrize("is_local", [True, False])
def test_a_remote_hosts_advisor_is_named_as_one_who_may_have_written(bench: Bench, *, is_local: bool) -> None:
    cycle = bench.cycle if is_local else dataclasses.replace(bench.cycle, local=None)
    cycle.run(TIMER)
    for _ in range(4):
        bench.hypervisor.values["pages_to_scan"] = 77
        report = cycle.run(TIMER)
        assert ("advisor_mode" in report.foreign_remedy) is not is_local
    assert report.outcome is Outcome.YIELDED
    assert any("advisor_mode" in note for note in report.warnings) is not is_local


def test_reassertions_long_ago_do_not_count(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    for _ in range(6):
        bench.clock.now_s += 301
        bench.hypervisor.values["pages_to_scan"] = 77
        assert bench.cycle.run(TIMER).outcome is Outcome.APPLIED


def test_yield_writes_nothing_until_the_value_is_ours_again(bench: Bench) -> None:
    bench.on_conflict = "yield"
    bench.cycle.run(TIMER)
    bench.hypervisor.values["pages_to_scan"] = 77
    assert bench.cycle.run(TIMER).outcome is Outcome.YIELDED
    assert bench.cycle.run(TIMER).outcome is Outcome.YIELDED
    bench.hypervisor.values["pages_to_scan"] = 400
    report = bench.cycle.run(TIMER)
    assert (report.outcome, report.resumes_now) == (Outcome.UNCHANGED, True)


@pytest.mark.parametrize("trigger", [Trigger.RETUNE, Trigger.RELOAD])
def test_yield_ends_with_an_explicit_request(bench: Bench, trigger: Trigger) -> None:
    bench.on_conflict = "yield"
    bench.cycle.run(TIMER)
    bench.hypervisor.values["pages_to_scan"] = 77
    bench.cycle.run(TIMER)
    report = bench.cycle.run(Triggers(kinds=frozenset({trigger})))
    assert report.outcome is Outcome.APPLIED
    assert bench.hypervisor.values["pages_to_scan"] == 400


def test_our_own_one_shot_is_no_other_writer(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    agents_tenure = bench.tenure
    bench.new_process()
    bench.policy.target = Settings(pages_to_scan=900, sleep_millisecs=10)
    bench.cycle.run(RETUNE)
    bench.tenure = agents_tenure
    assert bench.cycle.run(TIMER).foreign == ()


def test_a_refusal_by_the_advisor_is_diagnosed_and_not_repeated_every_tick(bench: Bench) -> None:
    bench.hypervisor.advisor_on = True
    bench.facts.advisor = lambda: "scan-time" if bench.hypervisor.advisor_on else "none"
    report = bench.cycle.run(TIMER)
    assert [(error.parameter, error.cause) for error in report.refusals] == [("pages_to_scan", Cause.ADVISOR_ON)]
    assert "advisor_mode" in report.refusals[0].remedy
    for _ in range(5):
        assert bench.cycle.run(TIMER).outcome is Outcome.HELD
    assert len(bench.hypervisor.calls) == 1
    bench.hypervisor.advisor_on = False
    assert bench.cycle.run(TIMER).outcome is Outcome.APPLIED


SUBSETS = [frozenset(chosen) for number in range(1, len(PARAMETERS) + 1) for chosen in combinations(PARAMETERS, number)]
VALUES = {"pages_to_scan": 400, "sleep_millisecs": 10, "merge_across_nodes": 0}


@pytest.mark.parametrize("wanted", [frozenset[str](), *SUBSETS])
@pytest.mark.parametrize("offered", SUBSETS)
def test_every_target_meets_every_subset_of_offered_parameters(
    bench: Bench, wanted: frozenset[str], offered: frozenset[str]
) -> None:
    found = {name: value for name, value in bench.hypervisor.values.items() if name in offered}
    bench.hypervisor.values = dict(found)
    bench.policy.target = Settings(**{name: value if name in wanted else None for name, value in VALUES.items()})
    asked = bench.cycle.run(RETUNE, dry_run=True)
    report = bench.cycle.run(TIMER)
    assert asked.outcome is Outcome.DRY_RUN
    for refusals in (asked.refusals, report.refusals):
        assert {(one.parameter, one.cause) for one in refusals} == {
            (name, Cause.UNSUPPORTED) for name in wanted - offered
        }
    assert bench.hypervisor.values == found | {name: VALUES[name] for name in wanted & offered}
    assert bench.cycle.run(TIMER).refusals == (), "it is said once"
    bench.cycle.restore()
    assert bench.hypervisor.values == found
    bench.cycle.idle()
    assert bench.hypervisor.values == found | {name: value for name, value in IDLE.items() if name in offered}


def test_who_asks_is_told_again_of_a_parameter_that_is_not_offered_and_it_is_set_once_it_is(bench: Bench) -> None:
    del bench.hypervisor.values["sleep_millisecs"]
    assert bench.cycle.run(TIMER).outcome is Outcome.REFUSED
    assert bench.cycle.run(TIMER).outcome is Outcome.UNCHANGED
    assert bench.cycle.run(RETUNE).outcome is Outcome.REFUSED
    bench.hypervisor.values["sleep_millisecs"] = 20
    assert bench.cycle.run(TIMER).outcome is Outcome.APPLIED
    assert bench.hypervisor.values["sleep_millisecs"] == 10


def test_a_snapshots_time_and_a_passs_duration_begin_when_the_lock_is_had(bench: Bench) -> None:
    bench.store = SlowStore(clock=bench.clock)
    report = bench.cycle.run(TIMER)
    assert report.snapshot.taken_s == bench.clock.now_s
    assert report.duration_ms == 0


@dataclass
class SlowStore(FakeStore):
    """A store whose lock another process holds for a while."""

    clock: FakeClock = field(default_factory=FakeClock)

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.clock.now_s += 5
        yield


def test_a_refusal_is_tried_again_when_asked_and_after_ten_minutes(bench: Bench) -> None:
    bench.hypervisor.advisor_on = True
    bench.facts.advisor = lambda: "scan-time"
    bench.cycle.run(TIMER)
    assert bench.cycle.run(RETUNE).outcome is Outcome.REFUSED
    bench.clock.now_s += 601
    assert bench.cycle.run(TIMER).outcome is Outcome.REFUSED
    assert len(bench.hypervisor.calls) == 3


def test_who_asks_ends_the_waiting_also_where_his_pass_has_nothing_to_write(bench: Bench) -> None:
    bench.hypervisor.advisor_on = True
    bench.facts.advisor = lambda: "scan-time"
    assert bench.cycle.run(TIMER).outcome is Outcome.REFUSED
    bench.hypervisor.advisor_on = False
    found = Settings(pages_to_scan=100, sleep_millisecs=20)
    bench.policy.target, wanted = found, bench.policy.target
    assert bench.cycle.run(RETUNE, dry_run=True).outcome is Outcome.DRY_RUN
    bench.policy.target = wanted
    assert bench.cycle.run(TIMER).outcome is Outcome.HELD
    bench.policy.target = found
    assert bench.cycle.run(RETUNE).outcome is Outcome.UNCHANGED
    bench.policy.target = wanted
    assert bench.cycle.run(TIMER).outcome is Outcome.APPLIED


def test_the_advisor_moving_pages_to_scan_is_not_another_writer(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.facts.advisor = lambda: "scan-time"
    bench.hypervisor.advisor_on = True
    bench.hypervisor.values["pages_to_scan"] = 12345
    report = bench.cycle.run(TIMER)
    assert report.foreign == ()
    assert report.outcome is Outcome.REFUSED


def test_after_a_refusal_the_administrators_value_stays_the_baseline(bench: Bench) -> None:
    bench.hypervisor.advisor_on = True
    bench.cycle.run(TIMER)
    bench.hypervisor.advisor_on = False
    bench.hypervisor.values["pages_to_scan"] = 55
    bench.tenure.refused.clear()
    assert bench.cycle.run(TIMER).foreign == ()
    bench.cycle.restore()
    assert bench.hypervisor.values["pages_to_scan"] == 55


def test_the_policys_past_is_kept_from_process_to_process(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.new_process()
    bench.cycle.run(RETUNE)
    bench.cycle.run(Triggers(kinds=frozenset({Trigger.BALLOON})))
    assert bench.store.state.policy_state == {"steps": 2}


def test_a_past_of_another_version_is_begun_anew_and_the_baseline_kept(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.store.state = dataclasses.replace(bench.store.state, policy_state={"steps": "many"})
    bench.new_process()
    bench.cycle.run(TIMER)
    assert bench.store.state.policy_state == {"steps": 1}
    assert bench.store.state.ownership["pages_to_scan"].baseline == 100


def test_ksm_switched_off_is_said_with_its_remedy(bench: Bench) -> None:
    bench.facts.run = 0
    assert any("echo 1 > /sys/kernel/mm/ksm/run" in note for note in bench.cycle.run(TIMER).warnings)


@pytest.mark.parametrize("trigger", Trigger)
def test_switched_off_every_trigger_parks(bench: Bench, trigger: Trigger) -> None:
    bench.cycle.run(TIMER)
    bench.switch.turn_off()
    report = bench.cycle.run(Triggers(kinds=frozenset({trigger})))
    assert (report.decision.reason.rule, report.outcome) == ("switched_off", Outcome.APPLIED)
    assert "since 2026-01-02T03:04:05Z" in report.decision.reason.text
    assert (bench.hypervisor.values["pages_to_scan"], bench.hypervisor.values["sleep_millisecs"]) == (0, 10_000)


def test_switched_off_the_policys_past_is_dropped_and_it_begins_anew_when_switched_on(bench: Bench) -> None:
    for _ in range(3):
        bench.cycle.run(TIMER)
    bench.switch.turn_off()
    bench.cycle.run(TIMER)
    assert (bench.store.state.policy_name, bench.store.state.policy_state) == (None, None)
    bench.switch.turn_on()
    report = bench.cycle.run(Triggers(kinds=frozenset({Trigger.ON})))
    assert report.outcome is Outcome.APPLIED
    assert bench.hypervisor.values["pages_to_scan"] == 400
    assert bench.store.state.policy_state == {"steps": 1}


def test_switched_off_a_restore_parks_and_the_baseline_is_kept_until_on(bench: Bench) -> None:
    bench.cycle.run(TIMER)
    bench.switch.turn_off()
    report = bench.cycle.restore()
    assert report.switched_off
    assert bench.hypervisor.values["pages_to_scan"] == 0
    bench.new_process()
    bench.cycle.run(TIMER)
    bench.switch.turn_on()
    assert not bench.cycle.restore().switched_off
    assert bench.hypervisor.values["pages_to_scan"] == 100
    assert bench.hypervisor.values["sleep_millisecs"] == 20


def test_off_ends_a_yield_as_other_explicit_requests_do(bench: Bench) -> None:
    bench.on_conflict = "yield"
    bench.cycle.run(TIMER)
    bench.hypervisor.values["pages_to_scan"] = 77
    assert bench.cycle.run(TIMER).outcome is Outcome.YIELDED
    bench.switch.turn_off()
    assert bench.cycle.run(Triggers(kinds=frozenset({Trigger.OFF}))).outcome is Outcome.APPLIED
    assert bench.hypervisor.values["pages_to_scan"] == 0


def test_only_the_first_of_many_passes_that_park_is_no_routine(bench: Bench) -> None:
    bench.switch.turn_off()
    assert [bench.cycle.run(TIMER).decision.is_routine for _ in range(3)] == [False, True, True]
    bench.switch.turn_on()
    bench.cycle.run(TIMER)
    bench.switch.turn_off()
    assert not bench.cycle.run(TIMER).decision.is_routine


def test_a_damaged_switch_is_off_with_a_warning_that_names_it(bench: Bench) -> None:
    bench.switch.off = SwitchedOff(damage="/var/lib/virtksm/local.off: is damaged")
    report = bench.cycle.run(TIMER)
    assert bench.hypervisor.values["pages_to_scan"] == 0
    (note,) = report.warnings
    assert note.startswith("/var/lib/virtksm/local.off: is damaged")
    assert "`virtksm on`" in note


def test_switched_off_nobody_is_told_to_switch_ksm_on(bench: Bench) -> None:
    bench.switch.turn_off()
    bench.facts.run = 2
    assert bench.cycle.run(TIMER).warnings == []


def test_a_dry_run_while_switched_off_writes_nothing(bench: Bench) -> None:
    bench.switch.turn_off()
    report = bench.cycle.run(RETUNE, dry_run=True)
    assert (report.outcome, report.decision.target) == (Outcome.DRY_RUN, IDLE)
    assert (bench.hypervisor.calls, bench.store.saved) == ([], [])


def test_what_keeps_processes_from_being_read_is_a_warning_while_it_lasts(bench: Bench) -> None:
    bench.facts.trouble = ("process 100 (x) hangs",)
    report = bench.cycle.run(TIMER)
    assert (report.warnings, report.outcome) == (["process 100 (x) hangs"], Outcome.APPLIED)
    bench.facts.trouble = ()
    assert bench.cycle.run(TIMER).warnings == []


def test_private_guests_that_can_merge_are_warned_of_with_their_remedy(bench: Bench) -> None:
    report = dataclasses.replace(bench.cycle.run(TIMER), exposed=("tenant-a", "tenant-b"))
    assert [note for note in report.warnings if "tenant-b" in note and "<nosharepages/>" in note] != []
    assert report.as_dict()["exposed"] == ["tenant-a", "tenant-b"]
    assert bench.cycle.run(TIMER).as_dict()["exposed"] is None, "a pass alone looks at no guest's XML"


def test_the_record_is_plain_json_values(bench: Bench) -> None:
    import json

    assert json.loads(json.dumps(bench.cycle.run(TIMER).as_dict()))["outcome"] == "applied"
