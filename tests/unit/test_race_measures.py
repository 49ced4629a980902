"""The race's figures, from runs made up so that every figure is known: savings that rise, ksmd at a steady share."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.race.measures import (
    count_merges,
    cpu_until_s,
    find_most_s,
    find_parked_s,
    measure_run,
    measure_work,
    pages_at,
    rest_window,
    worst_lag_share,
)
from bench.race.records import (
    GuestLife,
    Record,
    RecordUnreadable,
    Sample,
    keep_record,
    parse_record,
    read_records,
    record_path,
)

SETTLED_S = 20.0


def sample(at_s: float, pages: int = 0, cpu_s: float = 0.0, *, scan: int = 100, cow: int | None = 0) -> Sample:
    return Sample(
        at_s=at_s,
        pages_sharing=pages,
        pages_shared=pages // 10,
        full_scans=0,
        pages_scanned=None,
        pages_skipped=None,
        cow_ksm=cow,
        ksmd_cpu_s=1000.0 + cpu_s,
        run=1,
        pages_to_scan=scan,
        sleep_millisecs=20,
    )


def run(
    contender: str,
    pages_at_s: Callable[[int], int],
    *,
    parked_from_s: float = 1e9,
    share: float = 0.5,
    **changes: object,
) -> Record:
    """Make up a run of 300 s: ksmd takes `share` of a core until it is parked."""
    given: dict[str, Any] = {
        "work": "storm",
        "told": "made up",
        "contender": contender,
        "quick": False,
        "length_s": 300.0,
        "busy_until_s": 0.0,
        "savings_until_s": 300.0,
        "expected_sharing_pages": 1000,
        "began_utc": "2026-01-01T00:00:00+00:00",
        "revision": "0123abc",
        "machine": {"cores": 2},
        "guests": [GuestLife(name="g0", started_s=0.1, settled_s=SETTLED_S)],
        "samples": [
            sample(
                float(at_s),
                pages_at_s(at_s),
                share * min(at_s, parked_from_s),
                scan=0 if at_s >= parked_from_s else 100,
            )
            for at_s in range(301)
        ],
        "neighbour": [(float(at_s), 5.0 if at_s < parked_from_s else 4.0) for at_s in range(300)],
    }
    given.update(changes)
    return Record(**given)


def rising(per_s: int, most: int) -> Callable[[int], int]:
    return lambda at_s: min(at_s * per_s, most)


def test_a_run_that_parks() -> None:
    figures = measure_run(run("adaptive", rising(20, 1000), parked_from_s=60.0), 1000.0)

    assert figures.held_mib == 1000 / 256
    assert figures.until_most_s == 45.0 - SETTLED_S
    assert figures.cpu_until_most_s == pytest.approx(22.5)
    assert figures.parked_after_s == 60.0 - SETTLED_S
    assert figures.cpu_until_parked_s == pytest.approx(30.0)
    assert figures.cpu_s == pytest.approx(30.0)
    assert figures.rest_share == 0.0
    assert figures.hour_cpu_s == pytest.approx(30.0)
    assert figures.neighbour_sweep is not None
    assert figures.neighbour_sweep.median == 5.0
    assert figures.neighbour_rest is not None
    assert figures.neighbour_rest.median == 4.0


def test_what_comes_later_in_the_hour_is_added() -> None:
    report = run("adaptive", rising(20, 1000), parked_from_s=60.0)
    hours = [
        measure_work([report], later).figures["adaptive"].hour_cpu_s
        for later in (None, {"adaptive": 7.0}, {"flat": 7.0})
    ]
    assert hours == pytest.approx([30.0, 37.0, 30.0])


def test_a_run_that_scans_for_ever_goes_on_for_the_hour() -> None:
    figures = measure_run(run("flat", rising(20, 1000)), 1000.0)

    assert figures.parked_after_s is None
    assert figures.rest_share == pytest.approx(0.5)
    assert figures.hour_cpu_s == pytest.approx(1800.0)
    saved_mib_s = (1000 * 3550 + 1000 * 50 / 2) / 256
    assert figures.saved_mib_s_per_cpu_s == pytest.approx(saved_mib_s / 1800, rel=1e-3)


def test_a_run_that_merges_too_little_has_no_time() -> None:
    figures = measure_run(run("default", rising(1, 1000)), 1000.0)

    assert (figures.until_most_s, figures.cpu_until_most_s) == (None, None)


def test_reaching_it_before_the_last_guest_has_settled_is_negative() -> None:
    figures = measure_run(run("flat", rising(100, 1000)), 1000.0)

    assert figures.until_most_s == 9.0 - SETTLED_S


def test_parking_while_something_is_still_to_come_does_not_count() -> None:
    figures = measure_run(run("adaptive", rising(100, 1000), parked_from_s=30.0, busy_until_s=100.0), 1000.0)

    assert figures.parked_after_s == 100.0 - SETTLED_S


def test_nothing_saved_by_anybody_breaks_nothing() -> None:
    figures = measure_run(run("off", lambda _: 0, share=0.0), 0.0)

    assert figures.until_most_s is None
    assert figures.saved_mib_s_per_cpu_s is None


def test_final_savings_are_the_best_runs_and_off_is_no_contender() -> None:
    results = measure_work(
        [run("adaptive", rising(20, 500)), run("flat", rising(20, 800)), run("off", rising(20, 999))]
    )

    assert results.final_mib == 800 / 256
    assert results.figures["adaptive"].until_most_s is None


def test_what_is_held_is_judged_before_guests_stop() -> None:
    report = run("adaptive", lambda at_s: 1000 if at_s < 150 else 10, savings_until_s=150.0)

    assert measure_work([report]).final_mib == 1000 / 256


def test_a_short_run_is_judged_by_its_end() -> None:
    report = run("flat", lambda at_s: 1000 if at_s >= 20 else 0, length_s=25.0, savings_until_s=25.0)

    assert measure_work([report]).final_mib == 1000 / 256


def test_a_pause_between_two_batches_is_no_parking() -> None:
    samples = [sample(at_s / 4, scan=0 if at_s < 30 or at_s > 40 else 100) for at_s in range(200)]

    assert find_parked_s(samples, 0.0, 10.0) == 41 / 4
    assert find_parked_s(samples, 45.0, 10.0) is None


def test_switched_off_is_parked() -> None:
    samples = [sample(float(at_s), scan=100) for at_s in range(20)]

    assert find_parked_s(samples, 0.0, 10.0) is None


@pytest.mark.parametrize(
    ("length_s", "idle_s", "window"),
    [
        (300.0, None, (180.0, 300.0)),
        (300.0, 60.0, (60.0, 180.0)),
        (300.0, 250.0, (250.0, 300.0)),
        (30.0, None, (18.0, 30.0)),
        (700.0, 610.0, (610.0, 700.0)),
    ],
)
def test_the_window_of_rest(length_s: float, idle_s: float | None, window: tuple[float, float]) -> None:
    assert rest_window(length_s, idle_s) == window


def test_cpu_is_spread_between_samples_and_counts_from_the_first() -> None:
    samples = [sample(0.0, cpu_s=5.0), sample(1.0, cpu_s=6.0), sample(3.0, cpu_s=10.0)]

    assert [cpu_until_s(samples, at_s) for at_s in (-1.0, 0.0, 0.5, 2.0, 3.0, 9.0)] == [0.0, 0.0, 0.5, 3.0, 5.0, 5.0]


def test_pages_are_those_last_seen() -> None:
    samples = [sample(0.0, 1), sample(1.0, 2), sample(2.0, 3)]

    assert [pages_at(samples, at_s) for at_s in (-1.0, 0.0, 1.5, 2.0, 5.0)] == [1, 1, 2, 3, 3]


def test_nothing_is_found_where_nothing_can_be_saved() -> None:
    assert find_most_s([sample(0.0)], 0.0) is None


def test_merges_are_what_is_merged_and_what_was() -> None:
    assert count_merges([sample(0.0, 100, cow=7), sample(1.0, 200, cow=57)]) == 110 + 50
    assert count_merges([sample(0.0, 100, cow=None), sample(1.0, 200, cow=None)]) is None


def test_the_lag_behind_flat_out_leaves_the_first_tenth_out() -> None:
    flat, slow = run("flat", rising(10, 1000)), run("adaptive", lambda at_s: max(at_s - 5, 0) * 10)

    assert worst_lag_share(flat, flat, 1000.0, 0.0) == 0.0
    assert worst_lag_share(slow, flat, 1000.0, 0.0) == pytest.approx(0.5)  # at 100 pages, a tenth
    assert worst_lag_share(slow, flat, 1000.0, 50.0) == pytest.approx(0.1)
    fast = run("ksmtuned", lambda at_s: 20 * at_s)
    assert worst_lag_share(fast, flat, 1000.0, 0.0) == pytest.approx(-1.0)  # ahead at all times


def test_an_agents_numbers_tell_what_it_owes_and_how_it_backed_off() -> None:
    told = [
        {"at_s": 1.0, "rule": "full_scan", "reason": "r", "numbers": {"backoff": 4, "new_kib": 2048}},
        {
            "at_s": 2.0,
            "rule": "idle",
            "reason": "all covered",
            "numbers": {"backoff": 1, "new_kib": 0, "scanned_once_kib": 1024},
        },
    ]
    figures = measure_run(run("adaptive", rising(20, 1000), decisions=told), 1000.0)

    assert (figures.backoff_most, figures.owed_mib, figures.last_decision) == (4, 1.0, "all covered")


def test_a_policy_that_says_nothing_of_the_kind() -> None:
    told = [{"at_s": 1.0, "rule": "boost", "reason": "r", "numbers": {}}]
    figures = measure_run(run("ksmtuned-law", rising(20, 1000), decisions=told), 1000.0)

    assert (figures.backoff_most, figures.owed_mib) == (None, None)


def test_records_survive_their_file(tmp_path: Path) -> None:
    report = run("adaptive", rising(20, 1000), own_cpu_s=1.5)
    keep_record(tmp_path, report)

    (back,) = read_records(tmp_path)

    assert back.samples == report.samples
    assert back.guests == report.guests
    assert back.neighbour == report.neighbour
    assert measure_run(back, 1000.0) == measure_run(report, 1000.0)
    before = record_path(tmp_path, "storm", "adaptive").read_bytes()
    keep_record(tmp_path, back)
    assert record_path(tmp_path, "storm", "adaptive").read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2, "columns": []}', "nonsense"])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(RecordUnreadable):
        parse_record(text)


@pytest.mark.parametrize(
    "content", [b"", b"{}", gzip.compress(b"{}"), gzip.compress(b"\xff"), gzip.compress(b"{}")[:-3]]
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = record_path(tmp_path, "storm", "flat")
    path.write_bytes(content)

    with pytest.raises(RecordUnreadable, match=re.escape(str(path))):
        read_records(tmp_path)


def test_quick_and_full_runs_are_not_mixed(tmp_path: Path) -> None:
    keep_record(tmp_path, run("flat", rising(1, 1)))
    keep_record(tmp_path, run("off", rising(1, 1), quick=True))

    with pytest.raises(RecordUnreadable, match="quick and full"):
        read_records(tmp_path)
