"""A trace survives being written and read, and whatever else is in its place is told in one clear error."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_codec import values
from virtksm.errors import TraceUnusable
from virtksm.trace import End, Gap, Header, Line, Pass, Torn
from virtksm.trace.anonymise import Anonymiser
from virtksm.trace.text import dump_line, parse_line, parse_lines
from virtksm.values import replace


def as_recorded(made: Pass) -> Pass:
    """Return a pass as an agent could have recorded it."""
    ksm = replace(made.snapshot.ksm, page_kib=max(made.snapshot.ksm.page_kib, 1))
    state = None if made.continues else made.state
    return replace(made, at_s=abs(made.at_s) % 1e10, snapshot=replace(made.snapshot, ksm=ksm), state=state)


headers = values(Header)
passes = values(Pass).map(as_recorded)
lines = headers | passes | values(Gap) | values(End)
traces = st.tuples(headers, st.lists(lines, max_size=4)).map(lambda both: [both[0], *both[1]])


def dumped(trace: list[Line]) -> str:
    return "".join(f"{dump_line(line)}\n" for line in trace)


def parsed(text: str) -> list[Line | Torn]:
    return list(parse_lines(text.splitlines(keepends=True), "t.jsonl"))


@given(traces)
def test_a_trace_survives_being_written_and_read(trace: list[Line]) -> None:
    text = dumped(trace)
    assert text.isascii(), "so that no text of a guest's can end a line"
    assert parsed(text) == trace


@given(traces, st.data())
def test_a_trace_that_was_cut_off_anywhere_is_what_there_is_of_it_and_torn(
    trace: list[Line], data: st.DataObject
) -> None:
    text = dumped(trace)
    head = len(dump_line(trace[0])) + 1
    cut = data.draw(st.integers(head, len(text)))
    whole, torn = text[:cut].count("\n"), text[:cut].rpartition("\n")[2]
    with suppress(ValueError):  # cut just before its end, a line is whole
        parse_line(torn)
        whole, torn = whole + 1, ""
    assert parsed(text[:cut]) == trace[:whole] + [Torn()] * bool(torn)


@given(headers, st.text() | st.binary().map(lambda raw: raw.decode(errors="surrogateescape")))
def test_what_is_no_line_is_told_with_its_place(header: Header, garbage: str) -> None:
    garbage = "".join(garbage.splitlines())
    texts = [f"{dump_line(header)}\n", f"{garbage}\n"]
    try:
        parse_line(garbage)
    except ValueError:
        with pytest.raises(TraceUnusable, match=r"^t\.jsonl:2: .*: name a file"):
            list(parse_lines(texts, "t.jsonl"))
    else:
        assert len(list(parse_lines(texts, "t.jsonl"))) == 2


@given(st.lists(passes, max_size=4))
def test_without_names_a_trace_tells_guests_apart_and_nothing_else_of_them(made: list[Pass]) -> None:
    anonymous = Anonymiser()
    for line in made:
        stripped = anonymous.strip(line)
        assert isinstance(stripped, Pass)
        assert all(guest.name == guest.uuid and guest.name.startswith("guest-") for guest in stripped.snapshot.guests)
        assert [guest.rss_kib for guest in stripped.snapshot.guests] == [g.rss_kib for g in line.snapshot.guests]
        assert len({guest.key for guest in stripped.snapshot.guests}) == len({g.key for g in line.snapshot.guests})
