"""The cycle on fakes: what is written, in which order, what is kept, and what another writer or a refusal does."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import pytest

from tests.fakes import BUSY, FakeClock, FakeFacts, FakeHypervisor, FakeStore, FakeSwitch, TargetPolicy, fake_cycle
from virtksm.cli.render import restore_rows
from virtksm.errors import Cause, ExitCode, LibvirtUnreachable, StateUnusable, Unsupported
from virtksm.model.decision import Pause, Trigger, Triggers
from virtksm.model.report import Outcome, PassReport
from virtksm.model.snapshot import IDLE, KERNEL_DEFAULTS, PARAMETERS, Guest, KsmState, Settings
from virtksm.tuning.actuate import diagnose
from virtksm.tuning.cycle import IN_VAIN_S, SENSE_GUEST_S, SENSE_S, Cycle, Tenure
from virtksm.tuning.ownership import HostState, Ownership
from virtksm.values import replace

TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))
RETUNE = Triggers(kinds=frozenset({Trigger.RETUNE}))
FOUND = {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1}
"""What the administrator has set."""


@dataclass
class Bench:
    """A cycle and everything around it."""

    hypervisor: FakeHypervisor = field(default_factory=FakeHypervisor)
    local: FakeFacts = field(default_factory=FakeFacts)
    policy: TargetPolicy = field(default_factory=TargetPolicy)
    store: FakeStore = field(default_factory=FakeStore)
    switch: FakeSwitch = field(default_factory=FakeSwitch)
    clock: FakeClock = field(default_factory=FakeClock)
    tenure: Tenure = field(default_factory=Tenure)
    on_conflict: Literal["reassert", "yield"] = "reassert"

    @property
    def cycle(self) -> Cycle[int]:
        return fake_cycle(**{one.name: getattr(self, one.name) for one in dataclasses.fields(self)})

    @property
    def pages(self) -> int:
        return self.hypervisor.values["pages_to_scan"]

    @pages.setter
    def pages(self, value: int) -> None:
        """Set it as another program does."""
        self.hypervisor.values["pages_to_scan"] = value

    def new_process(self) -> None:
        self.tenure = Tenure()

    def run(self, trigger: Trigger = Trigger.TIMER) -> PassReport:
        return self.cycle.run(Triggers(kinds=frozenset({trigger})))

    def restored(self) -> dict[str, int]:
        """Give back, as another process, and return what is in force then."""
        self.new_process()
        self.cycle.restore()
        return self.hypervisor.values


@pytest.fixture
def bench() -> Bench:
    return Bench()


class CountingHypervisor(FakeHypervisor):
    """Counts how often it was asked for KSM's state."""

    asked = 0

    def ksm_state(self) -> KsmState:
        self.asked += 1
        return super().ksm_state()


def test_ksm_is_read_from_this_machines_files_once_libvirt_has_said_the_same(bench: Bench) -> None:
    bench.hypervisor = libvirt = CountingHypervisor()
    bench.local.counters = libvirt.values
    bench.run()
    first = libvirt.asked
    assert bench.run().outcome is Outcome.UNCHANGED
    assert libvirt.asked == first, "nothing was written, so libvirt was not asked"
    bench.pages = 77
    report = bench.run()
    assert (report.before.pages_to_scan, report.after.pages_to_scan) == (77, 400)
    assert libvirt.asked == first + 1, "what was written is read back through libvirt"
    bench.new_process()
    bench.run()
    assert libvirt.asked == first + 2
    bench.local.counters = dict.fromkeys(PARAMETERS)
    assert bench.run().before == Settings(pages_to_scan=400, sleep_millisecs=10, merge_across_nodes=1)
    assert libvirt.asked > first + 2, "where the files vanish libvirt's answer is left"


def test_files_that_say_something_else_are_not_believed(bench: Bench) -> None:
    """As where the connection only seems to lead to this machine."""
    bench.local.counters = {**FOUND, "pages_to_scan": 5}
    assert [bench.run().before.pages_to_scan for _ in range(3)] == [100, 400, 400]
    assert not bench.tenure.files_agree


