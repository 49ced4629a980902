"""What is remembered of a host, for whichever command shows it: asks the agent, and reads the file where none serves.

The file is the agent's, 0600 in the state folder, and a minute behind it; root reads it while no agent runs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from virtksm.cli.ask_agent import OF_ONE_VERSION, ask_serving, find_answer
from virtksm.cli.connection import Libvirt, requested_uri
from virtksm.codec import build
from virtksm.errors import VirtksmError
from virtksm.history.samples import MAX_POINTS, GuestEvent, History, Sample, Told, parse_events, parse_samples, thin
from virtksm.paths import RuntimePaths
from virtksm.uri import is_alias


@dataclass(frozen=True, slots=True, kw_only=True)
class Memories:
    """Samples and events, the oldest first, and the Unix time `now_s` of whoever told them."""

    now_s: float
    samples: tuple[Sample, ...]
    events: tuple[GuestEvent, ...]


def read_history(options: argparse.Namespace, uri: str | None, *, seconds: float, points: int = MAX_POINTS) -> Memories:
    """Return what is remembered of the last `seconds`, at most `points` samples.

    `options` are the command's, with the global ones; `uri` the connection asked for, None for the one of whichever
    agent runs, or the usual one. Raises VirtksmError.
    """
    answer = ask_serving(
        RuntimePaths(options.runtime_dir), uri, {"op": "history", "seconds": seconds, "points": points}
    )
    if answer is not None:
        return parse_memories(find_answer(answer, "history"))
    import time

    history, now_s = _kept(options, uri), time.time()
    samples = thin(history.samples(now_s - seconds), points, until_s=now_s)
    return Memories(now_s=now_s, samples=samples, events=history.events(now_s - seconds))


def read_decisions(options: argparse.Namespace, uri: str | None, last: int) -> tuple[Told, ...]:
    """Return the last decisions that were no routine, at most `last` (1 to 100); as `read_history`."""
    answer = ask_serving(RuntimePaths(options.runtime_dir), uri, {"op": "decisions", "last": last})
    if answer is None:
        return _kept(options, uri).decisions(last)
    return parse_decisions(find_answer(answer, "decisions"))


def parse_memories(told: object) -> Memories:
    """Take the agent's answer to `history`; raises VirtksmError."""
    try:
        match told:
            case {"now_s": int() | float() as now_s, "samples": dict() as samples, "events": dict() as events}:
                return Memories(
                    now_s=now_s,
                    samples=parse_samples(samples.get("columns"), samples.get("rows")),
                    events=parse_events(events.get("columns"), events.get("rows")),
                )
    except ValueError as error:
        raise VirtksmError(f"the agent's history cannot be understood: {error}", remedy=OF_ONE_VERSION) from error
    raise VirtksmError("the agent's history cannot be understood", remedy=OF_ONE_VERSION)


def parse_decisions(told: object) -> tuple[Told, ...]:
    """Take the agent's answer to `decisions`; raises VirtksmError."""
    try:
        if isinstance(told, list) and all(isinstance(one, dict) for one in told):
            return tuple(build(Told, {"at_s": one.get("at"), "report": one.get("pass")}) for one in told)
    except ValueError as error:
        raise VirtksmError(f"a decision of the agent's cannot be understood: {error}", remedy=OF_ONE_VERSION) from error
    raise VirtksmError("the agent's decisions cannot be understood", remedy=OF_ONE_VERSION)


def _kept(options: argparse.Namespace, uri: str | None) -> History:
    from virtksm.config.load import load_or_defaults
    from virtksm.wiring import make_history

    named, (config, _) = requested_uri(uri), load_or_defaults(options.config)
    if is_alias(named):
        named = Libvirt(config.call_timeout_s).open(named, read_only=True).uri
    return make_history(named, config, RuntimePaths(options.runtime_dir, options.state_dir))
