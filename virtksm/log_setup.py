"""Logging for the long-running commands: structlog, one event a line, on standard error.

`console` is for people, `json` for collectors, `journal` for systemd: a priority prefix `<N>` (sd-daemon(3)) and
key=value pairs. `auto` picks console on a terminal, journal where JOURNAL_STREAM is set, json otherwise. Imported only
by commands that log; the one-shot does not. All other modules take structlog from here. The agent must not wait for
the log's reader, so it has a LineQueue before it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, TextIO

from virtksm.text import printable

# Where rich is installed, structlog imports it for tracebacks in colour: 6 MiB and tens of ms without a use.
_hides_rich = "rich" not in sys.modules
if _hides_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]  # which makes its import an ImportError
import structlog  # noqa: E402

if _hides_rich:
    del sys.modules["rich"]

get_logger = structlog.get_logger
DropEvent = structlog.DropEvent
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

MAX_WAITING = 1 << 20
"""Characters that wait for a reader of the log: some 700 passes."""
CLOSE_LIMIT_S = 2.0
"""How long an agent that ends waits for the reader of its last lines."""

Processor = Callable[[Any, str, MutableMapping[str, Any]], Any]


class Stream(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class LineQueue:
    """A stream whose writing never waits: a thread hands the lines over, as fast as they are read.

    Lines without room are dropped and counted, and `log_lines_dropped` reports it once there is room again. They go to
    the descriptor itself: a thread that hangs must hold no lock that the interpreter's end takes.
    """

    def __init__(self, target: TextIO, *, max_waiting: int = MAX_WAITING) -> None:
        self._is_terminal = target.isatty()
        self._descriptor = target.fileno()
        self._max_waiting = max_waiting
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._dropped = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._hand_over, name="log", daemon=True).start()

    def write(self, text: str) -> None:
        """Take one or more whole lines."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._waiting + len(line) > self._max_waiting:
                self._dropped += 1
                return
            self._lines.append(line)
            self._waiting += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Do nothing: a writer shall not wait."""

    def isatty(self) -> bool:
        return self._is_terminal

    def close(self, limit_s: float = CLOSE_LIMIT_S) -> None:
        """Wait until all lines are handed over, but not for long: a reader that hangs now may hang for ever."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, limit_s)

    def _hand_over(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                line = self._lines.popleft()
            _write_whole(self._descriptor, line)
            with self._changed:
                dropped = 0 if self._lines else self._dropped
                self._dropped -= dropped
            if dropped:
                get_logger().warning("log_lines_dropped", lines=dropped, remedy=UNREAD)
            with self._changed:
                self._waiting -= len(line)
                self._changed.notify_all()


def _write_whole(descriptor: int, line: bytes) -> None:
    while line:
        try:
            line = line[os.write(descriptor, line) :]
        except BlockingIOError:  # another process with this descriptor has made it non-blocking
            select.select([], [descriptor], [])
        except OSError:  # the reader is gone: there is no other place to report it
            return


UNREAD = "the log was not read for a while: see the journal (systemd-journald) and its disk"


def choose_format(log_format: str, stream: Stream, environ: Mapping[str, str] = os.environ) -> str:
    """Return console, json or journal for `log_format`, resolving auto."""
    if log_format != "auto":
        return log_format
    if "JOURNAL_STREAM" in environ:
        return "journal"
    return "console" if stream.isatty() else "json"


def configure(
    log_level: str, log_format: str, *, stream: Stream | None = None, renderers: list[Processor] | None = None
) -> None:
    """Configure structlog for the process; `renderers` replaces the output's last steps (the demo's live view)."""
    target: Any = stream or sys.stderr
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(renderers or _renderers(choose_format(log_format, target), target)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log_level]),
        logger_factory=structlog.WriteLoggerFactory(target),  # one write a line
        cache_logger_on_first_use=False,
    )


def _renderers(log_format: str, stream: Stream) -> list[Processor]:
    if log_format == "console":
        plain = not stream.isatty() or "NO_COLOR" in os.environ
        return [escape_controls, structlog.dev.ConsoleRenderer(colors=not plain)]
    if log_format == "journal":
        return [escape_controls, render_journal]
    return [structlog.processors.JSONRenderer()]


def escape_controls(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what is not printable in every text (a guest's name is not ours to trust).

    Texts within others' values are shown as literals, which has them escaped.
    """
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def render_journal(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """Render `<priority>event key=value ...`; the journal has the time itself."""
    priority = PRIORITIES[event.pop("level")]
    event.pop("timestamp", None)
    name = event.pop("event")
    pairs = " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in event.items())
    return f"<{priority}>{name} {pairs}".rstrip()
