"""The policy observe: it says what adaptive would do, follows what the kernel does, and nothing is ever set."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import FakeFacts, FakeHypervisor, FakeStore, FakeSwitch, fake_cycle
from tests.lab.agent_bench import Bench
from tests.unit.test_policy_adaptive import BOTH, GIB, TIMER, decide_all, snap, stories
from virtksm.agent.log import pass_sentence, status_text
from virtksm.cli.main import main
from virtksm.config.schema import AdaptiveParams, Config, all_keys
from virtksm.errors import VirtksmError
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import Outcome
from virtksm.model.snapshot import IDLE, Snapshot
from virtksm.policy import make_policy
from virtksm.policy.observe import ObservePolicy
from virtksm.policy.off import RULE
from virtksm.policy.rules import MEANINGS
from virtksm.values import replace

ALWAYS = ObservePolicy(params=AdaptiveParams(engage="always"))
OTHERS = {"pages_to_scan": 1250, "sleep_millisecs": 20}
"""What another program has set."""


def scanned_by_others(at_s: float, **ksm: float) -> Snapshot:
    seen = snap(at_s, BOTH, **ksm)
    return replace(seen, ksm=replace(seen.ksm, settings=replace(IDLE, pages_to_scan=1250, sleep_millisecs=20)))


def test_between_full_scans_it_decides_as_adaptive_does_and_asks_guests_for_nothing() -> None:
    for rule, (policy, seen, state) in stories().items():
        if state.scans.current is not None or rule in ("full_scan", "check_scan"):
            continue
        ours, left = ObservePolicy(params=policy.params).decide(seen, state, TIMER)
        theirs, expected = policy.decide(seen, state, TIMER)
        assert (ours.target, ours.reason.rule, left) == (theirs.target, rule, expected)
        assert ours.reason.text.startswith("would let ksmd idle: ")
        assert not ours.wants_dirty_rates
        assert not ours.wants_zero_pages


def test_a_full_scan_is_due_until_the_kernel_has_made_one_which_counts_and_teaches() -> None:
    due, state = decide_all(ALWAYS, *(scanned_by_others(at_s) for at_s in (0, 3, 10)))
    assert due.reason.rule == "full_scan"
    assert due.reason.text == (
        "would begin a full scan of 2.0 GiB: 2.0 GiB are not scanned yet, and 1.0 GiB of that are expected to merge"
    )
    assert (due.target.pages_to_scan or 0) > 1000
    still, state = decide_all(ALWAYS, *(scanned_by_others(at_s) for at_s in (100, 1000, 2000)), state=state)
    assert still.reason.rule == "full_scan", "nobody scans, and it is not given up"
    known = {"pages_shared": 100, "pages_sharing": 200_000, "pages_unshared": 324_188}
    second, state = decide_all(
        ALWAYS, scanned_by_others(2100, full_scans=2, ksmd_cpu_seconds=20.0, **known), state=state
    )
    assert (second.reason.rule, state.backlog.scanned_once_kib) == ("full_scan", 2 * GIB)
    idle, state = decide_all(ALWAYS, scanned_by_others(2200, full_scans=4, ksmd_cpu_seconds=40.0, **known), state=state)
    assert (idle.reason.rule, idle.reason.text) == ("idle", "would let ksmd idle: all 2.0 GiB scanned")
    assert state.backlog.due_kib == 0
    assert sum(state.learned.pair.values()) == 2 * GIB


def test_its_rules_are_adaptives_but_for_those_that_end_a_full_scan() -> None:
    assert set(MEANINGS["observe"]) == {*stories(), RULE} - {"stalled", "empty"}


def test_whether_it_only_observes_is_the_same_for_the_configuration() -> None:
    for name in all_keys()["policy"].choices:
        config = Config(policy=name)  # type: ignore[arg-type]  # one of its choices
        assert make_policy(config).only_observes == config.only_observes == (name == "observe")


@pytest.mark.parametrize("advisor", ["none", "scan-time"])
def test_no_pass_writes_claims_or_keeps_a_baseline_whatever_happens(advisor: str) -> None:
    hypervisor, store, switch = FakeHypervisor(advisor_on=advisor != "none"), FakeStore(), FakeSwitch()
    cycle = fake_cycle(
        hypervisor=hypervisor, store=store, switch=switch, policy=ALWAYS, local=FakeFacts(advisor=lambda: advisor)
    )
    turns: tuple[Callable[[], None], ...] = (lambda: None, switch.turn_off, switch.turn_on)
    for turn in turns:
        turn()
        for trigger in Trigger:
            hypervisor.values |= {"pages_to_scan": 100 + len(store.saved)}
            report = cycle.run(Triggers(kinds=frozenset({trigger})))
            assert (report.outcome, report.changed, report.refusals, report.foreign) == (Outcome.OBSERVED, {}, (), ())
            assert report.warnings == []
            assert pass_sentence(report).endswith("(observed)")
            assert status_text(report).endswith("(observed)")
    assert cycle.run(TIMER, dry_run=True).outcome is Outcome.DRY_RUN
    for leave in (cycle.restore, cycle.idle):
        with pytest.raises(VirtksmError, match="policy observe sets nothing"):
            leave()
    assert hypervisor.calls == []
    assert all(state.ownership == {} for state in store.saved)
    assert store.state.policy_name == "observe"


def test_paused_it_says_that_ksmd_goes_on() -> None:
    switch = FakeSwitch()
    switch.turn_off()
    report = fake_cycle(policy=ALWAYS, switch=switch).run(TIMER)
    assert report.decision.reason.text.endswith("policy observe sets nothing, so ksmd goes on as others say")


async def test_an_agent_that_observes_leaves_ksm_alone_when_it_ends_and_is_never_said_to_strand_it() -> None:
    bench = Bench(config=Config(coalesce_ms=0, policy="observe"))
    bench.hypervisor.values |= OTHERS
    bench.policy.only_observes = True
    async with bench.running():
        await bench.ask("retune")
        status = (await bench.ask("status"))["status"]
        assert (status["policy"], status["last_pass"]["outcome"]) == ("observe", "observed")
        await bench.ask("off")
        await bench.lose()
        assert bench.requests.read_facts().may_be_stranded is False
    assert (bench.code, bench.hypervisor.calls) == (0, [])
    assert [bench.events(name) for name in ("settings_restored", "ksmd_idled", "settings_left")] == [[], [], []]


def test_restore_has_nothing_to_do_and_needs_no_libvirt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "virtksm.toml").write_text('policy = "observe"\n', encoding="utf-8")
    folders = ["--config", str(tmp_path / "virtksm.toml"), "--runtime-dir", str(tmp_path / "run")]
    for options in ([], ["--on-exit"], ["--defaults"]):
        assert main([*folders, "restore", *options, "--connect", "none:///"]) == 0
        assert capsys.readouterr().out.startswith("nothing to do: policy observe sets nothing")


@pytest.mark.parametrize("connected", [True, False])
async def test_a_reload_from_another_policy_is_that_policys_end(*, connected: bool) -> None:
    bench = Bench()
    found = dict(bench.hypervisor.values)
    async with bench.running():
        assert bench.hypervisor.values != found
        if not connected:
            bench.passes.cycle = None
        bench.config = Config(coalesce_ms=0, policy="observe")
        bench.policy = replace(bench.policy, only_observes=True)
        assert (await bench.ask("reload"))["ok"]
    assert (bench.hypervisor.values == found) is connected
    assert len(bench.events("settings_restored")) == int(connected)
    assert len(bench.events("settings_left")) == int(not connected)
