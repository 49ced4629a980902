"""Names of guests and other texts from outside are data wherever they are shown: one line, nothing unprintable."""

import io
import json
import os
import socket
import tempfile
from pathlib import Path

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from demo.view import LiveView
from tests.fakes import FakeFacts, FakeHypervisor
from virtksm.cli.guests import survey_dict, survey_items
from virtksm.cli.headroom import headroom_rows
from virtksm.cli.layout import to_lines
from virtksm.cli.main import main
from virtksm.guests.headroom import Host, find_headroom
from virtksm.guests.process import GuestProcess, OtherProcess, ProcessKsm
from virtksm.guests.savings import LeftOver
from virtksm.guests.survey import survey
from virtksm.host.systemd import Notifier
from virtksm.log_setup import configure, escape_controls, render_entry
from virtksm.model.snapshot import Guest
from virtksm.text import printable
from virtksm.values import replace

NAMES = st.text(st.characters(exclude_categories=[]), max_size=40)
EVIL = "guest\n<0>forged level=error\x1b]0;title\x07\x1b[31m\x9b31m\x7f\u202e\u2028\r%s%n{event}{0.__class__}\ud800"


def said(log_format: str, **fields: object) -> str:
    stream = io.StringIO()
    configure("info", log_format, stream=stream)
    structlog.get_logger().info("event_received", **fields)
    return stream.getvalue()


@given(name=NAMES)
@example(name=EVIL)
def test_what_is_printable_stays_as_it_is_and_the_rest_is_escaped(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert (shown == name) == name.isprintable()
    assert printable(shown) == shown


@given(name=NAMES)
@example(name=EVIL)
@pytest.mark.parametrize("log_format", ["console", "json", "journal"])
def test_a_name_makes_one_printable_line_of_the_log_wherever_it_stands(log_format: str, name: str) -> None:
    decision = {"reason": name, name: [name, (name,)]}
    line = said(log_format, message=f"{name} started", guest=name, decision=decision, notes=[{"note": name}])
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    if log_format == "journal":
        assert line.startswith("<6>")
    if log_format == "json":
        assert json.loads(line)["guest"] == name


@given(name=NAMES)
@example(name=EVIL)
def test_a_name_is_a_value_of_one_field_of_the_journal(name: str) -> None:
    event = {"event": "event_received", "level": "info", "timestamp": "", "message": name, "guest": name, "all": [name]}
    entry = render_entry(None, "info", escape_controls(None, "info", event))
    names = [line.partition("=")[0] for line in entry.splitlines()]
    assert names == ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "VIRTKSM_EVENT", "VIRTKSM_GUEST", "VIRTKSM_ALL"]


@given(name=NAMES)
@example(name=EVIL)
def test_a_name_is_one_line_of_the_demonstration(name: str) -> None:
    stream = io.StringIO()
    view = LiveView(stream=stream, page_bytes=4096)
    event = {"event": "event_received", "level": "info", "guest": name, "trigger": "started", "detail": name}
    with pytest.raises(structlog.DropEvent):
        view.render(None, "info", event)
    with pytest.raises(structlog.DropEvent):
        view.render(None, "info", {"event": "pass_failed", "level": "error", "error": name})
    shown = stream.getvalue()
    assert shown.count("\n") == 2
    assert shown.replace("\n", "").isprintable()


@given(text=NAMES)
@example(text=EVIL)
def test_a_look_at_guests_prints_one_printable_line_for_each(text: str) -> None:
    guest = Guest(uuid=text, name=text, domain_id=1)
    here = FakeHypervisor(uri=text, running=(guest,), xml={text: "<domain/>"})
    ksm = ProcessKsm(rmap_items=1, merging_pages=1)
    facts = FakeFacts(
        of_guests={text: GuestProcess(arguments=(text, "-machine", text), ksm=ksm)},
        other_processes=(OtherProcess(pid=1, name=text, merging_pages=5),),
    )
    found = survey(here, facts)
    found = replace(found, left_over=LeftOver(merging_pages=7, zero_pages=0, saved_bytes=1, cost_bytes=1))
    found = replace(found, other_processes=facts.other_processes, notes=(text,))
    lines = to_lines(survey_items(found, found.guests))
    assert all(line.isprintable() for line in lines)
    assert lines[1].startswith(printable(text))
    assert json.loads(json.dumps(survey_dict(found, found.guests)))["guests"][0]["name"] == text
    host = Host(available_kib=1, reserve_kib=0, saved_kib=0, unmerging_kib=0, swap_free_kib=0, is_merging=True)
    headroom = find_headroom([], host)
    assert all(line.isprintable() for line in to_lines(headroom_rows(found, headroom, [text], usable_kib=2)))


@given(text=NAMES.filter(lambda text: "\0" not in text and text.isprintable() is False))
@example(text=EVIL)
def test_an_error_costs_two_printable_lines(text: str) -> None:
    told = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="vk", dir="/tmp") as folder:
        place = f"{folder}/{text.encode('utf-8', 'replace').decode().replace('/', '_')[:20]}"
        Path(place).write_text("no folder", encoding="ascii")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", told)
            assert main(["--runtime-dir", place, "restore"]) == 1
    error, hint, end = told.getvalue().split("\n")
    assert (error[:16], hint[:6], end) == ("virtksm: error: ", "hint: ", "")
    assert (error + hint).isprintable()


@given(text=NAMES)
@example(text=EVIL)
def test_systemds_status_line_is_one_printable_line(text: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="vk", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{folder}/notify")
        Notifier({"NOTIFY_SOCKET": f"{folder}/notify"}, pid=os.getpid()).send(STATUS=f"pass failed: {text}")
        lines = manager.recv(65536).decode().split("\n")
    assert len(lines) == 1
    assert lines[0].startswith("STATUS=pass failed: ")
    assert lines[0].isprintable()
