"""Replays: of a real trace (tests/traces), which decides the same again, and of traces made by hand."""

import json
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import TargetPolicy
from tests.unit.test_policy_adaptive import TIMER, snap
from tests.unit.test_trace import HEADER, PASS
from virtksm.cli.main import main
from virtksm.config.policy_keys import change_law, law_of, read_law
from virtksm.config.schema import AdaptiveParams, Config, KsmtunedParams
from virtksm.errors import ConfigError
from virtksm.model.decision import Decision, Pause, Reason
from virtksm.model.snapshot import IDLE, Settings
from virtksm.policy import make_policy
from virtksm.store.trace import read_trace
from virtksm.trace import Gap, Header, Law, Line, Pass, Torn
from virtksm.trace.replay import ReplayStep, Sums, replay
from virtksm.trace.text import dump_line, parse_lines
from virtksm.values import replace

TWINS = Path(__file__).parents[1] / "traces" / "twins.jsonl"
"""Recorded on real guests: four that have much in common, started apart; a one-shot's pass, off and on, reloads."""

FED = Settings(pages_to_scan=100_000, sleep_millisecs=60_000)


def twins() -> list[Line | Torn]:
    return list(parse_lines(read_trace(str(TWINS)), "twins"))


def own(law: Law) -> Any:  # noqa: ANN401  # a policy and its state
    return make_policy(read_law(law.policy, law.config, "twins"))


def traced(at_s: float, target: Settings = IDLE, **changes: Any) -> Pass:  # noqa: ANN401  # fields of a pass
    """A pass that the recorded policy, called "target", has answered so, after one that it follows."""
    return replace(
        PASS,
        snapshot=snap(at_s),
        triggers=TIMER,
        decision=Decision(target=target, reason=Reason(rule="told", text="as told"), next_pass_s=1.0),
        **{"continues": True, "state": None, **changes},
    )


def header(policy: str = "target") -> Header:
    return replace(HEADER, law=Law(policy=policy, config={}))


def steps_of(
    lines: Iterable[Line | Torn], policy: TargetPolicy | None = None, sums: Sums | None = None
) -> list[ReplayStep]:
    return list(replay(lines, lambda _law: policy or TargetPolicy(target=IDLE), sums or Sums()))


# The real trace


def test_the_recorded_policy_decides_the_same_again() -> None:
    steps = list(replay(twins(), own, Sums()))
    assert {step.line.decision.reason.rule for step in steps} >= {"full_scan", "wait", "idle", "boost", "paused"}
    for step in steps:
        assert step.replayed == step.line.decision
    assert [step.began_anew for step in steps].count(True) == 0


# Traces made by hand


def states_of(*lines: Line | Torn) -> list[int]:
    policy = Counting()
    steps_of(lines, policy)
    return policy.states


def test_it_takes_over_the_recorded_state_and_goes_on_by_itself_as_another_policy_does_with_its_own() -> None:
    first = traced(1, continues=False, state={"steps": 7})
    assert states_of(header(), first, traced(2)) == [7, 8]
    assert states_of(header("other"), first, traced(2, continues=False, state={})) == [0, 1]


def test_after_a_gap_or_another_s_pass_it_takes_it_over_again_and_an_unknown_one_begins_anew() -> None:
    lines: list[Line | Torn] = [
        header(),
        traced(1, continues=False, state={"steps": 7}),
        Gap(missed=3),
        traced(9, continues=False, state={"steps": 20}),
        traced(10, continues=False, state={"else": 1}),
        traced(11, continues=False),
    ]
    policy = Counting()
    steps = steps_of(lines, policy)
    assert policy.states == [7, 20, 0, 0]
    assert [step.began_anew for step in steps] == [False, False, True, False]


def test_paused_it_parks_and_begins_anew_afterwards() -> None:
    off = Pause(since="then")
    passes = [traced(1, continues=False), traced(2), traced(3, paused=off), traced(4, paused=off), traced(5)]
    policy = Counting()
    steps = steps_of([header(), *passes], policy)
    assert policy.states == [0, 1, 0]
    assert [step.replayed.reason.rule for step in steps] == ["told", "told", "paused", "paused", "told"]
    assert [step.replayed.is_routine for step in steps] == [False, False, False, True, False]


def test_a_law_that_changes_in_between_is_followed_and_another_policy_begins_anew() -> None:
    chosen: list[str] = []
    policies = {name: Counting(name=name) for name in ("target", "other")}

    def choose(law: Law) -> TargetPolicy:
        chosen.append(law.policy)
        return policies[law.policy]

    other = Law(policy="other", config={})
    list(replay([header(), traced(1), traced(2), traced(3, law=other), traced(4)], choose, Sums()))
    assert chosen == ["target", "other"]
    assert (policies["target"].states, policies["other"].states) == ([0, 1], [0, 1])