def test_it_writes_pages_before_sleep_in_one_call_and_only_what_differs(bench: Bench) -> None:
    report = bench.run()
    assert [list(call.items()) for call in bench.hypervisor.calls] == [list(BUSY.items())[:2]]
    assert (report.outcome, report.changed) == (Outcome.APPLIED, {"pages_to_scan": 400, "sleep_millisecs": 10})
    assert bench.run().outcome is Outcome.UNCHANGED
    assert len(bench.hypervisor.calls) == 1
    bench.policy.target = Settings(pages_to_scan=500, sleep_millisecs=20, merge_across_nodes=0)
    bench.run()
    calls = [list(call) for call in bench.hypervisor.calls[1:]]
    assert calls == [["pages_to_scan", "sleep_millisecs"], ["merge_across_nodes"]], "last and alone"


def test_a_merge_across_nodes_that_is_refused_with_all_unmerged_names_what_the_kernel_leaves_merged() -> None:
    unmerged = KsmState.counted({"pages_shared": 0}.get, 4)
    unmerged = replace(unmerged, settings=replace(BUSY, merge_across_nodes=1), run=2)
    assert diagnose("merge_across_nodes", 0, unmerged) is Cause.NOT_UNMERGED
    assert diagnose("merge_across_nodes", 0, replace(unmerged, run=1)) is Cause.UNKNOWN
    assert diagnose("sleep_millisecs", 20, unmerged) is Cause.UNKNOWN


def test_a_refused_merge_across_nodes_does_not_keep_the_others_back(bench: Bench) -> None:
    bench.policy.target = replace(BUSY, merge_across_nodes=0)
    bench.hypervisor.pages_shared = 5
    report = bench.run()
    assert report.after == replace(BUSY, merge_across_nodes=1)
    assert [(error.parameter, error.cause) for error in report.refusals] == [("merge_across_nodes", Cause.PAGES_SHARED)]
    bench.hypervisor.pages_shared = 0
    bench.run(Trigger.RETUNE)
    bench.hypervisor.pages_shared = 9
    restored = bench.cycle.restore()
    assert [error.cause for error in restored.refusals] == [Cause.PAGES_SHARED]
    assert restored.exit_code is ExitCode.DONE, "while memory is merged it has to wait"
    assert bench.hypervisor.values == {**FOUND, "merge_across_nodes": 0}
    bench.hypervisor.pages_shared = 0
    assert bench.cycle.restore().refusals == ()
    assert bench.hypervisor.values == FOUND
    bench.policy.target = replace(BUSY, merge_across_nodes=2)
    assert [error.cause for error in bench.run(Trigger.RETUNE).refusals] == [Cause.OUT_OF_RANGE]


def test_baseline_and_intention_are_kept_before_the_first_write(bench: Bench) -> None:
    seen: list[HostState] = []
    bench.hypervisor.before_write = lambda name, value: seen.append(bench.store.state)
    bench.run()
    assert seen[0].ownership == {
        "pages_to_scan": Ownership(baseline=100, intended=400),
        "sleep_millisecs": Ownership(baseline=20, intended=10),
    }
    assert bench.store.state.ownership["pages_to_scan"] == Ownership(baseline=100, intended=400, applied=400)


def test_nothing_is_written_where_a_pass_fails_and_in_a_dry_run(bench: Bench) -> None:
    bench.store.is_full = True
    with pytest.raises(StateUnusable):
        bench.run()
    bench.store.is_full = False
    bench.hypervisor.reading_fails = LibvirtUnreachable("gone")
    with pytest.raises(LibvirtUnreachable):
        bench.run()
    bench.hypervisor.reading_fails = None
    report = bench.cycle.run(TIMER, dry_run=True)
    assert (report.outcome, report.decision.target) == (Outcome.DRY_RUN, BUSY)
    bench.switch.turn_off()
    report = bench.cycle.run(RETUNE, dry_run=True)
    assert (report.outcome, report.decision.target) == (Outcome.DRY_RUN, IDLE)
    bench.hypervisor.values.clear()
    with pytest.raises(Unsupported, match="has no KSM"):
        bench.run()
    assert (bench.hypervisor.calls, bench.store.saved) == ([], [])


