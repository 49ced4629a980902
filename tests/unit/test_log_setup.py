"""How log events look: for people, for collectors, for the journal; a guest's name is data in all of them."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from tests.lab.full_disk import no_more_descriptors
from tests.lab.hang import HANG_S
from virtksm.log_setup import MAX_WAITING, LineQueue, choose_format, configure

REPO = Path(__file__).resolve().parents[2]
EVIL = "guest\n<0>forged level=error\x1b[31m\u202e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(log_format: str, level: str = "info", *, least: str = "info", **fields: object) -> str:
    stream = io.StringIO()
    configure(least, log_format, stream=stream)
    getattr(structlog.get_logger(), level)("pass_completed", **fields)
    return stream.getvalue()


@contextmanager
def line_queue(target: TextIO, *, max_waiting: int = MAX_WAITING, journal: str = "/nowhere") -> Iterator[LineQueue]:
    """Make a queue; its lines must be read, or their reader be gone, at the end."""
    lines = LineQueue(target, max_waiting=max_waiting, journal=journal)
    yield lines
    lines.close(HANG_S)


@contextmanager
def heard_by_journald(folder: Path) -> Iterator[socket.socket]:
    """Stand in for journald's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(folder / "journald"))
        yield journald


def test_rich_is_not_imported_where_it_is_installed_and_stays_importable(tmp_path: Path) -> None:
    (tmp_path / "rich.py").touch()
    asked = "import sys, virtksm.log_setup; before = 'rich' in sys.modules; import rich; print(before, rich.__file__)"
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"}
    done = subprocess.run([sys.executable, "-c", asked], env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"False {tmp_path / 'rich.py'}\n", "")


def test_the_format_follows_from_where_the_log_goes(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w", encoding="utf-8") as file,
        (tmp_path / "other").open("w", encoding="utf-8") as other,
    ):
        found = os.fstat(file.fileno())
        journal = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert choose_format("auto", file, journal) == "journal"
        assert choose_format("auto", other, journal) == "json", "systemd's, of a program that wrote elsewhere"
        assert choose_format("auto", Terminal(), {}) == "console"
        assert choose_format("auto", file, {}) == "json"
        assert choose_format("console", file, journal) == "console"


def test_json_is_one_object_a_line_with_level_and_time() -> None:
    line = said("json", guest=EVIL, sensed={"guests": 1})
    assert line.count("\n") == 1
    event = json.loads(line)
    assert (event["event"], event["level"], event["guest"]) == ("pass_completed", "info", EVIL)
    assert event["sensed"] == {"guests": 1}
    assert event["timestamp"].endswith("Z")


def test_fields_have_the_units_of_json_output() -> None:
    event = json.loads(said("json", saved_kib=3, decision={"numbers": {"new_kib": 1}}, event_to_applied_ms=1500))
    assert (event["saved_bytes"], event["decision"]["numbers"]["new_bytes"], event["event_to_applied_s"]) == (
        3072,
        1024,
        1.5,
    )


@pytest.mark.parametrize(("level", "prefix"), [("info", "<6>"), ("error", "<3>")])
def test_without_journald_there_is_the_sentence_behind_its_priority(level: str, prefix: str) -> None:
    assert said("journal", level, trigger="started", message="web-4 started") == f"{prefix}web-4 started\n"
    assert said("journal", level, trigger="started") == f"{prefix}pass_completed\n", (
        "its name, where it has no sentence"
    )


def test_journald_gets_the_sentence_and_the_fields_along(tmp_path: Path) -> None:
    with (
        heard_by_journald(tmp_path) as journald,
        (tmp_path / "log").open("w", encoding="utf-8") as stream,
        line_queue(stream, journal=str(tmp_path / "journald")) as lines,
    ):
        configure("info", "journal", stream=lines)
        structlog.get_logger().warning("pass_completed", message=f"{EVIL} started", guest=EVIL, sensed={"saved_kib": 1})
        entry = journald.recv(1 << 16).decode()
        assert entry.endswith("\n"), "journald ignores a last line without its end"
        fields = dict(line.split("=", 1) for line in entry.splitlines())
        assert fields == {
            "MESSAGE": fields["VIRTKSM_GUEST"] + " started",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "virtksm",
            "VIRTKSM_EVENT": "pass_completed",
            "VIRTKSM_GUEST": fields["VIRTKSM_GUEST"],
            "VIRTKSM_SENSED": '{"saved_bytes": 1024}',
        }
        assert "forged" in fields["MESSAGE"]
        structlog.get_logger().info("pass_completed", message="short", names=["x" * 100] * 1000, much="x" * (1 << 17))
        short = journald.recv(1 << 18).decode().splitlines()
        assert short[0] == "MESSAGE=short"
        assert short[3:] == ["VIRTKSM_EVENT=pass_completed"], "fields that find no room are left out"
        structlog.get_logger().info("pass_completed", message="x" * (1 << 17))
        assert journald.recv(1 << 18).endswith(b"xxx\n")
        assert Path(stream.name).read_text(encoding="utf-8") == ""


