"""`virtksm status`: a host's KSM, what it does and why, also while libvirt does not answer; --watch repaints it.

Asks only the agent. Root and the agent's own user ask at the control socket; the members of the configuration's
`status_group` at the status socket. Without an agent for the host, and for a user who may not ask, it reads the
host itself, read-only (`status_alone`), and says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from virtksm.cli.answers import STATUS
from virtksm.cli.ask_agent import MayNotAsk, ask_serving, take_answer
from virtksm.cli.connection import config_or_defaults, requested_uri
from virtksm.cli.history import read_history
from virtksm.cli.layout import Row, print_result
from virtksm.cli.status_text import choose_marks, status_rows
from virtksm.cli.timespan import add_watch_option
from virtksm.errors import ExitCode, VirtksmError
from virtksm.history.curves import Point, core_share, saved_levels
from virtksm.history.samples import Sample
from virtksm.values import dump

if TYPE_CHECKING:  # it imports libvirt, which an agent's status needs not
    from virtksm.cli.status_alone import Alone

STEP_S, STEPS = 60.0, 60
SEEN_S = 7200.0
"""How far back is asked for: the curve begins with the last sample before it."""
POINTS = 240
EVENTS = 5
MAX_OWN_POINTS = 1_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="show settings, rule and last pass, too")
    add_watch_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print the status; returns the exit code, FAILED where no agent is known to serve the host.

    Raises VirtksmError if an agent does not answer, and if the host cannot be read.
    """
    view, marks = View(options), choose_marks(sys.stdout.encoding, os.environ)

    def read() -> tuple[dict[str, Any], Iterator[Row]]:
        status = view.read()
        return status, status_rows(status, marks=marks, verbose=options.verbose)

    if options.watch is not None:
        from virtksm.cli.terminal import watch

        return watch(options, "virtksm status", read)
    status, rows = read()
    print_result(options, status, rows)
    return ExitCode.DONE if status["agent"] else ExitCode.FAILED


class View:
    """Reads the status, and keeps its own samples where no history has them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._alone: Alone | None = None
        self._seen: list[Point] = []

    def read(self) -> dict[str, Any]:
        try:
            answer = ask_serving(self._options, {"op": "status"})
        except MayNotAsk:
            status = {**self._read_alone(), "agent": None}
        else:
            status = {**take_answer(answer, "status", STATUS), "agent": True} if answer else self._read_alone()
        return {**status, **self._history_fields(status["now"] or {})}

    def _read_alone(self) -> dict[str, Any]:
        if self._alone is None:
            from virtksm.cli.status_alone import Alone

            config, _ = config_or_defaults(self._options.config)
            self._alone = Alone(requested_uri(self._options.connect), config, self._options.paths)
        return self._alone.read()

    def _history_fields(self, now: dict[str, Any]) -> dict[str, Any]:
        events, error, now_s = [], None, time.time()
        points: list[Point | Sample] = []
        try:
            history = read_history(self._options, seconds=SEEN_S, points=POINTS)
        except VirtksmError as failed:  # what is not for this user is no fault
            is_denied = isinstance(failed, MayNotAsk) or isinstance(failed.__cause__, PermissionError)
            error = None if is_denied else str(failed)
        else:
            events, points, now_s = list(history.events[-EVENTS:]), [*history.samples], history.now_s
        zero_pages = now.get("ksm_zero_pages")
        seen = Point(
            at_s=now_s,
            saved_kib=now.get("saved_kib"),
            ksmd_cpu_seconds=now.get("ksmd_cpu_seconds"),
            zero_kib=None if zero_pages is None else zero_pages * now["page_kib"],
            freed_kib=now.get("freed_kib"),
        )
        points = sorted((*points, *self._seen), key=lambda one: one.at_s)
        self._seen = [*self._seen[1 - MAX_OWN_POINTS :], seen]
        return {
            "ksmd": {"cpu_seconds": seen.ksmd_cpu_seconds, **core_share(points, seen)},
            "saved_hour": {
                "step_s": STEP_S,
                **{
                    name: saved_levels([*points, seen], until_s=now_s, step_s=STEP_S, steps=STEPS, name=name)
                    for name in ("saved_kib", "zero_kib", "freed_kib")
                },
            },
            "events": dump(events),
            "history_error": error,
        }