@pytest.mark.parametrize("crash_at", ["pages_to_scan", "sleep_millisecs"])
def test_a_crash_between_the_writes_keeps_the_administrators_baseline(bench: Bench, crash_at: str) -> None:
    class Crash(BaseException):
        pass

    def crash(name: str, _value: int) -> None:
        if name == crash_at:
            raise Crash

    bench.hypervisor.before_write = crash
    with pytest.raises(Crash):
        bench.run()
    bench.hypervisor.before_write = lambda name, value: None
    bench.new_process()
    bench.run()
    assert bench.restored() == FOUND


def test_a_state_that_is_lost_under_the_process_is_kept_again(bench: Bench) -> None:
    bench.run()
    bench.store.state = HostState()
    bench.policy.target = replace(BUSY, pages_to_scan=500)
    bench.run()
    assert bench.restored() == FOUND
    bench.run()
    bench.store.state = HostState()
    bench.cycle.restore()
    assert bench.pages == 100, "lost just before the end"


def test_a_new_process_takes_a_value_that_is_not_ours_for_the_baseline(bench: Bench) -> None:
    bench.run()
    bench.pages = 77
    bench.new_process()
    assert bench.run().foreign == ()
    assert bench.restored() == {**FOUND, "pages_to_scan": 77}


def test_restore_and_park_leave_what_somebody_else_has_changed(bench: Bench) -> None:
    bench.run()
    bench.pages = 77
    assert bench.cycle.idle().left == ("pages_to_scan",)
    assert bench.cycle.restore().left == ("pages_to_scan",)
    assert bench.hypervisor.values == {**FOUND, "pages_to_scan": 77}
    calls = len(bench.hypervisor.calls)
    assert bench.cycle.restore().left == ()
    assert len(bench.hypervisor.calls) == calls, "restoring twice changes nothing more"


PLANTED = HostState(
    ownership={
        "pages_to_scan": Ownership(baseline=2**32 - 1, intended=0, applied=0),
        "sleep_millisecs": Ownership(baseline=0, intended=10_000, applied=10_000),
        "merge_across_nodes": Ownership(baseline=0, intended=1, applied=1),
    }
)


@pytest.mark.parametrize(("found", "left"), [(0, ()), (77, ("pages_to_scan",))])
def test_a_baseline_that_may_be_planted_and_that_nobody_sets_is_the_kernels_default(
    bench: Bench, found: int, left: tuple[str, ...]
) -> None:
    bench.store.is_own, bench.store.state = False, PLANTED
    bench.hypervisor.values |= {**dict(IDLE.items()), "pages_to_scan": found}
    report = bench.cycle.restore()
    assert bench.hypervisor.values == {**FOUND, "pages_to_scan": found or 100, "merge_across_nodes": 0}
    assert report.left == left
    assert report.as_dict()["doubted"] == [one for one in ("pages_to_scan", "sleep_millisecs") if one not in left]
    assert [label for _, label, _ in restore_rows(report.as_dict())].count("Doubted") == 2 - len(left)
    assert bench.store.state == HostState()


@pytest.mark.parametrize(
    ("pages", "sleep_ms", "is_own"),
    [(2**32 - 1, 0, True), (1_000_000, 1, False), (0, 3_600_000, False), (100, 20, False)],
)
def test_a_baseline_is_given_back_as_it_was_if_odd_by_who_kept_it_himself(
    bench: Bench, pages: int, sleep_ms: int, *, is_own: bool
) -> None:
    bench.hypervisor.values |= {"pages_to_scan": pages, "sleep_millisecs": sleep_ms}
    bench.run()
    bench.store.is_own = is_own
    assert bench.cycle.restore().doubted == ()
    assert bench.hypervisor.values == {"pages_to_scan": pages, "sleep_millisecs": sleep_ms, "merge_across_nodes": 1}


