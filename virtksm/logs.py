"""Logging for the long-running commands: structlog, one event a line, on standard error.

`console` is for people, `json` for collectors, `journal` for systemd: a priority prefix `<N>` (sd-daemon(3)) and
key=value pairs. `auto` picks console on a terminal, journal where JOURNAL_STREAM is set, json otherwise. Imported only
by commands that log; the one-shot does not. All else takes structlog from here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

from virtksm.printable import printable

# Where rich is installed, structlog imports it for tracebacks in colour: 6 MiB and tens of ms that nobody has use for.
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

Processor = Callable[[Any, str, MutableMapping[str, Any]], Any]


def choose_format(log_format: str, stream: TextIO, environ: Mapping[str, str] = os.environ) -> str:
    """Return console, json or journal for `log_format`, resolving auto."""
    if log_format != "auto":
        return log_format
    if "JOURNAL_STREAM" in environ:
        return "journal"
    return "console" if stream.isatty() else "json"


def configure(
    log_level: str, log_format: str, *, stream: TextIO | None = None, renderers: list[Processor] | None = None
) -> None:
    """Configure structlog for the process; `renderers` replaces the output's last steps (the demo's live view)."""
    stream = stream or sys.stderr
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(renderers or _renderers(choose_format(log_format, stream), stream)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log_level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def _renderers(log_format: str, stream: TextIO) -> list[Processor]:
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