class Counting(TargetPolicy):
    """A policy that notes its state before each of its answers."""

    def __init__(self, name: str = "target") -> None:
        super().__init__(target=IDLE, name=name)
        self.states: list[int] = []

    def decide(self, snapshot: Any, state: int, triggers: Any) -> tuple[Decision, int]:  # noqa: ANN401  # the port's
        self.states.append(state)
        return super().decide(snapshot, state, triggers)


def test_time_between_passes_that_do_not_follow_each_other_is_not_counted() -> None:
    lines: list[Line | Torn] = [header(), traced(1), traced(3), Gap(missed=1), traced(100), traced(101), traced(7)]
    assert [step.lasted_s for step in steps_of([*lines, header(), traced(500)])] == [None, 2, None, 1, None, None]


def sums_of(lines: Iterable[Line | Torn]) -> dict[str, Any]:
    sums = Sums()
    steps_of(lines, None, sums)
    return sums.as_dict()


def test_a_changed_sleep_grants_a_batch_at_once_and_an_unchanged_one_a_batch_a_sleep() -> None:
    """100,000 pages take 0.7 s at most, and a minute of sleep follows."""
    lines: list[Line | Torn] = [header(), traced(0, FED), traced(60.7, FED), traced(121.4)]
    sums = sums_of(lines)
    assert sums["seconds"] == pytest.approx(121.4)
    assert sums["recorded"]["pages_per_s"] == pytest.approx((1 + 1 + 1) * 100_000 / 121.4, rel=0.001)
    assert sums["recorded"]["idle_percent"] == 0
    assert sums["replayed"] == {"idle_percent": 100.0, "pages_per_s": 0.0}
    assert (sums["passes"], sums["differing"]) == (3, 2)


def test_nothing_is_divided_by_no_time() -> None:
    assert sums_of([header(), traced(0)])["recorded"] == {"idle_percent": None, "pages_per_s": None}


# Laws from a trace and from the command line


def test_a_law_survives_the_trace() -> None:
    config = Config(policy="ksmtuned", ksmtuned=KsmtunedParams(npages_max=77), adaptive=AdaptiveParams(engage="never"))
    assert read_law("ksmtuned", json.loads(json.dumps(law_of(config))), "t") == config
    assert read_law("adaptive", {}, "t") == Config()


@pytest.mark.parametrize(
    ("policy", "law", "finding"),
    [
        ("later", {}, "t: policy: is 'later'; use one of"),
        ("adaptive", {"adaptive.later": 1}, "t: adaptive.later: is not a known key; read it with the version"),
        ("adaptive", {"adaptive.settle_s": "x"}, "t: adaptive.settle_s: is 'x', not an integer"),
        ("adaptive", {"log_level": "info"}, "t: log_level: is not a known key"),
        ("ksmtuned", {"ksmtuned.npages_min": 9, "ksmtuned.npages_max": 1}, "t: ksmtuned.npages_min: 9 is more than"),
    ],
)
def test_a_law_that_this_virtksm_does_not_know_is_told(policy: str, law: dict[str, object], finding: str) -> None:
    with pytest.raises(ConfigError, match=finding):
        read_law(policy, law, "t")


def test_the_keys_of_adaptive_are_those_of_observe_too() -> None:
    config = change_law(Config(), "observe", ["adaptive.engage=always", "adaptive.exclude_rewriters=true"])
    assert (config.policy, config.adaptive.engage, config.adaptive.exclude_rewriters) == ("observe", "always", True)
    with pytest.raises(ConfigError, match="is no key of the policy observe"):
        change_law(Config(), "observe", ["ksmtuned.npages_max=9"])


@pytest.mark.parametrize(
    ("policy", "text", "finding"),
    [
        (None, "adaptive.engag=auto", "--set: adaptive.engag: is not a known key; did you mean adaptive.engage?"),
        (None, "adaptive.engage", "--set: adaptive.engage: has no value; write adaptive.engage=VALUE"),
        (None, "adaptive.engage=perhaps", "--set: adaptive.engage: is 'perhaps'; use one of"),
        (None, f"adaptive.settle_s={'9' * 5000}", "--set: adaptive.settle_s: is '999"),
        (None, "adaptive.exclude_rewriters=1", "--set: adaptive.exclude_rewriters: is '1', not true or false; use"),
        (None, "adaptive.settle_s=4000", "--set: adaptive.settle_s: is 4000, out of range; use 0..3600 s"),
        (None, "ksmtuned.npages_max=9", "--set: ksmtuned.npages_max: is no key of the policy adaptive; leave it out"),
        (None, "policy=ksmtuned", "--set: policy: is no key of the policy adaptive; leave it out, or choose another"),
        ("ksmtuned", "ksmtuned.npages_max=9", "--set: ksmtuned.npages_min: 64 is more than ksmtuned.npages_max, 9"),
    ],
)
def test_what_cannot_be_set_is_told_with_key_and_remedy(policy: str | None, text: str, finding: str) -> None:
    with pytest.raises(ConfigError) as caught:
        change_law(Config(), policy, [text])
    assert str(caught.value).startswith(finding)


