"""The race's works: tables of timed steps over guests that fit, and how much of their memory is equal."""

from __future__ import annotations

import pytest

from bench.race.check_scans import AHEAD_S, HOST_KIB, simulate_check_scans
from bench.race.contenders import read_backlog_mib
from bench.race.goals import GOALS
from bench.race.works import Scale, list_works, sharing_pages, stop, storm, twin
from bench.sim.driver import run_policy
from bench.sim.host import SimHost
from bench.steps import Start, Stop
from demo.guests import PAGES_PER_MIB
from virtksm.config.schema import AdaptiveParams
from virtksm.json_output import to_output
from virtksm.policy.adaptive import AdaptivePolicy

WORKS = ["storm", "small", "twin", "growth", "churn", "thrash", "stop", "linux"]


@pytest.mark.parametrize("quick", [False, True])
def test_a_work_is_a_run_that_can_be_followed_and_has_goals(quick: bool) -> None:
    works = list_works(quick=quick)
    assert list(works) == WORKS
    assert set(works) == set(GOALS)
    for work in works.values():
        names = [guest.name for guest in work.guests]
        started = {step.guest.name: step.at_s for step in work.steps if isinstance(step, Start)}
        assert len(names) == len(set(names))
        assert min(step.at_s for step in work.steps) == 0.0
        assert max(step.at_s for step in work.steps) < work.length_s
        assert work.busy_until_s < work.length_s
        assert all(started[step.name] < step.at_s for step in work.steps if isinstance(step, Stop))
        assert 0 < work.expected_sharing_pages < sum(guest.memory_mib for guest in work.guests) * PAGES_PER_MIB


@pytest.mark.parametrize("name", ["storm", "twin", "linux"])
def test_check_scans_cost_something_and_less_than_half_a_percent_of_a_core(name: str) -> None:
    assert 0 < simulate_check_scans(list_works(quick=True)[name]) < 0.005 * 3600


def test_our_decisions_say_the_backlog_that_is_judged() -> None:
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always"))
    run = run_policy(SimHost(total_kib=HOST_KIB), policy, list_works(quick=True)["storm"].steps, until_s=AHEAD_S)
    backlogs = [read_backlog_mib(to_output(dict(report.decision.reason.numbers))) for _, report in run.passes]
    assert max(backlogs) > 4 * 300
    assert backlogs[-1] == 0
    assert {report.decision.reason.numbers["backoff"] for _, report in run.passes} == {1}


def test_what_is_equal_takes_one_page_and_the_rest_is_saved() -> None:
    work = storm(Scale(guests=3, memory_mib=103, every_s=1.0, length_s=60.0))  # 50 common, 10 zero, 40 own each
    zero = 30 * 256
    assert work.expected_sharing_pages == 2 * 50 * 256 + zero - zero // 256


def test_twins_own_pages_are_equal() -> None:
    work = twin(Scale(guests=1, memory_mib=103, every_s=0.0, length_s=60.0), filled_over_s=10)
    assert work.expected_sharing_pages == 100 * 256
    assert [guest.name for guest in work.already] == ["old"]


def test_savings_count_until_the_first_stop() -> None:
    work = stop(Scale(guests=4, memory_mib=64, every_s=1.0, length_s=60.0))
    assert work.savings_until_s == 30.0
    assert [(step.at_s, step.name) for step in work.steps if isinstance(step, Stop)] == [(30.0, "g0"), (31.0, "g2")]


@pytest.mark.parametrize(
    ("owned_mib", "saved_mib"),
    [([], 0), ([(1, 10), (2, 10)], 0), ([(1, 5), (2, 9), (1, 7), (2, 9)], 14)],
)
def test_sharing_is_all_but_the_largest_of_each_owner(owned_mib: list[tuple[int, int]], saved_mib: int) -> None:
    assert sharing_pages(owned_mib) == saved_mib * PAGES_PER_MIB
