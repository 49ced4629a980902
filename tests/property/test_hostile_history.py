"""Whatever is in a history's file, or given to it: a history, or one error of ours; and it can be written again."""

import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.contract.test_history import DECISION, EVENT, SAMPLE
from virtksm.errors import StateUnusable
from virtksm.history.samples import KINDS, GuestEvent, Sample
from virtksm.store.history import HistoryFile
from virtksm.text import MAX_TIME_S

TEXTS = st.text(st.characters(exclude_categories=[]), max_size=20)
WHOLE = st.integers(0, 2**70)
SAMPLES = st.builds(
    Sample,
    at_s=st.floats(0, MAX_TIME_S),
    guests=WHOLE,
    committed_kib=WHOLE,
    total_kib=WHOLE,
    available_kib=st.none() | WHOLE,
    saved_kib=st.none() | WHOLE,
    ksmd_cpu_seconds=st.none() | st.floats(0, 1e15),
    run=st.none() | WHOLE,
    pages_to_scan=st.none() | WHOLE,
    sleep_millisecs=st.none() | WHOLE,
    rule=TEXTS,
    zero_kib=st.none() | WHOLE,
    freed_kib=st.none() | WHOLE,
)
EVENTS = st.builds(
    GuestEvent,
    at_s=st.floats(0, MAX_TIME_S),
    kind=st.sampled_from(sorted(KINDS)),
    domain=TEXTS,
    uuid=TEXTS,
    detail=TEXTS,
)
LINES = st.text(st.characters(codec="ascii"))


@given(samples=st.lists(SAMPLES, max_size=3), events=st.lists(EVENTS, max_size=3), lines=st.lists(LINES, max_size=3))
@settings(max_examples=50, deadline=None)
def test_any_values_are_kept_huge_ones_as_the_largest_that_fits(
    samples: list[Sample], events: list[GuestEvent], lines: list[str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="vh", dir="/tmp") as folder:
        history = HistoryFile(f"{folder}/local.history")
        history.add(samples, events, lines)
        newest_s = max((one.at_s for one in samples), default=0.0)
        kept = history.samples(newest_s)
        assert [min(one.guests, 2**63 - 1) for one in samples if one.at_s >= newest_s] == [one.guests for one in kept]
        assert [one.at_s for one in history.events(0)] == [one.at_s for one in events]
        assert history.decisions(10) == tuple(lines)


@given(places=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=60)), min_size=1, max_size=8))
@example(places=[(0, b"SQLite format 3\0")])
@example(places=[(3630, b"\x80")])
@example(places=[(3928, b"\x80")])
@example(places=[(18, b"\2\2")])
@example(places=[(18, b"\3")])
@settings(max_examples=150, deadline=None)
def test_a_file_damaged_anywhere_is_an_error_or_read_and_is_written_again(places: list[tuple[int, bytes]]) -> None:
    with tempfile.TemporaryDirectory(prefix="vh", dir="/tmp") as folder:
        path = Path(folder) / "local.history"
        HistoryFile(str(path)).add([SAMPLE] * 40, [EVENT] * 40, [DECISION] * 40)
        content = bytearray(path.read_bytes())
        for place, garbage in places:
            at = place % len(content)
            content[at : at + len(garbage)] = garbage
        path.write_bytes(content)
        history = HistoryFile(str(path))
        for read in (lambda: history.samples(0), lambda: history.events(0), lambda: history.decisions(100)):
            with suppress(StateUnusable):
                read()
        history.add([SAMPLE], [EVENT], [DECISION])
        assert path.exists()


@given(content=st.binary(max_size=3000))
@settings(max_examples=50, deadline=None)
def test_any_file_at_all_is_an_error_or_nothing_and_is_written_again(content: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="vh", dir="/tmp") as folder:
        path = Path(folder) / "local.history"
        path.write_bytes(content)
        history = HistoryFile(str(path))
        with suppress(StateUnusable):
            assert history.samples(0) == ()
        history.add([SAMPLE], [], [])
        assert history.samples(0) == (SAMPLE,)
