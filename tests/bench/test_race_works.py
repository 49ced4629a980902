"""The race's works and parts: what may merge in each, the simulated check scans, what is read, when contenders act."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.race.contenders import FRUITLESS_SCANS, Clairvoyant, Moment, read_backlog_mib
from bench.race.goals import GOALS
from bench.race.ground import Ground
from bench.race.measures import HOST_KIB, simulate_check_scans
from bench.race.run import Sampler, parse_times
from bench.race.works import Scale, list_works, sharing_pages, stop, storm, twin
from bench.sim.driver import run_policy
from bench.sim.host import SimHost
from bench.steps import Start, Stop
from demo.guests import PAGES_PER_MIB
from tests.lab.ksm import Ksm
from virtksm.config.schema import AdaptiveParams
from virtksm.json_output import to_output
from virtksm.policy.adaptive import AdaptivePolicy


@pytest.mark.parametrize("quick", [False, True])
def test_a_work_is_a_run_that_can_be_followed_and_has_goals(quick: bool) -> None:
    works = list_works(quick=quick)
    assert set(works) == set(GOALS)
    for work in works.values():
        names = [guest.name for guest in work.guests]
        started = {step.guest.name: step.at_s for step in work.steps if isinstance(step, Start)}
        assert len(names) == len(set(names))
        assert min(step.at_s for step in work.steps) == 0.0
        assert max(work.busy_until_s, *(step.at_s for step in work.steps)) < work.length_s
        assert all(started[step.name] < step.at_s for step in work.steps if isinstance(step, Stop))
        assert 0 < work.expected_sharing_pages < sum(guest.memory_mib for guest in work.guests) * PAGES_PER_MIB


def test_our_decisions_say_the_backlog_that_is_judged_and_check_scans_cost_little() -> None:
    work = list_works(quick=True)["storm"]
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always"))
    run = run_policy(SimHost(total_kib=HOST_KIB), policy, work.steps, until_s=60.0)
    backlogs = [read_backlog_mib(to_output(dict(report.decision.reason.numbers))) for _, report in run.passes]
    assert max(backlogs) > 4 * 300
    assert backlogs[-1] == 0
    assert 0 <= simulate_check_scans(work) < 0.003 * 3600


def test_what_is_equal_takes_one_page_and_the_rest_is_saved() -> None:
    assert sharing_pages([(1, 5), (2, 9), (1, 7), (2, 9)]) == 14 * PAGES_PER_MIB
    work = storm(Scale(guests=3, memory_mib=103, every_s=1.0, length_s=60.0))  # 50 common, 10 zero, 40 own each
    zero = 30 * 256
    assert work.expected_sharing_pages == 2 * 50 * 256 + zero - zero // 256
    assert twin(
        Scale(guests=1, memory_mib=103, every_s=0.0, length_s=60.0), filled_over_s=10
    ).expected_sharing_pages == (100 * 256)
    work = stop(Scale(guests=4, memory_mib=64, every_s=1.0, length_s=60.0))
    assert work.savings_until_s == 30.0


@pytest.fixture
def ksm(tmp_path: Path) -> Ksm:
    ksm = Ksm(tmp_path)
    ksm.write(pages_sharing=10, pages_shared=2, full_scans=3, run=1, pages_to_scan=100, sleep_millisecs=20)
    return ksm


def test_what_a_sample_and_the_neighbours_times_say(ksm: Ksm, tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("11420687843 4337017962 46807\n")
    (tmp_path / "vmstat").write_text("ksm_swpin_copy 0\ncow_ksm 24370\n")
    sampler = Sampler(0.0, lambda: 64.0, ksm, tmp_path, tmp_path / "vmstat")
    sample = sampler.read(1.25)
    assert (sample.at_s, sample.pages_sharing, sample.cow_ksm, sample.is_idle) == (1.25, 10, 24370, False)
    assert sample.ksmd_cpu_s == pytest.approx(11.420688)
    assert sample.used_mib == 64 - 10 / PAGES_PER_MIB
    ksm.write(pages_to_scan=0)
    assert sampler.read(0.0).is_idle
    ksm.write(pages_to_scan=100, run=2)
    assert sampler.read(0.0).is_idle
    assert parse_times("9.500 4.1\n10.000 4.2\n10.250 4.3\n10.5", 10.0) == [(0.0, 4.2), (0.25, 4.3)]


class FakeGround(Ground):
    """A ground without guests, whose KSM is a folder."""

    def __init__(self, ksm: Ksm) -> None:
        self.ksm = ksm


def test_the_clairvoyant_scans_from_the_last_settling_until_all_is_merged_or_scans_bring_no_more(ksm: Ksm) -> None:
    work = storm(Scale(guests=2, memory_mib=103, every_s=1.0, length_s=60.0))
    enough = round(work.expected_sharing_pages * 0.99)
    contender = Clairvoyant()
    contender.begin(FakeGround(ksm), work)
    contender.act(Moment(all_started=True, all_settled=False))
    assert ksm.read("pages_to_scan") == 0
    settled = Moment(all_started=True, all_settled=True)
    for sharing, pages in ((10, 10_000), (enough - 1, 10_000), (enough, 0), (0, 0)):
        ksm.write(pages_sharing=sharing)
        contender.act(settled)
        assert ksm.read("pages_to_scan") == pages
    contender = Clairvoyant()
    contender.begin(FakeGround(ksm), work)
    contender.act(settled)
    for scans, pages in ((5, 10_000), (5 + FRUITLESS_SCANS, 10_000), (6 + FRUITLESS_SCANS, 0)):
        ksm.write(pages_sharing=1000, full_scans=scans)
        contender.act(settled)
        assert ksm.read("pages_to_scan") == pages
