"""Traces: what is refused in them and how that is said, what is forgiven, and what is left of guests without names."""

import json
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest

from tests.unit.test_policy_adaptive import TIMER, snap
from virtksm.errors import TraceUnusable
from virtksm.model.decision import Decision, Reason
from virtksm.model.snapshot import IDLE
from virtksm.store.trace import append_lines, create_trace, read_trace
from virtksm.trace import Gap, Header, Law, Pass, Torn
from virtksm.trace.anonymise import Anonymiser
from virtksm.trace.text import dump_line, parse_line, parse_lines, parse_summary
from virtksm.values import replace

HEADER = Header(
    version="0.1.0",
    uri="qemu+ssh://vault.example/system",
    began="2026-01-02T03:04:05+00:00",
    page_bytes=4096,
    kernel=None,
    law=Law(policy="adaptive", config={"adaptive.engage": "always"}),
)
PASS = Pass(
    seq=3,
    at_s=1.5,
    triggers=TIMER,
    snapshot=snap(1, {"vault": 1024}),
    decision=Decision(target=IDLE, reason=Reason(rule="idle", text="all is covered"), next_pass_s=20.0),
    outcome="applied",
    after=IDLE,
    continues=False,
    state={"guests_kib": {"vault/1": 7, "gone/3": 8, "other_processes": 9}, "rule": "idle"},
)
SUMMARY = replace(PASS, law=HEADER.law).summary()


def changed(line: Header | Pass, **changes: object) -> str:
    return json.dumps({**json.loads(dump_line(line)), **changes})


