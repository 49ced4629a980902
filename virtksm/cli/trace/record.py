"""`virtksm trace record`: writes what the agent's policy is given, pass after pass, to a file for `replay`.

Asks the agent once a second for new lines, and writes them once they are known to be a trace's. An agent that has ended
is waited for. The file and the summary at the end say how many passes were missed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from virtksm.cli.answers import take
from virtksm.cli.ask_agent import ask_serving, understand
from virtksm.cli.layout import print_result
from virtksm.cli.progress import Progress
from virtksm.cli.timespan import YEAR_S, timespan
from virtksm.errors import START_AGENT, VirtksmError
from virtksm.store.trace import append_lines, create_trace
from virtksm.text import format_kib, printable
from virtksm.trace import End, Gap, Header, Line, Pass
from virtksm.trace.anonymise import Anonymiser
from virtksm.trace.text import dump_line, parse_line

ASK_EVERY_S = 1.0
ENDS_WITHIN_S = 2.0
"""How long the agent may go on sending passes when the recording is to end."""
MAX_CHARACTERS = 1 << 32
"""Longest recording: an agent in an attacker's hands fills no more of root's disk."""
MAX_SESSION = 64
"""Characters of a session's name, which every further question repeats."""
TRACE = {"session": str, "header": str | None, "lines": [str], "missed": int, "next": int, "more": bool}
ENDED_BY = (signal.SIGINT, signal.SIGTERM)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a new file; it names guests, so only its owner may read it")
    parser.add_argument(
        "--for", dest="seconds", metavar="TIME", type=timespan(0, YEAR_S), help="end after so long: 90s, 30m, 24h"
    )
    parser.add_argument("--anonymous", action="store_true", help="number the guests instead of naming them")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(options: argparse.Namespace) -> None:
    """Record until the time is over, SIGINT or SIGTERM.

    Raises VirtksmError if there is no agent, if this user may not ask it, or if FILE cannot be written.
    """
    recorder = Recorder(lambda request: ask_serving(options, request), is_anonymous=options.anonymous)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDED_BY)  # they are waited for between two questions
    lines = recorder.ask()
    if recorder.is_away:
        raise VirtksmError(f"no agent runs with {options.runtime_dir}", remedy=START_AGENT)
    ends_s = float("inf") if options.seconds is None else time.monotonic() + options.seconds
    with create_trace(options.file, replaces=options.force) as file, Progress(is_wanted=not options.json) as progress:
        append_lines(file, options.file, lines)
        while not recorder.is_full:
            size = format_kib(file.tell() / 1024)
            progress.show(f"recording to {options.file}, Ctrl-C ends: {recorder.so_far}, {size}")
            if not _wait(recorder, ends_s):
                break
            progress.clear()
            append_lines(file, options.file, recorder.ask())
        append_lines(file, options.file, recorder.end(time.time()))
    if recorder.session is None:
        raise VirtksmError(f"{options.file} is empty: the agent has made no pass", remedy="virtksm status")
    if recorder.is_full:
        print(f"virtksm: {printable(options.file)} is full, so the recording has ended", file=sys.stderr)
    values = {"file": options.file, "passes": recorder.passes, "missed": recorder.missed}
    text = f"{recorder.passes} passes to {options.file}, {recorder.missed} missed"
    print_result(options, values, [("", "Recorded", text)])


def _wait(recorder: Recorder, ends_s: float) -> bool:
    """Wait until the agent is to be asked again; return False if the recording is over."""
    left_s = min(ASK_EVERY_S, ends_s - time.monotonic())
    return left_s >= 0.0 and signal.sigtimedwait(ENDED_BY, 0.0 if recorder.has_more else left_s) is None


class Recorder:
    """What one recording has got so far; `ask` sends a request to the agent, and gives None where none runs."""

    def __init__(
        self,
        send: Callable[[dict[str, object]], dict[str, object] | None],
        *,
        is_anonymous: bool = False,
        max_characters: int = MAX_CHARACTERS,
        ends_within_s: float = ENDS_WITHIN_S,
    ) -> None:
        self._send = send
        self._anonymous = Anonymiser() if is_anonymous else None
        self._left = max_characters
        self._ends_within_s = ends_within_s
        self.session: object = None
        self._next: object = None
        self.passes = 0
        self.missed = 0
        self.has_more = False
        self.is_away = False

    def ask(self) -> list[str]:
        """Return the lines that have come since; raises VirtksmError, but for an agent that is away for a while."""
        answer = self._answer()
        if answer is None:
            self.has_more = False
            return []
        trace, new = understand(answer, "trace", self._take)
        is_another = trace["header"] is not None and self.session is not None
        if is_another or trace["missed"]:
            new = [dump_line(Gap(missed=None if is_another else trace["missed"])), *new]
        if trace["header"] is not None or self.session == trace["session"]:  # else it is new, and has made no pass yet
            self.session, self._next = trace["session"], trace["next"]
        self.passes += len(trace["lines"])
        self.missed += trace["missed"]
        self._left -= sum(map(len, new))
        self.has_more = trace["more"] and not self.is_full
        return new

    def _take(self, answer: object) -> tuple[dict[str, Any], list[str]]:
        """Return the agent's answer, and its lines as they are to be written; raises ValueError."""
        trace = take(answer, TRACE, "trace")
        if trace["missed"] < 0 or len(trace["session"]) > MAX_SESSION:
            raise ValueError("its session, or how many passes it has missed, is none")
        lines = [] if trace["header"] is None else [self._take_line(trace["header"], Header)]
        return trace, lines + [self._take_line(line, Pass) for line in trace["lines"]]

    def _take_line(self, text: str, kind: type[Line]) -> str:
        if not (text.isascii() and text.isprintable()):  # as dump_line writes it
            raise ValueError("a line is none")
        line = parse_line(text)
        if not isinstance(line, kind):
            raise ValueError(f"a line is no {kind.__name__}")
        return text if self._anonymous is None else dump_line(self._anonymous.strip(line))

    @property
    def so_far(self) -> str:
        """The passes in words, and whether the agent is waited for."""
        return f"{self.passes} passes{', waiting for the agent' if self.is_away else ''}"

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be written."""
        return self._left <= 0

    def end(self, at_s: float) -> list[str]:
        """Return the last lines of a recording that is ended in order."""
        give_up_s = time.monotonic() + self._ends_within_s
        lines = self.ask()
        while self.has_more and time.monotonic() < give_up_s:
            lines += self.ask()
        if self.session is None:
            return []
        return [*lines, dump_line(End(at_s=round(at_s, 3), passes=self.passes, missed=self.missed))]

    def _answer(self) -> dict[str, object] | None:
        """Return the agent's answer, None while it is away; raises VirtksmError if it never was there."""
        request = {"op": "trace", "session": self.session, "since": self._next}
        try:
            answer = self._send(request)
        except VirtksmError as error:
            if self.session is None:
                raise
            answer, why = None, str(error)
        else:
            why = "it has ended"
        if answer is None and self.session is not None and not self.is_away:
            print(f"virtksm: waiting for the agent: {printable(why)}", file=sys.stderr)
        self.is_away = answer is None
        return answer