def test_restore_with_a_baseline_gives_that_and_the_next_tenure_begins_with_it(bench: Bench) -> None:
    as_ksmtuned_leaves_it = {"pages_to_scan": 1250, "sleep_millisecs": 10}
    bench.hypervisor.values |= as_ksmtuned_leaves_it
    assert bench.cycle.restore(KERNEL_DEFAULTS).left == ()
    assert bench.hypervisor.values == FOUND
    bench.new_process()
    bench.run()
    assert bench.restored() == FOUND
    bench.hypervisor.values |= as_ksmtuned_leaves_it
    bench.switch.turn_off()
    assert bench.cycle.restore(KERNEL_DEFAULTS).paused
    assert bench.pages == 0
    bench.switch.turn_on()
    assert bench.restored() == FOUND, "it is given once switched on"
    bench.pages, bench.hypervisor.advisor_on = 1250, True
    assert [error.parameter for error in bench.cycle.restore(KERNEL_DEFAULTS).refusals] == ["pages_to_scan"]
    bench.hypervisor.advisor_on = False
    assert bench.restored() == FOUND, "one that was refused is kept for the next"


def test_another_writer_is_reported_once_a_change_overruled_and_after_three_times_in_ten_minutes_left_alone(
    bench: Bench,
) -> None:
    bench.run()
    for passed_s in (301, 301, 301, 301, 0):  # what is long ago does not count
        bench.clock.now_s += passed_s
        bench.pages = 77
        report = bench.run()
        assert [(value.parameter, value.ours, value.found) for value in report.foreign] == [("pages_to_scan", 400, 77)]
        assert (report.outcome, bench.pages) == (Outcome.APPLIED, 400)
        assert bench.run().foreign == ()
    bench.pages = 78
    yielding, later = bench.run(), bench.run()
    assert (yielding.outcome, yielding.yields_now, len(yielding.foreign)) == (Outcome.YIELDED, True, 1)
    assert (later.outcome, later.yields_now, later.foreign) == (Outcome.YIELDED, False, ())
    assert bench.pages == 78


@pytest.mark.parametrize("is_local", [True, False])
def test_a_remote_hosts_advisor_is_named_as_one_who_may_have_written(bench: Bench, *, is_local: bool) -> None:
    cycle = bench.cycle if is_local else replace(bench.cycle, local=None)
    cycle.run(TIMER)
    for _ in range(4):
        bench.pages = 77
        report = cycle.run(TIMER)
        assert ("advisor_mode" in report.foreign_remedy) is not is_local
    assert report.outcome is Outcome.YIELDED
    assert any("advisor_mode" in note for note in report.warnings) is not is_local


def test_yield_writes_nothing_until_the_value_is_ours_again_or_somebody_asks(bench: Bench) -> None:
    bench.on_conflict = "yield"
    bench.run()
    bench.pages = 77
    assert [bench.run().outcome for _ in range(2)] == [Outcome.YIELDED] * 2
    bench.pages = 400
    report = bench.run()
    assert (report.outcome, report.resumes_now) == (Outcome.UNCHANGED, True)
    for trigger in (Trigger.RETUNE, Trigger.RELOAD, Trigger.PAUSE):
        bench.pages = 77
        assert bench.run().outcome is Outcome.YIELDED
        if trigger is Trigger.PAUSE:
            bench.switch.turn_off()
        assert bench.run(trigger).outcome is Outcome.APPLIED
        assert bench.pages == (0 if trigger is Trigger.PAUSE else 400)


def test_our_own_one_shot_is_no_other_writer(bench: Bench) -> None:
    bench.run()
    agents_tenure = bench.tenure
    bench.new_process()
    bench.policy.target = Settings(pages_to_scan=900, sleep_millisecs=10)
    bench.run(Trigger.RETUNE)
    bench.tenure = agents_tenure
    assert bench.run().foreign == ()


