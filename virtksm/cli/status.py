"""`virtksm status`: a host's KSM, what it does and why, also while libvirt does not answer; --watch repaints it.

Asks only the agent. Root and the agent's own user ask at the control socket; the members of the configuration's
`status_group` at the status socket. Without an agent for the host it reads the host itself, read-only
(`status_alone`), and says so.
"""

from __future__ import annotations

import argparse
import os
import sys

from virtksm.cli.answers import STATUS
from virtksm.cli.ask_agent import ask_serving, take_answer
from virtksm.cli.connection import config_or_defaults, requested_uri
from virtksm.cli.timespan import DAY_S, timespan
from virtksm.errors import ExitCode, VirtksmError
from virtksm.paths import RuntimePaths
from virtksm.text import printable

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

    from virtksm.cli.status_alone import Alone
    from virtksm.cli.terminal import Line
    from virtksm.history.curves import Point

EVERY_S = 2.0
MIN_EVERY_S = 0.1
STEP_S, STEPS = 60.0, 60
SEEN_S = 7200.0
"""How far back is asked for: the curve begins with the last sample before it."""
POINTS = 240
EVENTS = 5
MAX_OWN_POINTS = 1_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--watch",
        metavar="TIME",
        nargs="?",
        type=timespan(MIN_EVERY_S, DAY_S),
        const=EVERY_S,
        help=f"show it again every so often (default: {EVERY_S:g} s), until q or Ctrl-C",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the status; returns the exit code, FAILED where no agent serves the host.

    Raises VirtksmError if an agent does not answer, or may not be asked, and if the host cannot be read.
    """
    view = View(options)
    if options.watch is not None:
        return _watch(view, options)
    status = view.read()
    _print(status, options)
    return ExitCode.DONE if status["agent"] else ExitCode.FAILED


class View:
    """Reads the status, and keeps its own samples where no history has them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._paths = RuntimePaths(options.runtime_dir, options.state_dir)
        self._alone: Alone | None = None
        self._seen: list[Point] = []

    def read(self) -> dict[str, Any]:
        """Return what `--json` prints; raises VirtksmError."""
        answer = ask_serving(self._paths, self._options.connect, {"op": "status"})
        status = self._read_alone() if answer is None else {**take_answer(answer, "status", STATUS), "agent": True}
        return {**status, **self._history_fields(status.get("now") or {})}

    def _read_alone(self) -> dict[str, Any]:
        if self._alone is None:
            from virtksm.cli.status_alone import Alone

            config, _ = config_or_defaults(self._options.config)
            self._alone = Alone(requested_uri(self._options.connect), config, self._paths)
        return self._alone.read()

    def _history_fields(self, now: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that need the history."""
        import time

        from virtksm.cli.history import read_history
        from virtksm.history.curves import Point, core_share, points_of, saved_levels
        from virtksm.history.samples import as_rows

        events, points, error, now_s = [], [], None, time.time()
        try:
            history = read_history(self._options, self._options.connect, seconds=SEEN_S, points=POINTS)
        except VirtksmError as failed:
            error = str(failed)
        else:
            events, points, now_s = list(history.events[-EVENTS:]), points_of(history.samples), history.now_s
        seen = Point(at_s=now_s, saved_kib=now.get("saved_kib"), cpu_seconds=now.get("ksmd_cpu_seconds"))
        points += self._seen
        share = core_share(points, seen)
        self._seen = [*self._seen[1 - MAX_OWN_POINTS :], seen]
        return {
            "ksmd": {
                "cpu_seconds": seen.cpu_seconds,
                "core_percent": None if share is None else round(share[0], 2),
                "over_s": None if share is None else round(share[1], 1),
            },
            "saved_hour": {
                "step_s": STEP_S,
                "saved_kib": saved_levels([*points, seen], until_s=now_s, step_s=STEP_S, steps=STEPS),
            },
            "events": as_rows(events),
            "history_error": error,
        }


def _print(status: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        from virtksm.json_output import to_json

        print(to_json(status), flush=True)
        return
    from virtksm.cli.terminal import may_colour, render

    print("\n".join(render(_lines(status), colour=may_colour(sys.stdout, os.environ))), flush=True)


def _lines(status: dict[str, Any]) -> list[Line]:
    from virtksm.cli.sparkline import choose_marks
    from virtksm.cli.status_text import status_lines

    return status_lines(status, marks=choose_marks(sys.stdout.encoding, os.environ))


def _watch(view: View, options: argparse.Namespace) -> int:
    from virtksm.cli.terminal import Screen, is_paintable, may_colour, watch

    if options.json or not is_paintable(sys.stdout, os.environ):
        return _keep_printing(view, options)

    def frame() -> list[Line]:
        import time

        title = f"virtksm status, every {options.watch:g} s, q ends {time.strftime('%H:%M:%S'):>12}"
        try:
            return [("dim", title), *_lines(view.read())]
        except VirtksmError as error:
            return [("dim", title), ("bad", printable(f"error     {error}"))]

    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    screen = Screen(sys.stdout.fileno(), keys, sys.stdout.encoding)
    return watch(screen, frame, options.watch, colour=may_colour(sys.stdout, os.environ))


def _keep_printing(view: View, options: argparse.Namespace) -> int:
    """Print one status after the other, as no terminal is there to repaint."""
    import time

    try:
        while True:
            began_s = time.monotonic()
            try:
                _print(view.read(), options)
            except VirtksmError as error:
                print(f"virtksm: {printable(str(error))}", file=sys.stderr, flush=True)
            if not options.json:
                print(flush=True)
            time.sleep(max(0.0, began_s + options.watch - time.monotonic()))
    except KeyboardInterrupt:
        return ExitCode.DONE
