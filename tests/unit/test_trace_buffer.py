"""The agent's buffer of trace lines: bounded, numbered, and complete or said to be not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.unit.test_policy_adaptive import TIMER, snap
from virtksm.agent.control_client import MAX_ANSWER
from virtksm.agent.trace_buffer import ASKED_S, MAX_CHARACTERS, MAX_PASSES, TraceBuffer
from virtksm.config.schema import AdaptiveParams, Config
from virtksm.model.decision import Pause
from virtksm.model.report import Outcome, PassReport
from virtksm.model.snapshot import IDLE, Guest, Snapshot, Source
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.state import AdaptiveState, dump_state
from virtksm.policy.off import decide_off
from virtksm.trace import Pass
from virtksm.trace.text import parse_line
from virtksm.values import replace

CONFIG = Config(adaptive=AdaptiveParams(engage="always"))
POLICY = AdaptivePolicy(params=CONFIG.adaptive)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Agent:
    """An agent's passes over a host of some guests, a second apart; its state goes through JSON as on disk."""

    buffer: TraceBuffer = field(default_factory=TraceBuffer)
    guests: int = 1
    now_s: float = 0.0
    state: dict[str, Any] | None = None

    def snapshot(self) -> Snapshot:
        seen = snap(self.now_s)
        guests = (
            Guest(uuid=f"6f1c2a52-5f57-4b1e-9f3e-{number:012d}", name=f"guest-{number}", domain_id=number, rss_kib=1000)
            for number in range(self.guests)
        )
        return replace(seen, guests=tuple(guests))

    def step(self, config: Config = CONFIG, off: Pause | None = None) -> PassReport:
        """Make a pass and have it buffered."""
        self.now_s += 1
        seen, before = self.snapshot(), self.state
        if off is not None:
            decision, before, self.state = decide_off(off, was_off=False), None, None
        else:
            state = AdaptiveState() if before is None else POLICY.load_state(before)
            decision, state = POLICY.decide(seen, state, TIMER)
            self.state = json.loads(json.dumps(dump_state(state)))
        report = PassReport(
            uri="qemu:///system",
            policy="adaptive",
            triggers=TIMER,
            snapshot=seen,
            decision=decision,
            outcome=Outcome.APPLIED,
            before=seen.ksm.settings,
            after=IDLE,
            duration_ms=1.0,
            paused=off,
            state_before=before,
            state_after=self.state,
        )
        self.buffer.add(report, config, now_s=self.now_s, at_s=1e9 + self.now_s)
        return report

    def ask(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask as a recorder does that got `before`."""
        request = {} if before is None else {"session": before["session"], "since": before["next"]}
        return self.buffer.answer(request, now_s=self.now_s, now=NOW)


def passes(answer: Mapping[str, Any]) -> list[Pass]:
    read = [parse_line(line) for line in answer["lines"]]
    assert all(isinstance(line, Pass) for line in read)
    return [line for line in read if isinstance(line, Pass)]


def test_a_recorder_begins_with_the_last_pass_and_gets_each_one_after_it_once() -> None:
    agent = Agent()
    agent.step()
    last = agent.step()
    first = agent.ask()
    (line,) = passes(first)
    assert (line.snapshot, line.seq, line.continues) == (last.snapshot, 1, False)
    assert line.state == last.state_before
    header = json.loads(first["header"])
    assert (header["uri"], header["began"]) == ("qemu:///system", "2026-01-02T03:04:05+00:00")
    assert header["law"]["config"]["adaptive.engage"] == "always"
    second = agent.ask(first)
    assert second["lines"] == []
    reports = [agent.step() for _ in range(3)]
    third = agent.ask(second)
    assert (third["header"], third["missed"], third["more"]) == (None, 0, False)
    assert [line.snapshot for line in passes(third)] == [report.snapshot for report in reports]
    assert all(line.continues and line.law is None for line in passes(third))
    assert passes(agent.ask(third)) == []


def test_a_recorder_that_is_too_slow_is_told_what_it_missed() -> None:
    agent = Agent()
    agent.step()
    answer = agent.ask()
    for _ in range(MAX_PASSES + 7):
        agent.now_s -= 0.99
        agent.step()
    answer = agent.ask(answer)
    assert answer["missed"] == MAX_PASSES - 1, "the buffer was full, and began anew"
    first, *others = passes(answer)
    assert (first.seq, first.continues, len(others)) == (MAX_PASSES, False, 7)
    assert first.state is not None
    assert first.law is not None
    assert all(line.continues for line in others)


def test_a_second_recorder_begins_with_the_last_pass_and_the_first_one_goes_on() -> None:
    agent = Agent()
    agent.step()
    first = agent.ask()
    agent.step()
    agent.step()
    second = agent.ask()
    assert [(line.seq, line.continues) for line in passes(second)] == [(2, False)]
    again = agent.ask(first)
    assert ([line.seq for line in passes(again)], again["missed"]) == ([2], 1)


def test_passes_are_kept_only_while_somebody_asks_and_a_recorder_that_was_away_is_told() -> None:
    agent = Agent()
    agent.step()
    answer = agent.ask()
    agent.now_s += ASKED_S
    agent.step()
    agent.step()
    agent.step()
    again = agent.ask(answer)
    assert [line.seq for line in passes(again)] == [3], "the last one, which the agent knows anyway"
    assert again["missed"] == 2
    assert passes(again)[0].continues is False


def test_another_law_and_a_state_that_another_process_has_left_are_there_with_the_first_pass_that_has_them() -> None:
    agent = Agent()
    before = agent.ask()
    assert (before["header"], before["lines"]) == (None, []), "before the first pass"
    report = agent.step()
    remote = replace(report, snapshot=replace(report.snapshot, source=Source.LIBVIRT))
    agent.buffer.add(remote, CONFIG, now_s=1.0, at_s=0.0)
    answer = agent.ask()
    assert json.loads(answer["header"])["kernel"] is None, "another machine's is not known"
    agent.step()
    agent.step(replace(CONFIG, policy="ksmtuned"))
    assert agent.state is not None
    agent.state = {**agent.state, "rule": "another"}
    agent.step(replace(CONFIG, policy="ksmtuned"))
    lines = passes(agent.ask(answer))
    assert [line.law and line.law.policy for line in lines] == [None, "ksmtuned", None]
    assert [line.continues for line in lines] == [True, True, False]
    assert lines[2].state is not None
    assert lines[2].state["rule"] == "another"


def test_with_500_guests_its_memory_and_its_answers_are_bounded() -> None:
    agent = Agent(guests=500)
    agent.step()
    answer = agent.ask()
    for _ in range(60):
        agent.step()
        agent.now_s -= 0.75
    assert sum(len(line) for _, line in agent.buffer.ring) <= MAX_CHARACTERS
    got = 0
    while True:
        answer = agent.ask(answer)
        assert len(json.dumps({"ok": True, "trace": answer})) < MAX_ANSWER
        got += len(answer["lines"]) + answer["missed"]
        if not answer["more"]:
            break
    assert got == 60


def test_a_pass_too_large_for_any_answer_is_missed_and_said() -> None:
    agent = Agent()
    agent.step()
    answer = agent.ask()
    agent.guests = 20_000
    agent.step()
    agent.guests = 1
    agent.step()  # goes by the state of 20,000 guests
    agent.step()
    answer = agent.ask(answer)
    assert (answer["missed"], [line.seq for line in passes(answer)]) == (2, [3])


@pytest.mark.parametrize("since", [None, "x", -5, 10**30])
def test_a_senseless_question_has_an_answer(since: object) -> None:
    agent = Agent()
    agent.step()
    session = agent.ask()["session"]
    answer = agent.buffer.answer({"session": session, "since": since}, now_s=agent.now_s, now=NOW)
    assert len(answer["lines"]) <= 1  # type: ignore[arg-type]  # a list
