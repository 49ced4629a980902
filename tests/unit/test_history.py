"""The history as values: thinned for drawing, and as the tables in which it travels."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.test_history import EVENT, SAMPLE
from tests.lab.samples import CALM
from virtksm.history.samples import SAMPLE_FIELDS, as_table, parse_events, parse_samples, sample_of, thin
from virtksm.values import replace

NOW_S = 2_000_000_000.0


@given(times=st.lists(st.floats(0, NOW_S), max_size=60), most=st.integers(1, 40))
def test_thinning_keeps_so_many_at_most_and_the_last_of_all_in_their_order(times: list[float], most: int) -> None:
    samples = [replace(SAMPLE, at_s=at_s, guests=number) for number, at_s in enumerate(sorted(times))]
    thinned = thin(samples, most, until_s=NOW_S)
    assert len(thinned) <= most
    assert set(thinned) <= set(samples)
    assert list(thinned) == sorted(thinned, key=lambda one: one.guests)
    assert thinned[-1:] == tuple(samples[-1:])
    if len(samples) <= most:
        assert thinned == tuple(samples)
    assert thin([replace(SAMPLE, at_s=NOW_S + 1), *samples], most, until_s=NOW_S) == thinned, "the clock was ahead"


def test_tables_come_back_as_they_went_also_with_columns_of_a_later_version() -> None:
    tables = json.loads(json.dumps(as_table([SAMPLE], [EVENT])))
    assert parse_samples(tables["samples"]["columns"], tables["samples"]["rows"]) == (SAMPLE,)
    assert parse_events(tables["events"]["columns"], tables["events"]["rows"]) == (EVENT,)
    columns, rows = [*tables["samples"]["columns"], "new"], [[*tables["samples"]["rows"][0], {}]]
    assert parse_samples(columns, rows) == (SAMPLE,)


def test_a_sample_has_the_parts_of_what_is_saved() -> None:
    ksm = replace(CALM.snapshot.ksm, pages_shared=1, pages_sharing=256, ksm_zero_pages=512, freed_kib=4096)
    sample = sample_of(NOW_S, replace(CALM.snapshot, ksm=ksm), CALM.after, "idle")
    assert (sample.saved_kib, sample.zero_kib, sample.freed_kib) == (1024 + 2048 + 4096, 2048, 4096)


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (None, []),
        ([[]], []),
        (["at_s"], None),
        (["at_s"], [1]),
        (["at_s"], [[1, 2]]),
        (["at_s"], [[1]]),
        (SAMPLE_FIELDS[:-1], [[1, 3, 1, 1, 1, 1, 1, 1, 1, 1, "x", 1]]),
        (SAMPLE_FIELDS, [[1, 3.5, 1, 1, 1, 1, 1, 1, 1, 1, "x", 1, 1]]),
        (SAMPLE_FIELDS, [[1, 3, 1, 1, 1, 1, 1, 1, 1, 1, "x", 1, 1.5]]),
        (SAMPLE_FIELDS, [[-1, 3, 1, 1, 1, 1, 1, 1, 1, 1, "x", 1, 1]]),
    ],
)
def test_a_table_that_is_none_is_refused(columns: object, rows: object) -> None:
    with pytest.raises(ValueError, match=r"missing|values|not int|no time"):
        parse_samples(columns, rows)