def test_every_fault_of_the_command_line_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        change_law(Config(), None, ["x", "adaptive.settle_s=x", "adaptive.engage=always"])
    assert [finding.key for finding in caught.value.faults] == ["x", "adaptive.settle_s"]


def write(folder: Path, *lines: Line, tail: str = "") -> str:
    file = folder / "t.jsonl"
    file.write_text("".join(f"{dump_line(line)}\n" for line in lines) + tail, encoding="utf-8")
    return str(file)


# The command


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["trace", "replay", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_the_command_prints_both_sides_and_their_sums(capsys: pytest.CaptureFixture[str]) -> None:
    lines = replayed(capsys, str(TWINS), "--policy", "ksmtuned", "--set", "ksmtuned.thres_coef=100").splitlines()
    assert lines[1].startswith("Recorded   policy adaptive, adaptive.engage = always")
    assert lines[2] == "Replayed   policy ksmtuned, ksmtuned.thres_coef = 100"
    assert any("idle: idle" in line and "boost: 300 pages, 10 ms" in line and "differs" in line for line in lines)
    assert lines[-1].startswith("Replayed   idle ")
    assert "pages/s at most" in lines[-1]


def test_a_law_that_changed_while_recording_is_shown_where_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    said = replayed(capsys, str(TWINS))
    assert said.count("recorded from here on") == 2
    assert "recorded from here on: policy ksmtuned, ksmtuned.thres_coef = 100\n" in said
    steps = json.loads(replayed(capsys, str(TWINS), "--json"))["steps"]
    assert [step["law"]["policy"] for step in steps if step["law"]] == ["adaptive", "ksmtuned", "adaptive"]


def test_only_passes_in_which_an_answer_changes_are_shown_unless_all_are(capsys: pytest.CaptureFixture[str]) -> None:
    shown, everything = (
        json.loads(replayed(capsys, str(TWINS), "--json", *options))["steps"] for options in ((), ("--all",))
    )
    assert len(shown) < len(everything) == sum(isinstance(line, Pass) for line in twins())
    answers = [(step["law"], step["recorded"]["rule"], step["recorded"]["target"]) for step in shown]
    assert all(one != other or other[0] for one, other in pairwise(answers))
    rules = [step["recorded"]["rule"] for step in shown]
    assert ("full_scan", "full_scan") not in pairwise(rules), "a batch is no decision"


def test_a_configuration_file_stands_in_for_the_recorded_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "virtksm.toml"
    file.write_text('policy = "adaptive"\n[adaptive]\nengage = "never"\n', encoding="utf-8")
    assert main(["--config", str(file), "trace", "replay", str(TWINS)]) == 0
    said = capsys.readouterr().out
    assert "Replayed   policy adaptive, adaptive.engage = never" in said
    assert "Replayed   idle 100.0 % of the time" in said


def test_a_policy_that_asks_for_more_than_was_recorded_is_said_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, header("ksmtuned"), traced(1, continues=False))
    said = replayed(capsys, file, "--policy", "adaptive")
    assert re.findall("^Unknown    .*: the recorded policy did not ask for it$", said, re.MULTILINE) == [
        "Unknown    what guests may grow to: the recorded policy did not ask for it",
        "Unknown    mergeable memory that is no guest's: the recorded policy did not ask for it",
    ]
    assert "unknown" not in replayed(capsys, file)


def test_what_the_trace_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    law = Law(policy="adaptive", config={"adaptive.engage": "always"})
    parts: list[Line] = [traced(1, continues=False, state={"else": 1}), Gap(missed=4), Gap(missed=None)]
    file = write(tmp_path, replace(HEADER, law=law), *parts, tail='{"kind": "pa')
    said = replayed(capsys, file, "--set", "adaptive.engage=auto")
    assert "Unknown    what guests may grow to" in said
    assert "Missing    4 passes or more, in 2 gaps" in said
    assert "Torn       the last line is not whole" in said
    assert "Reset      1 times" in said
    sums = json.loads(replayed(capsys, file, "--json"))["sums"]
    assert (sums["gaps"], sums["missed"], sums["torn"], sums["began_anew"]) == (2, 4, True, 1)


def test_texts_of_a_trace_harm_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;evil\x07"
    made = traced(1, continues=False)
    made = replace(made, decision=replace(made.decision, reason=Reason(rule=evil, text=evil)))
    file = write(tmp_path, replace(header("adaptive"), uri=evil, began=evil, version=evil), made)
    assert "\x1b" not in replayed(capsys, file)