def test_a_refusal_by_the_advisor_is_diagnosed_and_tried_again_when_asked_and_after_ten_minutes(bench: Bench) -> None:
    bench.hypervisor.advisor_on = True
    bench.local.advisor = lambda: "scan-time" if bench.hypervisor.advisor_on else "none"
    report = bench.run()
    assert [(error.parameter, error.cause) for error in report.refusals] == [("pages_to_scan", Cause.ADVISOR_ON)]
    assert "advisor_mode" in report.refusals[0].remedy
    assert [bench.run().outcome for _ in range(5)] == [Outcome.HELD] * 5
    assert bench.run(Trigger.RETUNE).outcome is Outcome.REFUSED
    bench.clock.now_s += 601
    assert bench.run().outcome is Outcome.REFUSED
    assert len(bench.hypervisor.calls) == 3
    bench.hypervisor.advisor_on = False
    assert bench.run().outcome is Outcome.APPLIED


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
    report = bench.run()
    assert asked.outcome is Outcome.DRY_RUN
    for refusals in (asked.refusals, report.refusals):
        assert {(one.parameter, one.cause) for one in refusals} == {
            (name, Cause.UNSUPPORTED) for name in wanted - offered
        }
    assert bench.hypervisor.values == found | {name: VALUES[name] for name in wanted & offered}
    assert bench.run().refusals == (), "it is said once"
    bench.cycle.restore()
    assert bench.hypervisor.values == found
    bench.cycle.idle()
    assert bench.hypervisor.values == found | {name: value for name, value in IDLE.items() if name in offered}


def test_who_asks_is_told_again_of_a_parameter_that_is_not_offered_and_it_is_set_once_it_is(bench: Bench) -> None:
    del bench.hypervisor.values["sleep_millisecs"]
    assert bench.run().outcome is Outcome.REFUSED
    assert bench.run().outcome is Outcome.UNCHANGED
    assert bench.run(Trigger.RETUNE).outcome is Outcome.REFUSED
    bench.hypervisor.values["sleep_millisecs"] = 20
    assert bench.run().outcome is Outcome.APPLIED
    assert bench.hypervisor.values["sleep_millisecs"] == 10


def test_a_snapshots_time_and_a_passs_duration_begin_when_the_lock_is_had(bench: Bench) -> None:
    class SlowStore(FakeStore):
        """A store whose lock another process holds for a while."""

        @contextmanager
        def locked(self) -> Iterator[None]:
            bench.clock.now_s += 5
            yield

    bench.store = SlowStore()
    report = bench.run()
    assert (report.snapshot.taken_s, report.duration_ms) == (bench.clock.now_s, 0)


@pytest.mark.parametrize(("told_kib", "kib"), [(1024, 1024), (None, 2048)])
def test_a_huge_page_is_as_large_as_this_machine_s_kernel_says_else_as_on_x86(
    bench: Bench, told_kib: int | None, kib: int
) -> None:
    bench.local.huge_kib = told_kib
    assert bench.run().snapshot.ksm.huge_page_kib == kib


def test_who_asks_ends_the_waiting_also_where_his_pass_has_nothing_to_write(bench: Bench) -> None:
    bench.hypervisor.advisor_on = True
    bench.local.advisor = lambda: "scan-time"
    assert bench.run().outcome is Outcome.REFUSED
    bench.hypervisor.advisor_on = False
    found = Settings(pages_to_scan=100, sleep_millisecs=20)
    bench.policy.target, wanted = found, bench.policy.target
    assert bench.cycle.run(RETUNE, dry_run=True).outcome is Outcome.DRY_RUN
    bench.policy.target = wanted
    assert bench.run().outcome is Outcome.HELD
    bench.policy.target = found
    assert bench.run(Trigger.RETUNE).outcome is Outcome.UNCHANGED
    bench.policy.target = wanted
    assert bench.run().outcome is Outcome.APPLIED


