"""Answers the requests that come through the agent's sockets, each a JSON object with an `op`.

A request for a pass is answered by that pass. Answers from the history are bounded in numbers and bytes:

`{"op": "history", "seconds": N, "points": M}` is answered by `{"ok": true, "history": {"now_s", "samples", "events"}}`,
tables of at most M samples (history/samples.py has the columns) and the last events, with `"width_s": W` also by
`curves` to draw, up to the present moment; `{"op": "decisions", "last": N}` by
`{"ok": true, "decisions": [LINE, ...]}`, lines of a trace. The oldest come first. Times are Unix time; `now_s` is the
agent's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from virtksm.agent.agent import Agent
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.control_client import MAX_ANSWER
from virtksm.agent.history import DISK_HANGS, DISK_LIMIT_S, HistoryWriter
from virtksm.agent.sockets import failure
from virtksm.agent.status import AgentFacts, read_facts
from virtksm.config.schema import Config
from virtksm.errors import ExitCode, LibvirtUnreachable, VirtksmError
from virtksm.history.curves import Point, as_curves
from virtksm.history.samples import KEEP_S, MAX_POINTS, MAX_REAL, SAMPLE_S, GuestEvent, as_table, thin
from virtksm.model.current import CurrentKsm
from virtksm.model.decision import Trigger
from virtksm.tuning.ports import LocalFacts, Switch
from virtksm.uri import is_alias

MAX_ANSWERED_EVENTS = 1_000
MAX_ANSWERED_DECISIONS = 100
LAST_DECISIONS = 10
"""The number of decisions where the request names none."""
EVENTS_BYTES = MAX_ANSWER // 3
DECISIONS_BYTES = MAX_ANSWER * 3 // 4
MAX_SHOWN = 60
"""Characters of a request that an answer repeats."""

OF_ONE_HOST = ("retune", "pause", "resume", "status", "history", "decisions", "trace")
"""Requests that may name the host that they mean."""

Value = TypeVar("Value")


class BadRequest(VirtksmError):
    """A request that cannot be understood."""

    exit_code = ExitCode.USAGE


@dataclass(slots=True, kw_only=True)
class Requests:
    """Answers requests, from the agent's parts.

    `make_switch` gives the switch of the host behind a URI, also while there is no connection. `facts` are this
    machine's, apart from those of passes.
    """

    agent: Agent
    make_switch: Callable[[str, Config], Switch]
    facts: LocalFacts | None
    switch_calls: BlockingCalls = field(default_factory=partial(BlockingCalls, DISK_HANGS, DISK_LIMIT_S))

    def read_facts(self) -> AgentFacts:
        return read_facts(self.agent, self.facts)

    async def handle(self, request: Mapping[str, object]) -> dict[str, object]:
        try:
            return self._other_host(request) or await self._answer(request)
        except VirtksmError as error:
            return failure(error.message, error.exit_code, error.remedy)

    async def _answer(self, request: Mapping[str, object]) -> dict[str, object]:
        match request.get("op"):
            case "retune":
                return await self._pass(Trigger.RETUNE, dry_run=request.get("dry_run") is True)
            case "pause" | "resume" as op:
                return await self._switch(Trigger(op))
            case "reload":
                faults = await self.agent.reload()
                if faults is not None:
                    raise faults
                return {"ok": True, "policy": self.agent.configuration.in_force.policy}
            case "status":
                return {"ok": True, "status": self.read_facts().as_dict(datetime.now(UTC))}
            case "history":
                return await answer_history(self.agent.history_writer, request, lambda: self.read_facts().current)
            case "decisions":
                return await answer_decisions(self.agent.history_writer, request)
            case "trace":
                lines = self.agent.listeners.trace.answer(request, now_s=time.monotonic(), now=datetime.now(UTC))
                return {"ok": True, "trace": lines}
            case str(other):
                raise BadRequest(f"unknown op {other[:MAX_SHOWN]!r}")
            case _:
                raise BadRequest("op is missing, or no text")

    def _other_host(self, request: Mapping[str, object]) -> dict[str, object] | None:
        """Return the answer to a request that means another host; one that names none means this one."""
        if "uri" not in request or request.get("op") not in OF_ONE_HOST:
            return None
        known = self.agent.connection.known_uri
        return None if request["uri"] in (self.agent.connection.uri, known) else {"ok": False, "other_uri": known}

    async def _pass(self, trigger: Trigger, *, dry_run: bool = False) -> dict[str, object]:
        return {
            "ok": True,
            "pass": (await self.agent.passes.ask(trigger, dry_run=dry_run)).as_dict(with_thresholds=True),
        }

    async def _switch(self, trigger: Trigger) -> dict[str, object]:
        """Turn the switch, whether libvirt answers or not, and then run a pass."""
        uri = self.agent.connection.known_uri
        if is_alias(uri):
            error = LibvirtUnreachable(self.agent.reporter.why_unlinked())
            return failure(error.message, error.exit_code, error.remedy)
        switch = self.make_switch(uri, self.agent.configuration.in_force)
        change = switch.turn_off if trigger is Trigger.PAUSE else switch.turn_on
        await self.switch_calls.run(f"switch {trigger.value}", change)
        self.agent.reporter.switched(trigger)
        try:
            return await self._pass(trigger)
        except VirtksmError as error:
            done = "paused" if trigger is Trigger.PAUSE else "resumed"
            return failure(f"{done}, but no pass was possible yet: {error.message}", error.exit_code, error.remedy)


async def answer_history(
    history_writer: HistoryWriter,
    request: Mapping[str, object],
    read_current: Callable[[], CurrentKsm | None] = lambda: None,
) -> dict[str, object]:
    """Answer with samples and events of the last `seconds`, a day by default; raises BadRequest, StateUnusable."""
    since_s = history_writer.now_s() - _number(request, "seconds", KEEP_S, MAX_REAL)
    points = int(_number(request, "points", MAX_POINTS, MAX_POINTS))
    found = await history_writer.samples(since_s)
    events: Sequence[GuestEvent] = await history_writer.events(since_s, MAX_ANSWERED_EVENTS)
    now_s = history_writer.now_s()  # not before: the disk may take seconds, and passes and events go on meanwhile
    samples = thin(found, points, until_s=now_s)
    events = _last_that_fit(events, EVENTS_BYTES)
    history: dict[str, object] = {"now_s": now_s, **as_table(samples, events)}
    if "width_s" in request:
        current = read_current()
        saved_kib, cpu_s = (None, None) if current is None else (current.saved_kib, current.ksm.ksmd_cpu_seconds)
        now = Point(at_s=now_s, saved_kib=saved_kib, ksmd_cpu_seconds=cpu_s)
        history["curves"] = as_curves(samples, now, _number(request, "width_s", SAMPLE_S, KEEP_S))
    return {"ok": True, "history": history}


async def answer_decisions(history_writer: HistoryWriter, request: Mapping[str, object]) -> dict[str, object]:
    """Answer with the lines of the `last` decisions, ten by default; raises BadRequest, StateUnusable."""
    last = int(_number(request, "last", LAST_DECISIONS, MAX_ANSWERED_DECISIONS))
    lines = _last_that_fit(await history_writer.decisions(last), DECISIONS_BYTES)
    return {"ok": True, "decisions": list(lines)}


def _number(request: Mapping[str, object], name: str, default: float, maximum: float) -> float:
    value = request.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise BadRequest(f"{name} must be a number from 1 to {maximum:.0f}")
    return value


def _last_that_fit(values: Sequence[Value], max_bytes: int) -> Sequence[Value]:
    """Return as many of the last values as fit into `max_bytes`."""
    for number, value in enumerate(reversed(values)):
        max_bytes -= len(json.dumps(value))
        if max_bytes < 0:
            return values[len(values) - number :]
    return values