SNAPSHOT = json.loads(dump_line(PASS))["snapshot"]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ("", "the line is no JSON: "),
        ("[]", "the line is no JSON object"),
        ('{"kind": "gap", "missed": true}', "missed is True, not int"),
        (changed(PASS, triggers=["whim"]), "kinds is 'whim', not one of connected, started"),
        ("[" * 100_000, "the line is nested too deeply"),
        ('{"kind": "gap", "missed": NaN}', "NaN is no number"),
        ('{"kind": "else"}', "kind is 'else', not header, pass, gap or end"),
        (changed(PASS, decision={}), "next_pass_s is missing"),
        (changed(PASS, at_s=1e15), "at_s is 1000000000000000.0, not a time"),
        (changed(PASS, snapshot={**SNAPSHOT, "ksm": {**SNAPSHOT["ksm"], "page_kib": 0}}), "page_kib is 0, not a page"),
        (changed(HEADER, schema=2), "its schema is 2, and this virtksm reads 1: use one as new as the trace"),
        (changed(HEADER, format="else"), "not a virtksm-trace"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_remedy(second: str, problem: str) -> None:
    with pytest.raises(TraceUnusable) as caught:
        list(parse_lines([dump_line(HEADER) + "\n", second + "\n"], "t.jsonl"))
    assert caught.value.message.startswith(f"t.jsonl:2: {problem}")
    assert "virtksm trace record" in caught.value.remedy


def test_a_last_line_that_is_torn_is_said_and_a_trace_begins_with_its_header() -> None:
    texts = [f"{dump_line(HEADER)}\n", f"{dump_line(PASS)}\n", dump_line(PASS)]
    assert list(parse_lines(texts, "t")) == [HEADER, PASS, PASS]
    assert list(parse_lines([*texts[:2], texts[2][:-20]], "t")) == [HEADER, PASS, Torn()]
    for others, problem in (([], "it is empty"), ([dump_line(PASS)], "begins with its header"), (["{"], "is no JSON")):
        with pytest.raises(TraceUnusable, match=problem):
            list(parse_lines(others, "t"))


def test_fields_of_a_later_virtksm_are_left_alone_and_those_that_an_earlier_one_did_not_know_have_their_default() -> (
    None
):
    values: dict[str, object] = json.loads(dump_line(PASS))
    snapshot = values["snapshot"]
    assert isinstance(snapshot, dict)
    del snapshot["ksm"]["cow_ksm"], snapshot["ksm"]["page_kib"]
    snapshot["ksm"]["later"] = snapshot["later"] = values["later"] = {"any": "thing"}
    assert parse_line(json.dumps(values)) == PASS


def test_a_summary_stands_alone_and_is_as_long_for_many_guests_as_for_one() -> None:
    many = replace(PASS, law=HEADER.law, snapshot=snap(1, {f"vault-{number}": 1024 for number in range(500)}))
    line = dump_line(many.summary())
    assert len(line) < len(dump_line(SUMMARY)) + 10
    assert "vault" not in line
    summary = parse_summary(line)
    assert (summary.guests_left_out, summary.policy, summary.continues, summary.state) == (500, "adaptive", False, None)
    with pytest.raises(ValueError, match="no pass with its law"):
        parse_summary(dump_line(PASS))


def test_without_names_a_guest_in_the_policys_state_is_still_that_guest() -> None:
    anonymous = Anonymiser()
    header, stripped = anonymous.strip(HEADER), anonymous.strip(PASS)
    assert isinstance(header, Header)
    assert isinstance(stripped, Pass)
    assert header.uri == "qemu+ssh:"
    assert stripped.state == {"guests_kib": {"guest-1/1": 7, "guest-2/3": 8, "other_processes": 9}, "rule": "idle"}
    named = {
        "backlog": {"changed": {"gone/3": 1.0}},
        "scans": {"started": ["vault/1"]},
        "learned": {"image": "image-7f"},
    }
    guest = replace(PASS.snapshot.guests[0], image="image-7f")
    stripped = anonymous.strip(replace(PASS, snapshot=replace(PASS.snapshot, guests=(guest,)), state=named))
    assert isinstance(stripped, Pass)
    assert stripped.snapshot.guests[0].image == "image-1"
    assert stripped.state == {
        "backlog": {"changed": {"guest-2/3": 1.0}},
        "scans": {"started": ["guest-1/1"]},
        "learned": {"image": "image-1"},
    }
    assert stripped.snapshot.guests[0].key == "guest-1/1"
    rewriters = replace(PASS, decision=replace(PASS.decision, rewriters=(PASS.snapshot.guests[0].key,)))
    stripped = anonymous.strip(rewriters)
    assert isinstance(stripped, Pass)
    assert stripped.decision.rewriters == ("guest-1/1",)
    assert "vault" not in dump_line(header) + dump_line(stripped)
    for other in (Gap(missed=1), replace(PASS, state=None), replace(PASS, state={"guests_kib": 4})):
        assert getattr(anonymous.strip(other), "state", None) == getattr(other, "state", None)


def test_a_file_is_its_owner_s_alone_and_none_is_overwritten_unless_told(tmp_path: Path) -> None:
    path = str(tmp_path / "t.jsonl")
    with create_trace(path) as file:
        append_lines(file, path, ["one", "two"])
        assert list(read_trace(path)) == ["one\n", "two\n"], "on disk as soon as it is written"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    with pytest.raises(TraceUnusable, match="it exists: name another file, or replace it with --force"):
        create_trace(path)
    Path(path).chmod(0o666)
    with create_trace(path, replaces=True) as file:
        append_lines(file, path, ["three"])
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert list(read_trace(path)) == ["three\n"]


def another_users(path: Path) -> None:
    path.write_text("kept", encoding="ascii")
    path.chmod(0o666)
    os.chown(path, 65534, 65534)


def hard_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("kept", encoding="ascii")
    path.hardlink_to(other)


def symbolic_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("kept", encoding="ascii")
    path.symlink_to(other)


@pytest.mark.parametrize(
    "plant", [pytest.param(another_users, marks=pytest.mark.real), hard_link, symbolic_link, Path.mkdir, os.mkfifo]
)
def test_what_is_not_ones_own_is_not_replaced(tmp_path: Path, plant: Callable[[Path], object]) -> None:
    path = tmp_path / "t.jsonl"
    plant(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO's, which could be opened for writing then
    for replaces in (False, True):
        with pytest.raises(TraceUnusable):
            create_trace(str(path), replaces=replaces)
    os.close(reader)
    assert not path.is_file() or path.read_text(encoding="ascii") == "kept"


def test_a_file_that_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceUnusable, match="none: it cannot be read: No such file"):
        list(read_trace(str(tmp_path / "none")))
    with pytest.raises(TraceUnusable, match="it cannot be written: No such file"):
        create_trace(str(tmp_path / "none" / "t"))
    with FileIO("/dev/full", "w") as full, pytest.raises(TraceUnusable, match="No space left"):
        append_lines(full, "/dev/full", ["line"])