def test_a_journald_that_hangs_or_goes_delays_nobody(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w", encoding="utf-8") as stream,
        line_queue(stream, max_waiting=PIPE, journal=str(tmp_path / "journald")) as lines,
    ):
        with heard_by_journald(tmp_path) as journald:
            configure("info", "journal", stream=lines)
            sent = 0
            while not lines.dropped:  # more than the socket and the queue take
                say(sent)
                sent += 1
            read = dropped = 0
            while read + dropped < sent:
                entry = journald.recv(1 << 16).decode()
                if found := re.search(r"^VIRTKSM_LINES=(\d+)$", entry, re.MULTILINE):
                    dropped += int(found[1])
                else:
                    read += 1
        say(-1)


def test_without_a_descriptor_to_spare_an_entry_is_lost_and_not_the_log(tmp_path: Path) -> None:
    with (
        heard_by_journald(tmp_path) as journald,
        (tmp_path / "log").open("w", encoding="utf-8") as stream,
        line_queue(stream, journal=str(tmp_path / "journald")) as lines,
    ):
        configure("info", "journal", stream=lines)
        with no_more_descriptors():
            say(1)
            while lines._waiting:
                pass
        say(2)
        assert b"VIRTKSM_NUMBER=2\n" in journald.recv(1 << 16)


def test_what_was_foreseen_by_nobody_costs_a_line_and_not_the_log(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w", encoding="utf-8") as stream,
        line_queue(stream, journal="\ud800") as lines,  # no name of a file: an error that is no OSError
    ):
        configure("info", "json", stream=lines)
        lines.is_for_entries = True
        lines.write("MESSAGE=one")
        lines.is_for_entries = False
        say(2)
        lines.close(HANG_S)
        written = [json.loads(line) for line in Path(stream.name).read_text(encoding="utf-8").splitlines()]
    assert [(one["event"], one.get("number", one.get("lines"))) for one in written] == [
        ("pass_completed", 2),
        ("log_lines_dropped", 1),
    ]


def test_a_terminal_has_the_sentence_and_at_level_debug_the_fields() -> None:
    assert said("console", message="web-4 started", guest="web-4").rstrip().endswith("web-4 started")
    assert "guest=web-4" in said("console", least="debug", message="web-4 started", guest="web-4")


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
    with line_queue(writer, max_waiting=PIPE) as lines:
        configure("info", "json", stream=lines)
        sent = 4 * PIPE // 1000
        for number in range(sent):
            say(number)
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
        for number in range(sent):
            say(number)
        lines.close(0.0)  # nobody reads: it ends all the same
        reader.close()


def test_the_last_lines_before_the_end_are_written_where_somebody_reads(journal: tuple[TextIO, TextIO]) -> None:
    reader, writer = journal
    read: list[str] = []
    reading = threading.Thread(target=lambda: read.extend(reader.readline() for _ in range(300)))
    reading.start()
    with line_queue(writer) as lines:
        configure("info", "json", stream=lines)
        for number in range(300):
            say(number)
    reading.join()
    assert [json.loads(line)["number"] for line in read] == list(range(300))


def test_a_journal_that_has_gone_ends_nothing(journal: tuple[TextIO, TextIO]) -> None:
    reader, writer = journal
    reader.close()
    with line_queue(writer) as lines:
        lines.write("line\n")


def test_a_descriptor_that_does_not_wait_loses_no_line(journal: tuple[TextIO, TextIO]) -> None:
    reader, writer = journal
    os.set_blocking(writer.fileno(), False)
    with line_queue(writer) as lines:
        configure("info", "json", stream=lines)
        for number in range(200):
            say(number)
        assert [json.loads(reader.readline())["number"] for _ in range(200)] == list(range(200))


@pytest.mark.parametrize("log_format", ["console", "json", "journal"])
def test_through_the_queue_lines_look_as_without_it(journal: tuple[TextIO, TextIO], log_format: str) -> None:
    reader, writer = journal
    with line_queue(writer) as lines:
        configure("info", log_format, stream=lines)
        structlog.get_logger().info("pass_completed", message=EVIL, guest=EVIL)
        line, direct = reader.readline(), said(log_format, message=EVIL, guest=EVIL)
        assert TIME.sub("", line) == TIME.sub("", direct)
        lines.write("lone \udcff\n")
        assert reader.readline() == "lone \\udcff\n", "a text that is no UTF-8 is a line all the same"
