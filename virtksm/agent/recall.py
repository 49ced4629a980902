"""Answers questions for the agent's memories (`history`, `decisions`), in bounded numbers and bytes.

`{"op": "history", "seconds": N, "points": M}` is answered by `{"ok": true, "history": {"now_s", "samples", "events"}}`,
tables of at most M samples (docs/reference.md lists the columns) and the last events;
`{"op": "decisions", "last": N}` by `{"ok": true, "decisions": [{"at": ..., "pass": {...}}, ...]}`. The oldest come
first. Times are Unix time; `now_s` is the agent's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from virtksm.agent.control_client import MAX_ANSWER
from virtksm.agent.history import Diary
from virtksm.errors import ExitCode, VirtksmError
from virtksm.history.samples import KEEP_S, MOST_POINTS, MOST_REAL, as_table, event_row, thin

MOST_TOLD_EVENTS = 1_000
MOST_TOLD_DECISIONS = 100
LAST_DECISIONS = 10
"""How many are told where the request says nothing."""
EVENTS_BYTES = MAX_ANSWER // 3
DECISIONS_BYTES = MAX_ANSWER * 3 // 4

Value = TypeVar("Value")


class BadRequest(VirtksmError):
    """A request that cannot be understood."""

    exit_code = ExitCode.USAGE


async def recall_history(diary: Diary, request: Mapping[str, object]) -> dict[str, object]:
    """Answer with samples and events of the last `seconds`, a day unless said; raises BadRequest, StateUnusable."""
    since_s = diary.now_s() - _number(request, "seconds", KEEP_S, MOST_REAL)
    points = int(_number(request, "points", MOST_POINTS, MOST_POINTS))
    found = await diary.samples(since_s)
    events = await diary.events(since_s, MOST_TOLD_EVENTS)
    now_s = diary.now_s()  # not before: the disk may take seconds, and passes and events go on meanwhile
    samples = thin(found, points, until_s=now_s)
    told = _last_that_fit(events, EVENTS_BYTES, event_row)
    return {"ok": True, "history": {"now_s": now_s, **as_table(samples, told)}}


async def recall_decisions(diary: Diary, request: Mapping[str, object]) -> dict[str, object]:
    """Answer with the `last` decisions, ten unless said; raises BadRequest, StateUnusable."""
    last = int(_number(request, "last", LAST_DECISIONS, MOST_TOLD_DECISIONS))
    told = _last_that_fit(await diary.decisions(last), DECISIONS_BYTES, lambda one: one.record)
    return {"ok": True, "decisions": [{"at": one.at_s, "pass": one.record} for one in told]}


def _number(request: Mapping[str, object], name: str, default: float, most: float) -> float:
    value = request.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= most:
        raise BadRequest(f"{name} must be a number from 1 to {most:.0f}")
    return value


def _last_that_fit(values: Sequence[Value], most_bytes: int, as_json: Callable[[Value], object]) -> Sequence[Value]:
    """Return as many of the last values as take `most_bytes` at most."""
    for number, value in enumerate(reversed(values)):
        most_bytes -= len(json.dumps(as_json(value)))
        if most_bytes < 0:
            return values[len(values) - number :]
    return values