def test_while_its_pages_to_scan_does_not_arrive_passes_are_rare(bench: Bench) -> None:
    """A full scan is fed four times a second."""
    bench.policy.next_pass_s = 0.25
    assert bench.run().decision.next_pass_s == 0.25
    bench.hypervisor.values["merge_across_nodes"], bench.hypervisor.pages_shared = 1, 1
    bench.policy.target = Settings(pages_to_scan=300, sleep_millisecs=10, merge_across_nodes=0)
    assert (bench.run().outcome, bench.run().decision.next_pass_s) == (Outcome.REFUSED, 0.25)
    bench.hypervisor.advisor_on, bench.pages = True, 1234
    bench.local.advisor = lambda: "scan-time"
    assert [bench.run().decision.next_pass_s for _ in range(2)] == [IN_VAIN_S] * 2
    bench.policy.next_pass_s = 60.0
    assert bench.run().decision.next_pass_s == 60.0
    bench.policy.next_pass_s = None
    assert bench.run().decision.next_pass_s is None


def test_nor_does_it_hurry_while_it_yields(bench: Bench) -> None:
    bench.policy.next_pass_s, bench.on_conflict = 0.25, "yield"
    bench.run()
    bench.pages = 7
    assert [(one.outcome, one.decision.next_pass_s) for one in (bench.run(), bench.run())] == [
        (Outcome.YIELDED, IN_VAIN_S)
    ] * 2
    bench.pages = BUSY.pages_to_scan or 0
    assert bench.run().decision.next_pass_s == 0.25


def test_the_advisor_moving_pages_to_scan_is_not_another_writer_and_no_baseline_of_ours(bench: Bench) -> None:
    bench.run()
    bench.local.advisor = lambda: "scan-time"
    bench.hypervisor.advisor_on = True
    bench.pages = 12345
    report = bench.run()
    assert (report.foreign, report.outcome) == ((), Outcome.REFUSED)
    bench.hypervisor.advisor_on = False
    bench.cycle.restore()
    assert bench.pages == 12345


def test_under_the_kernel_s_advisor_the_sleep_is_given_back_at_once_and_is_the_administrator_s(bench: Bench) -> None:
    """The kernel refuses pages_to_scan then, and at the sleep of a fed ksmd the advisor would scan a batch a minute."""
    bench.local.advisor = lambda: "scan-time" if bench.hypervisor.advisor_on else "none"
    bench.policy.target = Settings(pages_to_scan=400, sleep_millisecs=60_000)
    bench.run()
    bench.pages, bench.hypervisor.advisor_on = 500, True
    report = bench.run()
    assert report.after == Settings(pages_to_scan=500, sleep_millisecs=20, merge_across_nodes=1)
    assert [(error.parameter, error.cause) for error in report.refusals] == [("pages_to_scan", Cause.ADVISOR_ON)]
    for sleep_millisecs in (20, 50):
        bench.hypervisor.values["sleep_millisecs"] = sleep_millisecs
        report = bench.run()
        assert (report.foreign, report.outcome, report.after.sleep_millisecs) == ((), Outcome.HELD, sleep_millisecs)
    bench.pages, bench.hypervisor.advisor_on = 400, False  # by chance
    assert bench.run().after.sleep_millisecs == 60_000
    assert bench.restored() == {**FOUND, "sleep_millisecs": 50}


def test_what_was_found_after_a_crash_is_given_back_under_the_advisor_but_for_what_it_owns(bench: Bench) -> None:
    bench.local.advisor = lambda: "scan-time" if bench.hypervisor.advisor_on else "none"
    bench.policy.target = Settings(pages_to_scan=400, sleep_millisecs=60_000)
    bench.run()
    bench.hypervisor.advisor_on = True
    report = bench.cycle.restore()
    assert [error.parameter for error in report.refusals] == ["pages_to_scan"]
    assert report.after.sleep_millisecs == FOUND["sleep_millisecs"]


def test_where_the_advisor_has_chosen_as_we_would_the_sleep_is_left_alone(bench: Bench) -> None:
    bench.local.advisor = lambda: "scan-time"
    bench.pages, bench.hypervisor.advisor_on = 400, True
    assert (bench.run().outcome, bench.hypervisor.calls) == (Outcome.UNCHANGED, [])


