"""The race's works: tables of timed steps over guests that fit, and how much of their memory is equal."""

from __future__ import annotations

import pytest

from bench.race.probes import simulate_probes
from bench.race.steps import sharing_pages
from bench.race.works import Scale, list_works, stop, storm, thrash, twin
from bench.steps import Start, Stop
from demo.guests import PAGES_PER_MIB

WORKS = ["storm", "small", "twin", "growth", "churn", "thrash", "stop", "linux"]


def test_all_works_of_the_issue_are_there_in_both_sizes() -> None:
    assert list(list_works(quick=False)) == WORKS
    assert list(list_works(quick=True)) == WORKS


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", WORKS)
def test_a_work_is_a_run_that_can_be_followed(name: str, quick: bool) -> None:
    work = list_works(quick=quick)[name]
    names = [guest.name for guest in work.guests]
    started = {step.guest.name: step.at_s for step in work.steps if isinstance(step, Start)}

    assert len(names) == len(set(names))
    assert min(step.at_s for step in work.steps) == 0.0
    assert max(step.at_s for step in work.steps) < work.length_s
    assert work.busy_until_s < work.length_s
    assert all(started[step.name] < step.at_s for step in work.steps if isinstance(step, Stop))
    assert 0 < work.expected_sharing_pages < sum(guest.memory_mib for guest in work.guests) * PAGES_PER_MIB


@pytest.mark.parametrize("name", ["storm", "twin", "stop", "linux"])
def test_probes_cost_something_and_less_than_half_a_percent_of_a_core(name: str) -> None:
    assert 0 < simulate_probes(list_works(quick=True)[name]) < 0.005 * 3600


@pytest.mark.parametrize("name", WORKS)
def test_full_runs_last_as_long_as_the_issue_says(name: str) -> None:
    assert list_works(quick=False)[name].length_s == (700.0 if name == "growth" else 300.0)


def test_the_storm_is_eight_guests_of_a_gib_five_seconds_apart() -> None:
    work = list_works(quick=False)["storm"]

    assert [(step.at_s, step.guest.memory_mib) for step in work.steps if isinstance(step, Start)] == [
        (5.0 * number, 1024) for number in range(8)
    ]


def test_what_is_equal_takes_one_page_and_the_rest_is_saved() -> None:
    work = storm(Scale(guests=3, memory_mib=103, every_s=1.0, length_s=60.0))  # 50 common, 10 zero, 40 own each

    zero = 30 * 256
    assert work.expected_sharing_pages == 2 * 50 * 256 + zero - zero // 256


def test_twins_own_pages_are_equal() -> None:
    work = twin(Scale(guests=1, memory_mib=103, every_s=0.0, length_s=60.0), filled_over_s=10)

    assert work.expected_sharing_pages == 100 * 256
    assert [guest.name for guest in work.already] == ["old"]


def test_thrashing_pages_live_for_seconds() -> None:
    work = thrash(Scale(guests=2, memory_mib=128, every_s=1.0, length_s=60.0), rewrite_common_per_s=2048)

    assert "more than 8 s" in work.told


def test_savings_count_until_the_first_stop() -> None:
    work = stop(Scale(guests=4, memory_mib=64, every_s=1.0, length_s=60.0))

    assert work.savings_until_s == 30.0
    assert [step.name for step in work.steps if isinstance(step, Stop)] == ["g0", "g2"]


@pytest.mark.parametrize(
    ("owned_mib", "saved_mib"),
    [
        ([], 0),
        ([(1, 10)], 0),
        ([(1, 10), (2, 10)], 0),
        ([(1, 10), (1, 10)], 10),
        ([(1, 5), (2, 9), (1, 7), (2, 9)], 14),
    ],
)
def test_sharing_is_all_but_the_largest_of_each_owner(owned_mib: list[tuple[int, int]], saved_mib: int) -> None:
    assert sharing_pages(owned_mib) == saved_mib * PAGES_PER_MIB
