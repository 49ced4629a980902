"""The race's figures, from runs made up so that every figure is known: savings that rise, ksmd at a steady share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.figures import Goal
from bench.race.contenders import BACKLOG
from bench.race.ground import GuestLife
from bench.race.measures import (
    count_merges,
    cpu_until_s,
    find_idle_s,
    measure_run,
    measure_work,
    rest_window,
    sample_at,
    worst_lag_share,
)
from bench.race.report import draw_work, write_work
from bench.race.run import Run, Sample
from bench.race.works import Work, list_works
from virtksm.values import replace

SETTLED_S = 20.0
STORM = list_works(quick=False)["storm"]


def sample(at_s: float, pages: int = 0, cpu_s: float = 0.0, *, idle: bool = False, cow: int | None = 0) -> Sample:
    return Sample(
        at_s=at_s,
        pages_sharing=pages,
        pages_shared=pages // 10,
        cow_ksm=cow,
        ksmd_cpu_s=1000.0 + cpu_s,
        is_idle=idle,
        resident_mib=at_s,
    )


def made_up(
    contender: str,
    pages_at_s: Callable[[int], int],
    *,
    idle_from_s: float = 1e9,
    share: float = 0.5,
    work: Work = STORM,
    decisions: Sequence[Mapping[str, Any]] = (),
) -> Run:
    """Make up a run of 300 s: ksmd takes `share` of a core until it is idle."""
    return Run(
        work=work,
        contender=contender,
        guests=[GuestLife(name="g0", started_s=0.1, settled_s=SETTLED_S)],
        samples=[
            sample(float(at_s), pages_at_s(at_s), share * min(at_s, idle_from_s), idle=at_s >= idle_from_s)
            for at_s in range(301)
        ],
        neighbour=[(float(at_s), 5.0 if at_s < idle_from_s else 4.0) for at_s in range(300)],
        decisions=decisions,
    )


def rising(per_s: int, most: int = 1000) -> Callable[[int], int]:
    return lambda at_s: min(at_s * per_s, most)


def test_a_run_that_idles() -> None:
    figures = measure_run(made_up("adaptive", rising(20), idle_from_s=60.0), 1000.0)
    assert figures.held_mib == 1000 / 256
    assert figures.until_most_s == 45.0 - SETTLED_S
    assert figures.cpu_until_most_s == pytest.approx(22.5)
    assert figures.idle_after_s == 60.0 - SETTLED_S
    assert figures.cpu_until_idle_s == figures.cpu_s == figures.hour_cpu_s == pytest.approx(30.0)
    assert figures.rest_share == 0.0
    assert figures.neighbour_rest_ms == 4.0
    assert (figures.used_mib, figures.used_at_end_mib) == (30.0 - 600 / 256, 300.0 - 1000 / 256), "10 s after"
    assert measure_run(made_up("flat", rising(100)), 1000.0).until_most_s == 9.0 - SETTLED_S, "before the last settled"
    busy = made_up("adaptive", rising(100), idle_from_s=30.0, work=replace(STORM, busy_until_s=100.0))
    assert measure_run(busy, 1000.0).idle_after_s == 100.0 - SETTLED_S, "something was still to come"


def test_a_run_that_scans_for_ever_goes_on_for_the_hour() -> None:
    figures = measure_run(made_up("flat", rising(20)), 1000.0)
    assert figures.idle_after_s is None
    assert figures.rest_share == pytest.approx(0.5)
    assert figures.hour_cpu_s == pytest.approx(1800.0)
    assert figures.saved_mib_s_per_cpu_s == pytest.approx((1000 * 3550 + 1000 * 50 / 2) / 256 / 1800, rel=1e-3)


def test_our_check_scans_are_added_and_final_savings_are_the_best_runs() -> None:
    runs = [made_up("adaptive", rising(20, 500), idle_from_s=60.0), made_up("flat", rising(20, 800))]
    results = measure_work(runs, check_scans_s=7.0)
    assert results["adaptive"].hour_cpu_s == pytest.approx(37.0)
    assert (results["adaptive"].until_most_s, results["flat"].until_most_s) == (None, 36.0 - SETTLED_S)
    assert results["adaptive"].lag_share == pytest.approx(1 - 500 / 800)
    stopping = made_up("flat", lambda at_s: 1000 if at_s < 150 else 1, work=list_works(quick=False)["stop"])
    assert measure_work([stopping])["flat"].held_mib == 1000 / 256, "before the first stop"


def test_nothing_saved_breaks_nothing() -> None:
    figures = measure_run(made_up("off", lambda _: 0, share=0.0), 0.0, made_up("flat", lambda _: 0))
    assert (figures.until_most_s, figures.saved_mib_s_per_cpu_s, figures.lag_share) == (None, 0.0, 0.0)


def test_windows_and_what_lies_between_samples() -> None:
    pausing = [sample(at_s / 4, idle=at_s < 30 or at_s > 40) for at_s in range(200)]
    assert (find_idle_s(pausing, 0.0, 10.0), find_idle_s(pausing, 45.0, 10.0)) == (41 / 4, None)
    assert rest_window(300.0, None) == (180.0, 300.0)
    assert rest_window(300.0, 250.0) == (250.0, 300.0)
    assert rest_window(30.0, None) == (18.0, 30.0)
    samples = [sample(0.0, 1, 5.0), sample(1.0, 2, 6.0), sample(3.0, 3, 10.0)]
    assert [cpu_until_s(samples, at_s) for at_s in (-1.0, 0.0, 0.5, 2.0, 3.0, 9.0)] == [0.0, 0.0, 0.5, 3.0, 5.0, 5.0]
    assert [sample_at(samples, at_s).pages_sharing for at_s in (-1.0, 0.0, 1.5, 3.0, 5.0)] == [1, 1, 2, 3, 3]
    assert count_merges([sample(0.0, 100, cow=7), sample(1.0, 200, cow=57)]) == 110 + 50
    assert count_merges([sample(0.0, 100, cow=None), sample(1.0, 200, cow=None)]) is None


def test_the_lag_behind_flat_out_leaves_the_first_tenth_out() -> None:
    flat, slow = made_up("flat", rising(10)), made_up("adaptive", lambda at_s: max(at_s - 5, 0) * 10)
    assert worst_lag_share(slow, flat, 1000.0, 0.0) == pytest.approx(0.5)  # at 100 pages, a tenth
    assert worst_lag_share(slow, flat, 1000.0, 50.0) == pytest.approx(0.1)
    assert worst_lag_share(made_up("default", lambda at_s: 20 * at_s), flat, 1000.0, 0.0) == pytest.approx(-1.0)


def test_a_work_is_one_table_its_goals_and_one_picture(tmp_path: Path) -> None:
    decisions = [
        {"numbers": dict.fromkeys(BACKLOG, size) | {"merge_ratio": ratio}}
        for size, ratio in ((9, 0.25), (1 << 20, 0.5))
    ]
    runs = [made_up("adaptive", rising(20), decisions=decisions), made_up("off", lambda _: 0, share=0.0)]
    results = measure_work(runs)
    assert (results["adaptive"].min_merge_ratio, results["adaptive"].backlog_mib) == (0.25, len(BACKLOG))
    goal = Goal(what="90 % after", measured=None, limit=9.0, unit="s")
    report = write_work(STORM, results, [goal], ["no run of flat"])
    assert f"## storm\n\n{STORM.title}" in report
    assert "\n| adaptive | 4 | 28 | 25.0 | 22.5 | - |" in report
    assert "\n- 90 % after: never, goal at most 9.00 s: MISSED\n- not judged: no run of flat\n" in report
    draw_work(STORM, runs, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").stat().st_size > 1000
