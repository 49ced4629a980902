"""The agent's answers from its history stay shorter than what a client reads, whatever is in it."""

import asyncio
import json
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_history import EVENT, NOW_S, SAMPLE
from tests.fakes import FakeHistory
from virtksm.agent.control_client import MAX_ANSWER
from virtksm.agent.history import HistoryWriter
from virtksm.agent.requests import answer_decisions, answer_history
from virtksm.history.samples import MAX_EVENTS, MAX_SAMPLES
from virtksm.values import replace


def answer_of(history: FakeHistory, ask: Callable[..., object], request: Mapping[str, object]) -> dict[str, object]:
    async def story() -> object:
        history_writer = HistoryWriter(wall_clock=lambda: NOW_S + 86_000)
        history_writer.write_to(history)
        answer = ask(history_writer, request)
        assert asyncio.iscoroutine(answer)
        return await answer

    answer = asyncio.run(story())
    assert isinstance(answer, dict)
    assert len(json.dumps(answer)) < MAX_ANSWER
    return answer


@pytest.mark.parametrize("points", [1, 60, 1000])
def test_a_full_history_fits(points: int) -> None:
    long_name = "\u2028" * 255
    history = FakeHistory(
        kept_samples=[replace(SAMPLE, at_s=NOW_S + 9.9 * n, saved_kib=2**63 - 1 - n) for n in range(MAX_SAMPLES)],
        kept_events=[replace(EVENT, at_s=NOW_S + n, domain=long_name) for n in range(MAX_EVENTS)],
    )
    told = answer_of(history, answer_history, {"seconds": 86_400, "points": points})["history"]
    assert isinstance(told, dict)
    assert points * 0.9 <= len(told["samples"]["rows"]) <= points
    assert told["events"]["rows"][-1][0] == NOW_S + MAX_EVENTS - 1, "the last ones are told"
    assert len(told["events"]["rows"]) > 100


@given(sizes=st.lists(st.integers(0, 2_000_000), min_size=1, max_size=100), last=st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_as_many_decisions_as_fit_are_told_the_last_ones(sizes: list[int], last: int) -> None:
    lines = [f"{number} {'y' * size}" for number, size in enumerate(sizes)]
    told = answer_of(FakeHistory(kept_decisions=lines), answer_decisions, {"last": last})["decisions"]
    assert isinstance(told, list)
    assert len(told) <= last
    assert told == lines[len(lines) - len(told) :]
