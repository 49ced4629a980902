"""Logging for the agent: structlog. An event has a name, fields, and a sentence for people (`message`).

`console` is the time, the level and the sentence, at level debug the fields, too. `json` is all of it, one object a
line. `journal` is for systemd-journald: the sentence is its message, and each field one of the entry's, VIRTKSM_EVENT
and so on, which `journalctl -o json` shows. `auto` picks journal where standard error is the journal's, console on a
terminal, else json. Imported only by commands that log; all other modules take structlog from here.

Entries go to journald by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), one datagram of KEY=value lines.
Values are printable, so none has a line end, and an entry is far shorter than a datagram may be: no more of the
protocol is needed. python3-systemd does the same through libsystemd; it would be a dependency that pip has to compile,
and it waits for a journal that hangs, so that the queue would be needed as well. Without journald's socket (a
container) the sentence goes to standard error behind its priority `<N>` (sd-daemon(3)).

The agent must not wait for the log's reader, so it has a LineQueue before it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

from virtksm.json_output import to_output
from virtksm.text import printable

# Wherever they are installed, structlog imports rich for tracebacks in colour (6 MiB and tens of ms), and, by asyncio,
# ssl (1.4 MiB). The agent has no use for either.
_hidden = {"rich", "ssl"} - sys.modules.keys()
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type]  # None makes their import an ImportError
import structlog  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]

get_logger = structlog.get_logger
DropEvent = structlog.DropEvent
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

JOURNAL_SOCKET = "/run/systemd/journal/socket"
MAX_ENTRY = 1 << 16
"""Bytes of an entry, which has some 3 KB; fields beyond are left out. A datagram takes 200 KB."""
MAX_WAITING = 1 << 20
"""Characters that wait for a reader of the log: some 700 passes."""
CLOSE_LIMIT_S = 2.0
"""How long an agent that ends waits for the reader of its last lines."""

Processor = Callable[[Any, str, MutableMapping[str, Any]], Any]


class LineQueue:
    """A stream whose writing never waits: a thread hands the lines over, as fast as they are read.

    Lines without room are dropped and counted, and `log_lines_dropped` reports it once there is room again. They go to
    the descriptor itself, and entries to the journal's socket: a thread that hangs must hold no lock that the
    interpreter's end takes.
    """

    def __init__(self, target: TextIO, *, max_waiting: int = MAX_WAITING, journal: str = JOURNAL_SOCKET) -> None:
        self._is_terminal = target.isatty()
        self._descriptor = target.fileno()
        self._max_waiting = max_waiting
        self.journal = journal
        self.is_for_entries = False
        """Whether what comes next are entries of the journal."""
        self._lines: deque[tuple[bytes, bool]] = deque()
        self._waiting = 0
        self._is_closed = False
        self.dropped = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._hand_over, name="log", daemon=True).start()

    def write(self, text: str) -> None:
        """Take one or more whole lines, or an entry of the journal."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._waiting + len(line) > self._max_waiting:
                self.dropped += 1
                return
            self._lines.append((line, self.is_for_entries))
            self._waiting += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Do nothing: a writer shall not wait."""

    def isatty(self) -> bool:
        return self._is_terminal

    def fileno(self) -> int:
        return self._descriptor

    def close(self, limit_s: float = CLOSE_LIMIT_S) -> None:
        """End once all lines are handed over. Wait for that, but not for long: a reader may hang for ever."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, limit_s)

    def _hand_over(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines) or self._is_closed)
                if not self._lines:
                    return
                line, is_entry = self._lines.popleft()
            try:
                self._hand_over_one(line, is_entry=is_entry)
            except Exception:  # noqa: BLE001  # the outermost layer of this thread; there is no other place to report it
                with self._changed:
                    self.dropped += 1
            with self._changed:
                self._waiting -= len(line)
                self._changed.notify_all()

    def _hand_over_one(self, line: bytes, *, is_entry: bool) -> None:
        if is_entry:
            _send_entry(self.journal, line)
        else:
            _write_whole(self._descriptor, line)
        with self._changed:
            dropped = 0 if self._lines else self.dropped
            self.dropped -= dropped
        if dropped:
            get_logger().warning(
                "log_lines_dropped", message=f"{dropped} lines are missing: {UNREAD}", lines=dropped, remedy=UNREAD
            )


