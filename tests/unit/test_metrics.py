"""What is measured, what it is called, and the text that Prometheus is given."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import LOCAL_HOST, FakeFacts, FakeHypervisor, TargetPolicy, fake_cycle
from tests.lab.samples import agent_facts
from virtksm.agent.metrics.counters import BOUNDS_S, Durations, Tally
from virtksm.agent.metrics.definitions import METRICS, Moment, Values, measure
from virtksm.agent.metrics.exposition import render
from virtksm.agent.metrics.guests import GuestSavings
from virtksm.config.schema import Config
from virtksm.errors import Cause, SettingsRefused
from virtksm.model.current import after_pass
from virtksm.model.decision import Pause, Trigger, Triggers
from virtksm.model.report import Foreign, PassReport
from virtksm.model.snapshot import Guest
from virtksm.policy import make_policy
from virtksm.text import printable
from virtksm.values import replace


def a_pass(*, policy: str = "adaptive", run: int | None = 1) -> PassReport:
    cycle = fake_cycle(
        hypervisor=FakeHypervisor(running=(Guest(uuid="u1", name="one"), Guest(uuid="u2", name="two"))),
        local=FakeFacts(memory=replace(LOCAL_HOST, swap_free_kib=512), rss_kib={"u1": 1024}, run=run),
        policy=make_policy(Config()) if policy == "adaptive" else TargetPolicy(),
    )
    report: PassReport = cycle.run(Triggers(kinds=frozenset({Trigger.CONNECTED, Trigger.STARTED})))
    return report


SAVINGS = GuestSavings(shown={("one", "u1"): 300}, other_bytes=200, unaccounted=3, unattributed_bytes=-4)


def moment(
    tally: Tally, last: PassReport | None, *, lost_s: float | None = None, savings: GuestSavings | None = None
) -> Moment:
    current = None if last is None else after_pass(last)
    agent = agent_facts(now_s=100.0, last_s=99.0, lost_s=lost_s, last=last, current=current)
    return Moment(agent=agent, tally=tally, savings=savings, profit_bytes=-5, started_at_s=1_790_000_000.0)


def measured(report: PassReport, *, tally: Tally | None = None) -> dict[str, Values]:
    tally = tally or Tally()
    tally.passed(report, 0.02, 1_790_000_100.0)
    return measure(moment(tally, report))


def test_everything_in_the_table_is_measured_with_its_labels_and_nothing_else() -> None:
    tally = Tally()
    tally.exposed = tally.mixed_groups = 0
    report = a_pass()
    merged = replace(report.snapshot.ksm, pages_shared=2, pages_sharing=3)
    report = replace(report, snapshot=replace(report.snapshot, ksm=merged))
    refused = SettingsRefused("no", parameter="pages_to_scan", cause=Cause.ADVISOR_ON)
    tally.passed(replace(report, refusals=(refused,)), 0.02, 1_790_000_100.0)
    found = measure(moment(tally, report, savings=SAVINGS))
    labels = {metric.name: len(metric.labels) for metric in METRICS}
    assert {name: {len(one) for one in values} for name, values in found.items()} == {
        name: {count} for name, count in labels.items()
    }
    assert found["virtksm_guests_other_saved_bytes"] == {(): 200}
    assert found["virtksm_places_per_page"] == {(): 2.5}
    found = measure(moment(Tally(), report, savings=None))
    assert "virtksm_guest_saved_bytes" not in found
    assert found["virtksm_host_swap_free_bytes"] == {(): 512 * 1024}
    untold = replace(report.snapshot, ksm=replace(report.snapshot.ksm, ksm_zero_pages=None))
    assert "virtksm_zero_pages_bytes" not in measured(replace(report, snapshot=untold))
    assert found["virtksm_room_bytes"] == {("safe",): 1024, ("unmerged",): 2048, ("at_ratio",): 3072}
    assert found["virtksm_profit_bytes"] == {(): -5}, "it needs no guest's process"


def test_before_any_pass_nothing_is_told_that_is_not_known() -> None:
    found = measure(moment(Tally(), None, lost_s=50.0))
    assert found["virtksm_libvirt_connected"] == {(): False}
    assert found["virtksm_libvirt_answers"] == {(): False}
    assert "virtksm_room_bytes" not in found, "guests may have come"
    assert found["virtksm_passes_total"][("applied",)] == 0
    for unknown in ("saved_bytes", "guests", "paused", "private_guests_exposed", "groups_mixed"):
        assert f"virtksm_{unknown}" not in found


def test_a_pass_is_counted_once_by_result_and_once_for_each_trigger() -> None:
    tally = Tally()
    report = a_pass()
    found = measured(report, tally=tally)
    result = report.outcome.value
    assert sum(tally.passes.by_result.values()) == tally.passes.by_result[result] == 1
    assert found["virtksm_pass_triggers_total"] == {("connected", result): 1, ("started", result): 1}
    assert found["virtksm_decisions_total"] == {(report.decision.reason.rule,): 1}
    assert found["virtksm_last_pass_result"] == {
        (one,): int(one == result)
        for one in ("applied", "unchanged", "observed", "yielded", "held", "refused", "failed")
    }
    tally.failed(["timer"])
    refused = SettingsRefused("no", parameter="pages_to_scan", cause=Cause.ADVISOR_ON)
    foreign = Foreign(parameter="sleep_millisecs", ours=10, found=20)
    tally.passed(replace(report, refusals=(refused,), foreign=(foreign,)), None, 1_790_000_100.0)
    tally.failed(["timer"])
    tally.connected()
    tally.connected()
    found = measure(moment(tally, report))
    assert found["virtksm_libvirt_reconnects_total"] == {(): 1}
    assert found["virtksm_refusals_total"] == {("pages_to_scan", "advisor_on"): 1}
    assert found["virtksm_conflicts_total"][("sleep_millisecs",)] == 1
    assert found["virtksm_conflicts_total"][("pages_to_scan",)] == 0
    assert found["virtksm_pass_triggers_total"][("timer", "failed")] == 2
    assert found["virtksm_last_pass_result"][("failed",)] == 1
    assert found["virtksm_last_pass_timestamp_seconds"] == {(): 1_790_000_100.0}, "it did not fail"


@pytest.mark.parametrize(
    ("run", "off", "expected"),
    [(1, None, False), (0, None, True), (2, None, True), (0, Pause(since="2026-01-02T03:04:05Z"), False)],
)
def test_ksm_is_missed_only_while_virtksm_is_on(run: int, off: Pause | None, *, expected: bool) -> None:
    found = measured(replace(a_pass(run=run), paused=off))
    assert found["virtksm_ksm_off_while_wanted"] == {(): expected}
    assert found["virtksm_paused"] == {(): off is not None}


def test_ksm_is_not_missed_where_virtksm_only_observes() -> None:
    tally, report = Tally(), a_pass(run=0)
    tally.passed(report, None, 1.0)
    at = moment(tally, report)
    found = measure(replace(at, agent=replace(at.agent, policy="observe")))
    assert found["virtksm_ksm_off_while_wanted"] == {(): False}


def test_the_backlog_is_the_adaptive_policys_alone() -> None:
    report = a_pass()
    found = measured(report)
    state = report.state_after
    assert state is not None
    assert set(found["virtksm_backlog_bytes"]) == {("settling",), ("new",), ("scanned_once",), ("exited",)}
    assert sum(map(float, found["virtksm_backlog_bytes"].values())) == 1024 * 1024  # type: ignore[arg-type]
    assert measured(a_pass(policy="target"))["virtksm_backlog_bytes"] == {}
    assert measured(replace(report, state_after={}))["virtksm_backlog_bytes"] == {}, "paused"


def test_durations_fall_into_the_bucket_of_their_bound() -> None:
    durations = Durations()
    for seconds in (0.0005, 0.001, 0.0011, 31.0):
        durations.add(seconds)
    buckets = dict(durations.cumulative())
    assert (buckets[0.001], buckets[0.0025], buckets[30.0], buckets[float("inf")]) == (2, 3, 3, 4)
    assert len(buckets) == len(BOUNDS_S) + 1
    assert durations.sum_s == pytest.approx(31.0026)


def test_what_changes_is_told_to_whoever_waits_for_it() -> None:
    tally, told = Tally(), []
    tally.changed = lambda: told.append(1)
    tally.connected()
    tally.passed(a_pass(), None, 1.0)
    tally.failed(["timer"])
    tally.disconnected()
    tally.switched(is_off=True)
    assert len(told) == 5


# The exposition


HOSTILE = ['"} 1\nvirtksm_up 0', "lone \udc80 surrogate", "".join(map(chr, range(256)))]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_of_a_guest_gets_out_of_its_label(text: str) -> None:
    savings = replace(SAVINGS, shown={(text, "u1"): 3})
    page = render(moment(Tally(), None, savings=savings), with_process=False).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    (sample,) = families["virtksm_guest_saved_bytes"].samples
    assert (sample.labels, sample.value) == ({"domain": printable(text), "uuid": "u1"}, 3)
    assert {family for family in families if not family.startswith("virtksm_")} == set()
    assert [one.value for one in families["virtksm_up"].samples] == [1]
