"""A recording: what it makes of the agent's answers, of an agent that ends, and of one that begins anew."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.unit.test_trace import HEADER, PASS
from virtksm.cli.trace.record import Recorder
from virtksm.errors import VirtksmError
from virtksm.trace.text import dump_line

Answer = Mapping[str, Any]


def trace(**changes: object) -> dict[str, object]:
    """Return an answer of the agent's, with one pass in it."""
    answer = {
        "session": "s",
        "header": None,
        "lines": [dump_line(PASS)],
        "missed": 0,
        "next": 4,
        "more": False,
        **changes,
    }
    return {"ok": True, "trace": answer}


FIRST = trace(header=dump_line(HEADER))


class FakeAgent:
    """Gives one answer after the other; None where no agent runs."""

    def __init__(self, *answers: dict[str, object] | VirtksmError | None) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, object]] = []

    def __call__(self, request: dict[str, object]) -> dict[str, object] | None:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, VirtksmError):
            raise answer
        return answer


def kinds(lines: list[str]) -> list[str]:
    return [json.loads(line)["kind"] for line in lines]


def test_it_goes_on_where_it_was_and_ends_with_a_summary() -> None:
    agent = FakeAgent(FIRST, trace(next=5, more=True), trace(next=6, more=True), trace(next=7))
    recorder = Recorder(agent)
    assert kinds(recorder.ask()) == ["header", "pass"]
    assert kinds(recorder.ask()) == ["pass"]
    assert kinds(lines := recorder.end(9.0)) == ["pass", "pass", "end"]
    assert json.loads(lines[-1]) == {"kind": "end", "at_s": 9.0, "passes": 4, "missed": 0}
    assert agent.asked[0] == {"op": "trace", "session": None, "since": None}
    assert [(one["session"], one["since"]) for one in agent.asked[1:]] == [("s", 4), ("s", 5), ("s", 6)]


def test_what_was_missed_is_said_before_what_came_after_it() -> None:
    recorder = Recorder(FakeAgent(FIRST, trace(missed=7)))
    recorder.ask()
    lines = recorder.ask()
    assert kinds(lines) == ["gap", "pass"]
    assert json.loads(lines[0])["missed"] == 7
    assert recorder.missed == 7


def test_an_agent_that_has_ended_is_waited_for_and_another_one_has_a_header_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unconnected = trace(session="t", lines=[], next=0)
    other = trace(session="t", header=dump_line(HEADER), next=1)
    agent = FakeAgent(FIRST, None, VirtksmError("no answer"), unconnected, other, trace(session="t", lines=[]))
    recorder = Recorder(agent)
    recorder.ask()
    assert [recorder.ask() for _ in range(3)] == [[], [], []]
    lines = recorder.ask()
    assert kinds(lines) == ["gap", "header", "pass"]
    assert json.loads(lines[0])["missed"] is None
    recorder.ask()
    assert [one["session"] for one in agent.asked] == [None, "s", "s", "s", "s", "t"]
    assert capsys.readouterr().err == "virtksm: waiting for the agent: it has ended\n", "once"


def test_without_an_agent_or_a_pass_there_is_no_recording() -> None:
    recorder = Recorder(FakeAgent(None))
    assert (recorder.ask(), recorder.is_away) == ([], True)
    with pytest.raises(VirtksmError, match="you may not"):
        Recorder(FakeAgent(VirtksmError("you may not"))).ask()
    recorder = Recorder(FakeAgent(trace(lines=[], next=0), trace(lines=[], next=0)))
    assert (recorder.ask(), recorder.end(1.0)) == ([], [])


@pytest.mark.parametrize(
    "answer",
    [
        {"ok": False, "error": "unknown op 'trace'", "exit_code": 2},
        {"ok": True, "trace": []},
        trace(lines=[1]),
        trace(session="s" * 100_000),
        trace(missed=-1),
    ],
)
def test_an_answer_of_another_version_is_told(answer: dict[str, object]) -> None:
    with pytest.raises(VirtksmError, match="systemctl restart virtksm"):
        Recorder(FakeAgent(answer)).ask()


def test_an_anonymous_recording_is_written_without_names() -> None:
    recorder = Recorder(FakeAgent(FIRST, trace(lines=["{}"])), is_anonymous=True)
    lines = recorder.ask()
    assert kinds(lines) == ["header", "pass"]
    assert "vault" not in "".join(lines)
    with pytest.raises(VirtksmError, match="cannot be understood"):
        recorder.ask()


@pytest.mark.parametrize(
    "lines",
    [
        ["{}"],
        [dump_line(HEADER)],
        [dump_line(PASS).replace(",", ",\n", 1)],
        [dump_line(PASS), "\ud800"],
        [dump_line(PASS).replace(PASS.outcome, "\u202e")],
        [["x"]],
    ],
)
def test_a_line_that_is_none_of_a_trace_is_not_written(lines: list[object]) -> None:
    with pytest.raises(VirtksmError, match="cannot be understood"):
        Recorder(FakeAgent(trace(header=dump_line(HEADER), lines=lines))).ask()
    with pytest.raises(VirtksmError, match="cannot be understood"):
        Recorder(FakeAgent(trace(header=dump_line(PASS), lines=[]))).ask()


def test_an_agent_that_always_has_more_cannot_keep_a_recording_from_its_end() -> None:
    agent = FakeAgent(FIRST, *[trace(more=True)] * 3)
    recorder = Recorder(agent, ends_within_s=0.0)
    recorder.ask()
    assert kinds(recorder.end(1.0)) == ["pass", "end"]
    assert len(agent.answers) == 2


def test_a_recording_has_an_end_whatever_the_agent_tells() -> None:
    recorder = Recorder(FakeAgent(FIRST, *[trace(more=True)] * 9), max_characters=4 * len(dump_line(PASS)))
    asked = 0
    while not recorder.is_full:
        recorder.ask()
        asked += 1
    assert asked <= 5
    assert not recorder.has_more
    assert kinds(recorder.end(1.0)) == ["pass", "end"]
