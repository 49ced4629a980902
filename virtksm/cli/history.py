"""A host's history for commands: from the agent that serves the host, or from the file where no agent does.

The file is the agent's, 0600 in the state folder, and a minute behind it; root reads it while no agent runs.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from virtksm.cli.answers import take
from virtksm.cli.ask_agent import ask_serving, understand
from virtksm.cli.connection import Libvirt, requested_uri
from virtksm.history.samples import MAX_POINTS, GuestEvent, History, Sample, parse_events, parse_samples, thin
from virtksm.uri import is_alias

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from virtksm.trace import Pass


TABLE = {"columns": list, "rows": list}
HISTORY = {"now_s": int | float, "samples": TABLE, "events": TABLE}


class Excerpt(NamedTuple):
    """Samples and events, the oldest first, and the Unix time `now_s` by the clock that they were taken with."""

    now_s: float
    samples: tuple[Sample, ...]
    events: tuple[GuestEvent, ...]


def read_history(options: argparse.Namespace, *, seconds: float, points: int = MAX_POINTS) -> Excerpt:
    """Return the last `seconds` of the history of the connection that is named, else of the agent's, or the usual one.

    At most `points` samples. Raises VirtksmError.
    """
    answer = ask_serving(options, {"op": "history", "seconds": seconds, "points": points})
    if answer is not None:
        return understand(answer, "history", parse_history)
    import time

    history, now_s = _file(options), time.time()
    samples = thin(history.samples(now_s - seconds), points, until_s=now_s)
    return Excerpt(now_s=now_s, samples=samples, events=history.events(now_s - seconds))


def read_decisions(options: argparse.Namespace, last: int) -> tuple[Pass, ...]:
    """Return the summaries of the last decisions that were news, at most `last` (1 to 100); as `read_history`."""
    answer = ask_serving(options, {"op": "decisions", "last": last})
    return understand(answer or {"decisions": _file(options).decisions(last)}, "decisions", parse_decisions)


def parse_history(answer: object) -> Excerpt:
    """Take the agent's answer to `history`; raises ValueError."""
    values = take(answer, HISTORY, "history")
    samples, events = values["samples"], values["events"]
    return Excerpt(
        now_s=values["now_s"],
        samples=parse_samples(samples["columns"], samples["rows"]),
        events=parse_events(events["columns"], events["rows"]),
    )


def parse_decisions(lines: object) -> tuple[Pass, ...]:
    """Take lines of decisions, from the agent or the file; raises ValueError."""
    from virtksm.trace.text import parse_summary

    if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
        raise ValueError("they are no lines")
    return tuple(map(parse_summary, lines))


def _file(options: argparse.Namespace) -> History:
    from virtksm.config.load import read
    from virtksm.wiring import make_history

    named, config = requested_uri(options.connect), read(options.config)[0].config
    if is_alias(named):
        named = Libvirt(named, config.call_timeout_s).open(read_only=True).uri
    return make_history(named, config, options.paths)
