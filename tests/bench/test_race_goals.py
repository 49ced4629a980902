"""The race's goals, judged on figures made up for each case, and the report and the curves that show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.figures import Summary
from bench.race.goals import GOALS, judge_work
from bench.race.measures import Figures, Results, measure_work
from bench.race.pictures import COLOURS, POINTS_MOST, trace_work
from bench.race.records import GuestLife, Record, Sample
from bench.race.report import write_report, write_table
from bench.race.rules import CPU, HOUR, LEAD, NEIGHBOUR, PARKS, REST, SAID, SAVINGS, TIME
from bench.race.works import list_works


def rest_of(median_ms: float) -> Summary:
    return Summary(samples=10, median=median_ms, p99=9.0, least=1.0, most=9.0)


def figures(contender: str, **changes: object) -> Figures:
    given: dict[str, Any] = {
        "contender": contender,
        "last_settled_s": 40.0,
        "length_s": 300.0,
        "held_mib": 1000.0,
        "until_most_s": 100.0,
        "cpu_until_most_s": 50.0,
        "parked_after_s": None,
        "cpu_until_parked_s": None,
        "cpu_s": 100.0,
        "rest_share": 0.2,
        "hour_cpu_s": 1000.0,
        "saved_mib_s_per_cpu_s": 1000.0,
        "merges": 1000,
        "neighbour_sweep": None,
        "neighbour_rest": rest_of(5.0),
        "own_cpu_s": None,
        "backoff_most": None,
        "owed_mib": None,
        "last_decision": None,
    }
    given.update(changes)
    return Figures(**given)


def ours(**changes: object) -> Figures:
    given: dict[str, Any] = {
        "until_most_s": 30.0,
        "parked_after_s": 35.0,
        "cpu_until_parked_s": 40.0,
        "rest_share": 0.001,
        "hour_cpu_s": 50.0,
        "saved_mib_s_per_cpu_s": 9000.0,
        "merges": 100,
    }
    given.update(changes)
    return figures("adaptive", **given)


CLAIRVOYANT = figures("clairvoyant", until_most_s=26.0, cpu_s=27.0)
OFF = figures("off", until_most_s=None, neighbour_rest=rest_of(4.9))
PEER = figures("ksmtuned")


def verdicts(work: str, *runs: Figures, lag: float = 0.0, late_lag: float = 0.0) -> dict[str, list[bool | None]]:
    results = Results(
        work=work,
        told="made up",
        quick=False,
        final_mib=1000.0,
        figures={run.contender: run for run in runs},
        lag_shares={run.contender: lag for run in runs},
        late_lag_shares={run.contender: late_lag for run in runs},
    )
    found: dict[str, list[bool | None]] = {}
    for verdict in judge_work(results):
        found.setdefault(verdict.column, []).append(verdict.met)
    return found


def test_a_storm_in_which_all_is_met() -> None:
    assert verdicts("storm", ours(), CLAIRVOYANT, PEER, OFF) == {
        TIME: [True, True],
        CPU: [True],
        HOUR: [True],
        REST: [True],
        LEAD: [True],
        NEIGHBOUR: [True],
    }


@pytest.mark.parametrize(
    ("changes", "column", "met"),
    [
        ({"until_most_s": 33.0}, TIME, [False, True]),
        ({"until_most_s": 34.0}, TIME, [False, False]),
        ({"until_most_s": None}, TIME, [False, False]),
        ({"cpu_until_parked_s": 44.0}, CPU, [False]),
        ({"cpu_until_parked_s": None}, CPU, [False]),
        ({"hour_cpu_s": 101.0}, HOUR, [False]),
        ({"rest_share": 0.003}, REST, [False]),
        ({"saved_mib_s_per_cpu_s": 4999.0}, LEAD, [False]),
        ({"neighbour_rest": rest_of(5.2)}, NEIGHBOUR, [False]),
    ],
)
def test_a_storm_in_which_one_goal_is_missed(changes: dict[str, Any], column: str, met: list[bool | None]) -> None:
    assert verdicts("storm", ours(**changes), CLAIRVOYANT, PEER, OFF)[column] == met


def test_goals_whose_counterpart_did_not_run_are_not_judged() -> None:
    found = verdicts("storm", ours(), PEER)

    assert (found[TIME], found[CPU], found[NEIGHBOUR]) == ([None, True], [None], [None])
    assert verdicts("storm", ours())[HOUR] == [None]


def test_without_a_run_of_ours_nothing_is_judged() -> None:
    assert verdicts("storm", CLAIRVOYANT, PEER) == {}


def test_the_best_peer_is_the_fastest_for_time_and_the_cheapest_that_merges_for_the_hour() -> None:
    fast = figures("advisor-late", until_most_s=60.0, hour_cpu_s=2000.0)
    cheap_but_useless = figures("default", until_most_s=None, hour_cpu_s=1.0)
    found = verdicts("storm", ours(hour_cpu_s=100.0), CLAIRVOYANT, PEER, fast, cheap_but_useless, OFF)

    assert found[TIME] == [True, False]  # 30 s is more than a third of 60
    assert found[HOUR] == [True]


def test_where_no_peer_gets_there_the_rest_of_the_run_is_the_bound() -> None:
    late = [figures(name, until_most_s=None, held_mib=10.0) for name in ("ksmtuned", "advisor-boot")]

    assert verdicts("storm", ours(until_most_s=86.0), *late)[TIME][1] is True  # a third of 260 s
    assert verdicts("storm", ours(until_most_s=87.0), *late)[TIME][1] is False


def test_flat_out_is_no_peer() -> None:
    assert verdicts("storm", ours(), figures("flat", until_most_s=1.0))[TIME][1] is None


@pytest.mark.parametrize(("until_s", "met"), [(103.0, True), (103.5, False), (-4.0, True)])
def test_a_small_storm_may_be_three_seconds_behind(until_s: float, met: bool) -> None:
    assert verdicts("small", ours(until_most_s=until_s), PEER)[TIME] == [met]


def test_growth_is_judged_by_its_lag_behind_flat_out() -> None:
    assert verdicts("growth", ours(), figures("flat"), PEER, lag=0.15, late_lag=0.15)[SAVINGS] == [True, True]
    assert verdicts("growth", ours(), figures("flat"), PEER, lag=1.0, late_lag=-0.2)[SAVINGS] == [False, True]
    assert verdicts("growth", ours(), figures("flat"), PEER, lag=0.16, late_lag=0.16)[SAVINGS] == [False, False]
    assert verdicts("growth", ours(), PEER)[SAVINGS] == [None, None]


def test_churn_is_judged_by_what_is_held() -> None:
    assert verdicts("churn", ours(held_mib=950.0), PEER)[SAVINGS] == [True]
    assert verdicts("churn", ours(held_mib=949.0), PEER)[SAVINGS] == [False]


def test_thrash_is_judged_by_merges_and_by_what_the_policy_says() -> None:
    found = verdicts("thrash", ours(merges=199, backoff_most=8), figures("flat"), PEER)
    assert (found[SAVINGS], found[SAID]) == ([True], [True])

    found = verdicts("thrash", ours(merges=200, backoff_most=1), figures("flat"), PEER)
    assert (found[SAVINGS], found[SAID]) == ([False], [False])


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({"owed_mib": 0.0}, True),
        ({"owed_mib": 5.0}, False),
        ({"owed_mib": None}, False),
        ({"owed_mib": 0.0, "parked_after_s": None}, False),
    ],
)
def test_after_a_stop_it_is_parked_and_owes_nothing(changes: dict[str, Any], met: bool) -> None:
    assert verdicts("stop", ours(**changes), PEER)[PARKS] == [met]


def test_every_work_has_goals() -> None:
    assert set(list_works(quick=False)) <= set(GOALS)


def made_up_record(contender: str, samples: int = 1200) -> Record:
    return Record(
        work="storm",
        told="made up",
        contender=contender,
        quick=True,
        length_s=300.0,
        busy_until_s=0.0,
        savings_until_s=300.0,
        expected_sharing_pages=1,
        began_utc="2026-01-01T00:00:00+00:00",
        revision="0123abc",
        machine={"cores": 2},
        guests=[GuestLife(name="g0", started_s=0.0, settled_s=1.0)],
        samples=[
            Sample(
                at_s=number / 4,
                pages_sharing=number,
                pages_shared=0,
                full_scans=0,
                pages_scanned=0,
                pages_skipped=0,
                cow_ksm=0,
                ksmd_cpu_s=100.0 + number,
                run=1,
                pages_to_scan=100,
                sleep_millisecs=20,
            )
            for number in range(samples)
        ],
        neighbour=[(1.0, 5.0)],
    )


def test_curves_are_thin_begin_at_no_cpu_and_keep_the_last_sample() -> None:
    order = list(COLOURS)
    records = [made_up_record(name) for name in ("flat", "off", "adaptive")]

    curves = trace_work(records, order)

    assert [curve.contender for curve in curves] == ["adaptive", "flat"]
    for curve in curves:
        assert len(curve.at_s) == len(curve.saved_mib) == len(curve.ksmd_cpu_s) <= POINTS_MOST + 1
        assert (curve.ksmd_cpu_s[0], curve.at_s[-1], curve.saved_mib[-1]) == (0.0, 1199 / 4, 1199 / 256)


def test_a_curve_of_one_sample() -> None:
    (curve,) = trace_work([made_up_record("flat", 1)], ["flat"])

    assert curve.at_s == (0.0,)


def test_the_report_tells_machine_concessions_figures_and_goals() -> None:
    records = [made_up_record("adaptive"), made_up_record("ksmtuned")]

    report = write_report(
        [measure_work(records)],
        records,
        ["adaptive", "ksmtuned"],
        {"ksmtuned": "told a fib"},
        {"storm": "storm.svg"},
    )

    assert "# Race (quick run" in report
    assert "- cores: 2" in report
    assert "**ksmtuned**: told a fib" in report
    assert "![storm: savings and ksmd's CPU over time](storm.svg)" in report
    assert "| storm | ksmd at rest |" in report
    assert "MISSED" in report
    assert "| storm | ksmtuned | 2026-01-01T00:00:00+00:00 | 0123abc |" in report


def test_the_report_tells_every_machine_once() -> None:
    one, other = {"cores": 2, "kernel": "6.12"}, {"cores": 2, "kernel": "6.18"}
    records = [
        replace(made_up_record(name), machine=machine) for name, machine in zip("abc", (one, other, one), strict=True)
    ]

    report = write_report([measure_work(records)], records, ["a", "b", "c"], {}, {})

    assert report.count("- kernel: 6.12") == report.count("- kernel: 6.18") == 1
    assert report.index("Machine 1 of 2") < report.index("6.12") < report.index("Machine 2 of 2") < report.index("6.18")


def test_the_report_without_ours_judges_nothing() -> None:
    records = [made_up_record("flat")]

    assert "Nothing to judge" in write_report([measure_work(records)], records, ["flat"], {}, {})


def test_a_cell_cannot_break_a_table() -> None:
    assert write_table(("a", "b"), [("1|2", "3")]).splitlines()[-1] == "| 1\\|2 | 3 |"
