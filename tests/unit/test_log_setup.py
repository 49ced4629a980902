"""How log events look: for people, for collectors, for the journal; a guest's name is data in all of them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from virtksm.log_setup import LineQueue, choose_format, configure

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
    asked = "import sys, virtksm.log_setup; before = 'rich' in sys.modules; import rich; print(before, rich.__file__)"
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


@pytest.mark.parametrize(("level", "prefix"), [("info", "<6>"), ("error", "<3>")])
def test_journal_lines_begin_with_their_priority(level: str, prefix: str) -> None:
    line = said("journal", level, trigger="started")
    assert line == f'{prefix}pass_completed trigger="started"\n'


@pytest.mark.parametrize("log_format", ["console", "journal"])
def test_a_guests_name_cannot_forge_lines_or_control_the_terminal(log_format: str) -> None:
    line = said(log_format, guest=EVIL)
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable(), "and no colours where it is no terminal"
    assert "pass_completed" in line
    assert "forged" in line


@pytest.mark.parametrize(("least", "heard"), [("debug", 3), ("warning", 1)])
def test_what_is_below_the_least_level_is_not_said(least: str, heard: int) -> None:
    levels = ("debug", "info", "warning")
    assert sum(bool(said("json", level, least=least)) for level in levels) == heard


TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
PIPE = 65_536
"""What a pipe takes that nobody reads."""


@pytest.fixture
def journal() -> Iterator[tuple[TextIO, TextIO]]:
    """Lend both ends of a pipe, as a journal's: for who reads, and for who writes."""
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as reader, os.fdopen(writing, "w", encoding="utf-8") as writer:
        yield reader, writer


def say(number: int) -> None:
    structlog.get_logger().info("pass_completed", number=number, much="x" * 1000)


def test_a_journal_that_hangs_delays_nobody_and_what_found_no_room_is_counted(journal: tuple[TextIO, TextIO]) -> None:
    reader, writer = journal
    lines = LineQueue(writer, max_waiting=PIPE)
    configure("info", "json", stream=lines)
    sent = 4 * PIPE // 1000
    for number in range(sent):
        say(number)
    lines.close(0.0)  # nobody reads: it ends all the same
    told = (json.loads(line) for line in reader)
    read: list[int] = []
    dropped = 0
    while len(read) + dropped < sent:
        line = next(told)
        if line["event"] == "log_lines_dropped":
            dropped += line["lines"]
        else:
            read.append(line["number"])
    assert dropped > 0
    assert read == sorted(read), "in their order"
    say(-1)
    assert next(told)["number"] == -1, "and writing goes on"


def test_the_last_lines_before_the_end_are_written_where_somebody_reads(journal: tuple[TextIO, TextIO]) -> None:
    reader, writer = journal
    read: list[str] = []
    reading = threading.Thread(target=lambda: read.extend(reader.readline() for _ in range(300)))
    reading.start()
    lines = LineQueue(writer)
    configure("info", "json", stream=lines)
    for number in range(300):
        say(number)
    lines.close(30.0)
    reading.join(30.0)
    assert [json.loads(line)["number"] for line in read] == list(range(300))


def test_a_journal_that_has_gone_ends_nothing(journal: tuple[TextIO, TextIO]) -> None:
    reader, writer = journal
    reader.close()
    lines = LineQueue(writer)
    lines.write("line\n")
    lines.close(30.0)


def test_a_descriptor_that_does_not_wait_loses_no_line(journal: tuple[TextIO, TextIO]) -> None:
    reader, writer = journal
    os.set_blocking(writer.fileno(), False)
    lines = LineQueue(writer)
    configure("info", "json", stream=lines)
    for number in range(200):
        say(number)
    assert [json.loads(reader.readline())["number"] for _ in range(200)] == list(range(200))


@pytest.mark.parametrize("log_format", ["console", "json", "journal"])
def test_through_the_queue_lines_look_as_without_it(journal: tuple[TextIO, TextIO], log_format: str) -> None:
    reader, writer = journal
    lines = LineQueue(writer)
    configure("info", log_format, stream=lines)
    structlog.get_logger().info("pass_completed", guest=EVIL)
    line, direct = reader.readline(), said(log_format, guest=EVIL)
    assert TIME.sub("", line) == TIME.sub("", direct)
    lines.write("lone \udcff\n")
    assert reader.readline() == "lone \\udcff\n", "a text that is no UTF-8 is a line all the same"
