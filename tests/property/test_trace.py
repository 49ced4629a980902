"""A trace survives being written and read, and whatever else is in its place is told in one clear error."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_policy_adaptive import snapshots, trigger_sets
from virtksm.errors import TraceUnusable
from virtksm.model.decision import Decision, Reason, SwitchedOff
from virtksm.model.snapshot import Settings
from virtksm.trace import End, Gap, Header, Law, Line, Pass, Torn
from virtksm.trace.anonymise import Anonymiser
from virtksm.trace.text import dump_line, parse_line, parse_lines

numbers = st.none() | st.integers(0, 2**53) | st.floats(0, 1e15)
texts = st.text(max_size=12)
values = st.booleans() | st.integers(-(2**40), 2**40) | texts
laws = st.builds(Law, policy=texts, config=st.dictionaries(texts, values, max_size=3))
settings = st.builds(
    Settings,
    pages_to_scan=st.none() | st.integers(0, 2**32 - 1),
    sleep_millisecs=st.none() | st.integers(0, 2**32 - 1),
    merge_across_nodes=st.none() | st.integers(0, 1),
)
pasts = st.none() | st.dictionaries(texts, values | st.dictionaries(texts, st.integers(0, 9), max_size=2), max_size=3)
passes = st.builds(
    Pass,
    seq=st.integers(0, 2**40),
    at_s=st.floats(0, 1e10),
    triggers=trigger_sets,
    snapshot=snapshots,
    decision=st.builds(
        Decision,
        target=settings,
        reason=st.builds(Reason, rule=texts, text=texts, numbers=st.dictionaries(texts, numbers, max_size=3)),
        next_pass_s=st.none() | st.floats(0, 1e6),
        is_routine=st.booleans(),
    ),
    outcome=texts,
    after=settings,
    off=st.none() | st.builds(SwitchedOff, since=texts, damage=texts),
    law=st.none() | laws,
    continues=st.just(False),
    state=pasts,
).flatmap(lambda made: st.sampled_from([made, replace(made, continues=True, state=None)]))
headers = st.builds(
    Header,
    version=texts,
    uri=texts,
    began=texts,
    page_bytes=st.sampled_from([4096, 65536]),
    kernel=st.none() | texts,
    law=laws,
)
lines = (
    headers
    | passes
    | st.builds(Gap, missed=st.none() | st.integers(0, 2**40))
    | st.builds(End, at_s=st.floats(0, 1e10), passes=st.integers(0, 2**40), missed=st.integers(0, 2**40))
)
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


garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(passes, st.data(), garbage)
def test_a_damaged_pass_is_a_value_error_or_a_pass(made: Pass, data: st.DataObject, value: object) -> None:
    place = kept = json.loads(dump_line(made))
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    with suppress(ValueError):
        assert isinstance(parse_line(json.dumps(kept)), Header | Pass | Gap | End)


@given(st.lists(passes, max_size=4))
def test_without_names_a_trace_tells_guests_apart_and_nothing_else_of_them(made: list[Pass]) -> None:
    anonymous = Anonymiser()
    for line in made:
        stripped = anonymous.strip(line)
        assert isinstance(stripped, Pass)
        assert all(guest.name == guest.uuid and guest.name.startswith("guest-") for guest in stripped.snapshot.guests)
        assert [guest.rss_kib for guest in stripped.snapshot.guests] == [g.rss_kib for g in line.snapshot.guests]
        assert len({guest.key for guest in stripped.snapshot.guests}) == len({g.key for g in line.snapshot.guests})