def test_the_policys_past_is_kept_from_process_to_process_unless_it_is_of_another_version(bench: Bench) -> None:
    bench.run()
    bench.new_process()
    bench.run(Trigger.RETUNE)
    bench.run(Trigger.BALLOON)
    assert bench.store.state.policy_state == {"steps": 2}
    bench.store.state = replace(bench.store.state, policy_state={"steps": "many"})
    bench.new_process()
    bench.run()
    assert bench.store.state.policy_state == {"steps": 1}
    assert bench.store.state.ownership["pages_to_scan"].baseline == 100


@pytest.mark.parametrize("trigger", Trigger)
def test_paused_every_trigger_parks(bench: Bench, trigger: Trigger) -> None:
    bench.run()
    bench.switch.turn_off()
    report = bench.run(trigger)
    assert (report.decision.reason.rule, report.outcome) == ("paused", Outcome.APPLIED)
    assert "since 2026-01-02T03:04:05Z" in report.decision.reason.text
    assert (bench.pages, bench.hypervisor.values["sleep_millisecs"]) == (0, 10_000)


def test_paused_the_policys_past_is_dropped_and_it_begins_anew_when_resumed(bench: Bench) -> None:
    for _ in range(3):
        bench.run()
    bench.switch.turn_off()
    routine = [bench.run().decision.is_routine for _ in range(3)]
    assert routine == [False, True, True], "only the first that parks is none"
    assert (bench.store.state.policy_name, bench.store.state.policy_state) == (None, None)
    bench.switch.turn_on()
    assert bench.run(Trigger.RESUME).outcome is Outcome.APPLIED
    assert (bench.pages, bench.store.state.policy_state) == (400, {"steps": 1})
    bench.switch.turn_off()
    assert not bench.run().decision.is_routine


def test_paused_a_restore_parks_and_the_baseline_is_kept_until_on(bench: Bench) -> None:
    bench.run()
    bench.switch.turn_off()
    parked = bench.cycle.restore()
    assert parked.paused
    assert "Idle" in [label for _, label, _ in restore_rows(parked.as_dict())]
    assert bench.pages == 0
    bench.new_process()
    bench.run()
    bench.switch.turn_on()
    assert not bench.cycle.restore().paused
    assert bench.hypervisor.values == FOUND


def test_what_stands_in_the_way_of_merging_is_a_warning_with_its_remedy_while_it_lasts(bench: Bench) -> None:
    bench.local.trouble = ("process 100 (x) hangs",)
    report = bench.run()
    assert (report.warnings, report.outcome) == (["process 100 (x) hangs"], Outcome.APPLIED)
    bench.local.trouble, bench.local.run = (), 0
    (note,) = bench.run().warnings
    assert "(virtksm doctor)" in note
    exposed = replace(bench.run(), exposed=("tenant-a", "tenant-b"))
    assert [note for note in exposed.warnings if "tenant-b" in note and "<nosharepages/>" in note] != []
    assert exposed.as_dict()["exposed"] == ["tenant-a", "tenant-b"]
    assert bench.run().as_dict()["exposed"] is None, "a pass alone looks at no guest's XML"
    bench.switch.turn_off()
    assert bench.run().warnings == [], "KSM may be off, too"
    bench.switch.off = Pause(damage="/var/lib/virtksm/local.off: is damaged")
    (note,) = bench.run().warnings
    assert bench.pages == 0
    assert note.startswith("/var/lib/virtksm/local.off: is damaged")
    assert "`virtksm resume`" in note


# During a full scan


class Listing(FakeHypervisor):
    """Counts how often guests were listed."""

    listed = 0

    def running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        self.listed += 1
        return super().running_guests(with_max=with_max)


def sensed(bench: Bench, after_s: float, trigger: Trigger = Trigger.TIMER) -> bool:
    """Tell whether a pass so much later senses guests."""
    assert isinstance(bench.hypervisor, Listing)
    bench.clock.now_s += after_s
    before = bench.hypervisor.listed
    report = bench.run(trigger)
    assert report.snapshot.taken_s == bench.clock.now_s
    assert [guest.name for guest in report.snapshot.guests] == ["a"]
    return bench.hypervisor.listed > before


