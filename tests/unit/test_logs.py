"""How log events look: for people, for collectors, for the journal; a guest's name is data in all of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from virtksm.logs import choose_format, configure

REPO = Path(__file__).resolve().parents[2]
EVIL = "guest\n<0>forged level=error\x1b[31m\u202e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def said(log_format: str, level: str = "info", *, least: str = "info", **fields: object) -> str:
    stream = io.StringIO()
    configure(least, log_format, stream=stream)
    getattr(structlog.get_logger(), level)("pass_completed", **fields)
    return stream.getvalue()


def test_rich_is_not_imported_where_it_is_installed_and_stays_importable(tmp_path: Path) -> None:
    (tmp_path / "rich.py").touch()
    asked = "import sys, virtksm.logs; before = 'rich' in sys.modules; import rich; print(before, rich.__file__)"
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = subprocess.run([sys.executable, "-c", asked], env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"False {tmp_path / 'rich.py'}\n", "")


@pytest.mark.parametrize(
    ("wanted", "stream", "environ", "chosen"),
    [
        ("auto", Terminal(), {}, "console"),
        ("auto", io.StringIO(), {}, "json"),
        ("auto", io.StringIO(), {"JOURNAL_STREAM": "8:1"}, "journal"),
        ("json", Terminal(), {"JOURNAL_STREAM": "8:1"}, "json"),
        ("console", io.StringIO(), {}, "console"),
    ],
)
def test_the_format_follows_from_where_the_log_goes(
    wanted: str, stream: io.StringIO, environ: dict[str, str], chosen: str
) -> None:
    assert choose_format(wanted, stream, environ) == chosen


def test_json_is_one_object_a_line_with_level_and_time() -> None:
    line = said("json", guest=EVIL, sensed={"guests": 1})
    assert line.count("\n") == 1
    event = json.loads(line)
    assert (event["event"], event["level"], event["guest"]) == ("pass_completed", "info", EVIL)
    assert event["sensed"] == {"guests": 1}
    assert event["timestamp"].endswith("Z")


@pytest.mark.parametrize(("level", "prefix"), [("info", "<6>"), ("warning", "<4>"), ("error", "<3>")])
def test_journal_lines_begin_with_their_priority(level: str, prefix: str) -> None:
    line = said("journal", level, trigger="started")
    assert line == f'{prefix}pass_completed trigger="started"\n'


@pytest.mark.parametrize("log_format", ["console", "journal"])
def test_a_guests_name_cannot_forge_lines_or_control_the_terminal(log_format: str) -> None:
    line = said(log_format, guest=EVIL)
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    assert "forged" in line


def test_the_console_names_event_and_fields() -> None:
    line = said("console", trigger="started")
    assert "pass_completed" in line
    assert "trigger=started" in line
    assert "\x1b" not in line, "no colours where it is no terminal"


@pytest.mark.parametrize(("least", "heard"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_what_is_below_the_least_level_is_not_said(least: str, heard: int) -> None:
    levels = ("debug", "info", "warning")
    assert sum(bool(said("json", level, least=least)) for level in levels) == heard