Stream = TextIO | LineQueue
"""Where lines go."""


def _send_entry(journal: str, entry: bytes) -> None:
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # Whole lines alone: journald ignores a last one without its end.
        sender.sendto((entry[:MAX_ENTRY].rpartition(b"\n")[0] or entry[:MAX_ENTRY]) + b"\n", journal)


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
    """Return console, json or journal for `log_format`, resolving auto.

    systemd names the journal's stream in JOURNAL_STREAM, which programs inherit whose output goes elsewhere.
    """
    if log_format != "auto":
        return log_format
    if (journal := environ.get("JOURNAL_STREAM")) is not None:
        found = os.fstat(stream.fileno())
        if journal == f"{found.st_dev}:{found.st_ino}":
            return "journal"
    return "console" if stream.isatty() else "json"


def configure(
    log_level: str, log_format: str, *, stream: Stream | None = None, renderers: list[Processor] | None = None
) -> None:
    """Configure structlog for the process; `renderers` replaces the output's last steps (the demo's live view)."""
    target: Any = stream or sys.stderr
    chosen = choose_format(log_format, target)
    if isinstance(target, LineQueue):
        target.is_for_entries = chosen == "journal" and os.access(target.journal, os.F_OK)
        chosen = "entries" if target.is_for_entries else chosen
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(renderers or _renderers(chosen, target, is_debug=log_level == "debug")),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log_level]),
        logger_factory=structlog.WriteLoggerFactory(target),  # one write a line
        cache_logger_on_first_use=False,
    )


def _renderers(log_format: str, stream: Stream, *, is_debug: bool) -> list[Processor]:
    if log_format == "console":
        plain = not stream.isatty() or "NO_COLOR" in os.environ
        says = say_all if is_debug else say_sentence
        return [escape_controls, says, structlog.dev.ConsoleRenderer(colors=not plain)]
    if log_format == "entries":
        return [escape_controls, render_entry]
    if log_format == "journal":
        # Behind its priority, as sd-daemon(3) has it.
        return [escape_controls, lambda _, __, event: f"<{PRIORITIES[event['level']]}>{sentence_of(event)}"]
    return [lambda _, __, event: to_output(event), structlog.processors.JSONRenderer()]


def escape_controls(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what is not printable in every text (a guest's name is not ours to trust).

    Texts within others' values are shown as literals, which has them escaped.
    """
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def say_all(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put an event's sentence in place of its name, before its fields."""
    return {**{name: event[name] for name in event if name != "message"}, "event": sentence_of(event)}


def say_sentence(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Leave of an event its time, its level and its sentence, which stands in place of its name."""
    return {"timestamp": event["timestamp"], "level": event["level"], "event": sentence_of(event)}


def render_entry(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """Render an entry of the journal as KEY=value lines, the sentence first; the journal has the time itself."""
    apart = ("event", "level", "message", "timestamp")
    values = to_output({name: value for name, value in event.items() if name not in apart})
    entry = {
        "MESSAGE": sentence_of(event),
        "PRIORITY": PRIORITIES[event["level"]],
        "SYSLOG_IDENTIFIER": "virtksm",
        "VIRTKSM_EVENT": event["event"],
        **{f"VIRTKSM_{name.upper()}": value for name, value in values.items()},
    }
    texts = (value if isinstance(value, str) else json.dumps(value, default=str) for value in entry.values())
    return "\n".join(f"{name}={text}" for name, text in zip(entry, texts, strict=True))


def sentence_of(event: Mapping[str, Any]) -> str:
    """Return what an event says to people; its name does where it has no sentence."""
    return str(event.get("message", event["event"]))