def test_while_ksmd_scans_the_timers_passes_sense_guests_every_two_seconds_and_after_each_full_scan(
    bench: Bench,
) -> None:
    bench.hypervisor = Listing(running=(Guest(uuid="a", name="a", domain_id=1),))
    bench.local.counters = counters = {**bench.hypervisor.values, "full_scans": 0}
    assert sensed(bench, 0.0)
    counters.update(BUSY.items())
    assert [sensed(bench, 0.25) for _ in range(7)] == [False] * 7
    assert sensed(bench, 0.25), "two seconds later"
    assert [sensed(bench, 0.25, Trigger.STARTED), sensed(bench, 0.25)] == [True, False]
    assert [sensed(bench, 0.25, trigger) for trigger in (Trigger.BALLOON, Trigger.GUESTS)] == [False, True]
    counters["full_scans"] = 1
    assert [sensed(bench, 0.25), sensed(bench, 0.25)] == [True, False]
    bench.clock.now_s -= 100
    assert sensed(bench, 0.0), "the clock began anew"
    bench.policy.target = IDLE
    assert not sensed(bench, 0.25)
    counters.update(IDLE.items())
    assert sensed(bench, 0.25), "ksmd is idle, so a pass looks for what has grown"


def test_without_guests_it_is_told_just_as_well_what_was_sensed_anew(bench: Bench) -> None:
    bench.local.counters = counters = {**bench.hypervisor.values, "full_scans": 0}
    bench.run()
    for full_scans, free_kib in ((1, 7), (1, 8), (2, 9)):
        counters.update(BUSY.items(), full_scans=full_scans)
        bench.local.memory = replace(bench.local.memory, free_kib=free_kib)
        bench.clock.now_s += 0.25
        bench.run(Trigger.TIMER)
        assert bench.tenure.sensed is not None
        assert bench.tenure.sensed.host.free_kib == (7 if full_scans == 1 else 9)


def test_while_ksmd_scans_many_guests_are_sensed_the_less_often_the_more_they_are(bench: Bench) -> None:
    many = tuple(Guest(uuid=f"{number}", name="a", domain_id=number) for number in range(1, 401))
    bench.hypervisor = hypervisor = Listing(running=many)
    bench.local.counters = {**hypervisor.values, **dict(BUSY.items()), "full_scans": 0}
    bench.policy.target = BUSY
    for after_s, listed in ((0.0, 1), (SENSE_S, 1), (400 * SENSE_GUEST_S - SENSE_S, 2)):
        bench.clock.now_s += after_s
        bench.run()
        assert hypervisor.listed == listed


def test_a_pass_that_neither_senses_guests_nor_writes_saves_nothing_and_the_next_goes_on_from_it(bench: Bench) -> None:
    def run(after_s: float) -> Mapping[str, object] | None:
        """Return the policy's state as the pass has saved it, None where it has saved nothing."""
        bench.clock.now_s += after_s
        already = len(bench.store.saved)
        bench.run()
        return bench.store.state.policy_state if len(bench.store.saved) > already else None

    bench.policy.target = BUSY
    assert [run(0.25) for _ in range(3)] == [{"steps": 1}, None, None]
    assert run(SENSE_S) == {"steps": 4}
    assert run(0.25) is None
    bench.pages = 7
    assert run(0.25) == {"steps": 6}, "it writes, and what it means to write is known before"
    bench.store.state = HostState()
    assert run(SENSE_S) == {"steps": 7}, "somebody has removed the folder"


def test_a_state_that_this_process_has_saved_is_not_parsed_again_and_another_processs_is(bench: Bench) -> None:
    class Parsing(TargetPolicy):
        parsed = 0

        def load_state(self, kept: Mapping[str, object]) -> int:
            self.parsed += 1
            return super().load_state(kept)

    bench.policy = policy = Parsing()
    for _ in range(3):
        bench.run()
        bench.clock.now_s += SENSE_S
    assert (policy.parsed, bench.store.state.policy_state) == (0, {"steps": 3})
    bench.store.state = replace(bench.store.state, policy_state={"steps": 40})
    bench.run()
    assert (policy.parsed, bench.store.state.policy_state) == (1, {"steps": 41})
