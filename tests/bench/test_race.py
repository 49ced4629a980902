"""The race without a race: works that can be followed, figures of runs made up, goals, the table and the picture."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.figures import parse_cpu
from bench.race.contenders import BACKLOG, FRUITLESS_SCANS, Clairvoyant, Moment, read_backlog_mib
from bench.race.goals import GOALS, judge_work
from bench.race.ground import Ground, GuestLife
from bench.race.measures import HOST_KIB, USED_S, measure_run, measure_work, simulate_check_scans
from bench.race.report import draw_work, write_work
from bench.race.run import Run, Sample, parse_times
from bench.race.works import Scale, huge, list_works, storm
from bench.sim.driver import run_policy
from bench.sim.host import SimHost
from bench.steps import Start, Stop
from demo.guests import KEPT_MIB, PAGES_PER_MIB
from tests.lab.ksm import Ksm
from virtksm.config.schema import AdaptiveParams
from virtksm.json_output import to_output
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.values import replace

SETTLED_S = 20.0
STORM = list_works(quick=False)["storm"]


@pytest.mark.parametrize("quick", [False, True])
def test_a_work_is_a_run_that_can_be_followed_and_has_goals(quick: bool) -> None:
    works = list_works(quick=quick)
    assert set(works) == set(GOALS)
    for work in works.values():
        started = {step.guest.name: step.at_s for step in work.steps if isinstance(step, Start)}
        assert len({guest.name for guest in work.guests}) == len(work.guests)
        assert min(step.at_s for step in work.steps) == 0.0
        assert max(work.busy_until_s, *(step.at_s for step in work.steps)) < work.length_s
        assert all(started[step.name] < step.at_s for step in work.steps if isinstance(step, Stop))
        most = sum(guest.memory_mib for guest in work.guests) * PAGES_PER_MIB
        assert not work.has_clairvoyant or 0 < work.expected_sharing_pages < most


@pytest.mark.parametrize("quick", [False, True])
def test_in_zero_each_guest_fills_its_memory_by_growing_once_after_all_have_been_measured(quick: bool) -> None:
    work = list_works(quick=quick)["zero"]
    last_start_s = max(step.at_s for step in work.steps)
    for guest in work.guests:
        grow_mib = guest.memory_mib - KEPT_MIB - guest.content_mib
        within_s = 60 * grow_mib / guest.grow_mib_per_min
        assert work.changes_s == guest.grow_after_s + within_s
        assert guest.grow_after_s > last_start_s + USED_S, "the first to settle has not begun"
        assert guest.zero_mib + guest.grow_zero_mib == pytest.approx(0.6 * (guest.content_mib + grow_mib), abs=1)
        assert f" grow_after={guest.grow_after_s} grow_zero={guest.grow_zero_mib}" in guest.cmdline()
    assert last_start_s + work.changes_s + USED_S < 0.75 * work.length_s


def test_what_is_equal_takes_one_page_and_the_rest_is_saved() -> None:
    work = storm(Scale(guests=3, memory_mib=103, every_s=1.0, length_s=60.0))  # 50 common, 10 zero, 40 own each
    assert work.expected_sharing_pages == 2 * 50 * 256 + 30 * 256 - 30
    of_huge_pages = huge(Scale(guests=3, memory_mib=103, every_s=1.0, length_s=60.0))
    assert of_huge_pages.guests == work.guests
    assert of_huge_pages.expected_sharing_pages == 2 * 50 * 256, "no counter tells of zero pages"


def test_our_decisions_say_the_backlog_that_is_judged_and_check_scans_cost_little() -> None:
    work = list_works(quick=True)["storm"]
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always"))
    run = run_policy(SimHost(total_kib=HOST_KIB), policy, work.steps, until_s=60.0)
    backlogs = [read_backlog_mib(to_output(dict(report.decision.reason.numbers))) for _, report in run.passes]
    assert max(backlogs) > 4 * 300
    assert backlogs[-1] == 0
    assert 0 <= simulate_check_scans(work) < 0.003 * 3600


class FakeGround(Ground):
    """A ground without guests, whose KSM is a folder."""

    def __init__(self, ksm: Ksm) -> None:
        self.ksm = ksm


def test_the_clairvoyant_scans_from_the_last_settling_until_all_is_merged_or_scans_bring_no_more(
    tmp_path: Path,
) -> None:
    ksm, work = Ksm(tmp_path), storm(Scale(guests=2, memory_mib=103, every_s=1.0, length_s=60.0))
    enough = round(work.expected_sharing_pages * 0.99)
    for steps in (
        ((enough - 1, 0, 10_000), (enough, 0, 0), (0, 0, 0)),
        ((1000, 5, 10_000), (1000, 5 + FRUITLESS_SCANS, 10_000), (1000, 6 + FRUITLESS_SCANS, 0)),
    ):
        ksm.write(pages_sharing=0, full_scans=0, pages_to_scan=100, sleep_millisecs=20)
        contender = Clairvoyant()
        contender.begin(FakeGround(ksm), work)
        contender.act(Moment(all_started=True, all_settled=False))
        assert ksm.read("pages_to_scan") == 0
        contender.act(Moment(all_started=True, all_settled=True))
        for sharing, scans, pages in steps:
            ksm.write(pages_sharing=sharing, full_scans=scans)
            contender.act(Moment(all_started=True, all_settled=True))
            assert ksm.read("pages_to_scan") == pages


def made_up(contender: str, pages_at_s: Callable[[int], int], *, idle_from_s: float = 1e9) -> Run:
    """Make up a run of 300 s: ksmd takes half a core until it is idle."""
    numbers = {"numbers": dict.fromkeys(BACKLOG, 1 << 20) | {"merge_ratio": 0.25}}
    return Run(
        work=STORM,
        contender=contender,
        guests=[GuestLife(name="g0", settled_s=SETTLED_S)],
        samples=[
            Sample(
                at_s=float(at_s),
                pages_sharing=pages_at_s(at_s),
                pages_shared=0,
                cow_ksm=0,
                ksmd_cpu_s=1000.0 + min(at_s, idle_from_s) / 2,
                is_idle=at_s >= idle_from_s,
                resident_mib=at_s,
                available_mib=8000.0 - 2 * at_s,
            )
            for at_s in range(301)
        ],
        neighbour=[(float(at_s), 5.0 + at_s / 10 if at_s < idle_from_s else 4.0) for at_s in range(300)],
        decisions=[numbers] if contender == "adaptive" else [],
    )


def rising(per_s: int) -> Callable[[int], int]:
    return lambda at_s: min(at_s * per_s, 1000)


def test_a_run_s_figures_are_those_of_its_definitions_and_make_a_table_and_a_picture(tmp_path: Path) -> None:
    runs = [
        made_up("adaptive", rising(20), idle_from_s=60.0),
        made_up("flat", rising(100)),
        made_up("off", rising(0), idle_from_s=0.0),
    ]
    results = measure_work(runs, check_scans_s=7.0)
    ours, flat = results["adaptive"], results["flat"]
    assert (ours.held_mib, ours.until_most_s, ours.idle_after_s) == (1000 / 256, 45.0 - SETTLED_S, 60.0 - SETTLED_S)
    assert (ours.cpu_until_most_s, ours.cpu_until_idle_s, ours.rest_share) == (22.5, 30.0, 0.0)
    assert ours.hour_cpu_s == pytest.approx(37.0)
    assert (ours.neighbour_rest_ms, ours.min_merge_ratio, ours.backlog_mib) == (4.0, 0.25, len(BACKLOG))
    assert (ours.neighbour_p95_ms, ours.neighbour_p99_ms) == (5.0 + 5.6, 5.0 + 5.9), "the 57th and 60th of 60"
    assert (ours.used_mib, ours.used_at_end_mib) == (30.0 - 600 / 256, 300.0 - 1000 / 256), "10 s after"
    assert ours.used_changed_mib is None
    changes = replace(runs[0], work=replace(STORM, changes_s=100.0))
    changed = measure_run(changes, 1000.0)
    assert (changed.used_mib, changed.used_changed_mib) == (ours.used_mib, 130.0 - 1000 / 256)
    assert ours.taken_mib == 600.0
    assert ours.until_earlier_s is None
    assert ours.lag_share == pytest.approx(0.8)
    assert ours.merges == 1000
    assert measure_run(replace(runs[0], merged_pages=400), 1000.0).merges == 400, "the rest was written to"
    assert (flat.until_most_s, flat.idle_after_s, flat.rest_share) == (9.0 - SETTLED_S, None, 0.5)
    assert flat.hour_cpu_s == pytest.approx(1800.0), "it scans for ever"
    assert results["off"].until_most_s is None

    goals, left_out = judge_work("storm", results)
    report = write_work(STORM, results, goals, left_out, {"cpu": "Z80", "commit": "abc-dirty"})
    assert "\ncpu Z80, commit abc-dirty.\n" in report
    assert "\n| adaptive | 4 | 28 | - | 296 | 600 | 25.0 | - | 22.5 | 40.0 |" in report
    assert "| 4.00 | 10.6 | 10.9 |" in report
    assert "| 4.00 | - | - |" in report, "off never scans"
    assert "\n- ksmd at rest: 0.00 %, goal at most 0.30 %: met\n" in report
    assert "\n- not judged: no run of clairvoyant\n- not judged: no run of a peer\n" in report
    draw_work(STORM, runs, tmp_path / "one.svg")
    assert (tmp_path / "one.svg").stat().st_size > 1000
    assert parse_times("9.500 4.1\n10.000 4.2\n10.5", 10.0) == [(0.0, 4.2)]


def test_of_two_changes_the_earlier_is_judged_by_what_is_held_when_the_later_begins() -> None:
    work = replace(STORM, changes_s=200.0, earlier=(10.0, 80.0))
    slow = made_up("adaptive", lambda at_s: 1000 * (at_s > 50) + 1000 * (at_s > 250))
    quick = made_up("ksmtuned", lambda at_s: 1000 * (at_s > 29) + 1000 * (at_s > 250))
    never = made_up("default", lambda at_s: 1000 * (at_s > 100))
    results = measure_work([replace(run, work=work) for run in (slow, quick, never)])
    assert [one.until_earlier_s for one in results.values()] == [51.0 - SETTLED_S - 10.0, 0.0, None]
    assert results["adaptive"].until_most_s == 251.0 - SETTLED_S - 200.0


def test_a_cpu_is_told_by_all_that_the_kernel_says_of_its_kind() -> None:
    one = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\nflags\t\t: fpu\n"
    assert parse_cpu(f"{one}\n{one.replace('EPYC', 'other')}") == "AMD EPYC (cpu family 26, model 2, stepping 1)"
    assert parse_cpu("processor\t: 0\nBogoMIPS\t: 50.00\n") == ""


PEER = replace(
    measure_run(made_up("ksmtuned", rising(10)), 1000.0),
    held_mib=1000.0,
    until_most_s=100.0,
    cpu_until_most_s=50.0,
    hour_cpu_s=1000.0,
    saved_mib_s_per_cpu_s=1000.0,
    merges=1000,
    used_mib=500.0,
    used_changed_mib=500.0,
    used_at_end_mib=500.0,
    taken_mib=500.0,
    until_earlier_s=100.0,
    lag_share=0.15,
    late_lag_share=0.15,
)
OURS = replace(
    PEER,
    until_most_s=30.0,
    idle_after_s=35.0,
    cpu_until_idle_s=40.0,
    rest_share=0.001,
    hour_cpu_s=50.0,
    saved_mib_s_per_cpu_s=9000.0,
    merges=200,
    min_merge_ratio=0.25,
    backlog_mib=0.0,
    told_mib=1000.0,
)
RUNS = {
    "ksmtuned": PEER,
    "clairvoyant": replace(PEER, until_most_s=26.0, cpu_s=27.0),
    "flat": PEER,
    "off": replace(PEER, used_mib=1500.0, used_changed_mib=1500.0, used_at_end_mib=1500.0, taken_mib=1500.0),
}


@pytest.mark.parametrize(
    ("work", "changes", "what"),
    [
        ("storm", {"until_most_s": 33.0}, "90 % after, 1.25 of the clairvoyant's"),
        ("storm", {"hour_cpu_s": 101.0}, "ksmd CPU in the hour, 1/10 of the best peer's"),
        ("twin", {"until_most_s": None}, "90 % after, 1/2 of the best peer's"),
        ("growth", {"lag_share": 1.0, "late_lag_share": -0.2}, "behind flat out at worst"),
        ("churn", {"held_mib": 949.0}, "savings, within 5 % of the best peer's"),
        ("thrash", {"merges": 201}, "merges, 1/5 of flat out's"),
        ("zero", {"used_mib": 521.0}, "used 10 s after settling, as flat out and 2 % of what that frees"),
        ("zero", {"used_changed_mib": 521.0}, "used 10 s after growth, as flat out and 2 % of what that frees"),
        ("zero", {"used_at_end_mib": 400.0}, "says that is saved, 95 % of what came free, by RSS"),
        ("zero", {"taken_mib": 600.0}, "says that is saved, 105 % of what came free, by MemAvailable"),
        ("drift", {"until_earlier_s": 126.0}, "90 % after the earlier change, 1.25 of the best peer's"),
        ("stop", {"backlog_mib": 5.0}, "idle again, with a backlog of"),
    ],
)
def test_a_run_that_meets_all_goals_misses_one_if_one_figure_is_worse(
    work: str, changes: dict[str, object], what: str
) -> None:
    for ours, missed in ((OURS, []), (replace(OURS, **changes), [what])):
        goals, left_out = judge_work(work, {"adaptive": ours, **RUNS})
        assert ([goal.what for goal in goals if not goal.met], left_out) == (missed, [])
