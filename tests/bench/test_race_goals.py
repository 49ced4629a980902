"""The race's goals, judged on figures made up for each case."""

from __future__ import annotations

import pytest

from bench.race.goals import GOALS, judge_work
from bench.race.measures import Figures
from virtksm.values import replace

PEER = Figures(
    watched_s=260.0,
    held_mib=1000.0,
    until_most_s=100.0,
    cpu_until_most_s=50.0,
    idle_after_s=None,
    cpu_until_idle_s=None,
    cpu_s=100.0,
    rest_share=0.2,
    hour_cpu_s=1000.0,
    saved_mib_s_per_cpu_s=1000.0,
    merges=1000,
    neighbour_rest_ms=5.0,
    lag_share=0.15,
    late_lag_share=0.15,
    min_merge_ratio=None,
    backlog_mib=None,
    used_mib=500.0,
    used_at_end_mib=500.0,
    told_mib=None,
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
    backlog_mib=0.0,
    min_merge_ratio=0.25,
    told_mib=1000.0,
)
OFF = replace(PEER, used_mib=1500.0, used_at_end_mib=1500.0)
CLAIRVOYANT = replace(PEER, until_most_s=26.0, cpu_s=27.0)


def missed(work: str, ours: Figures = OURS, **others: Figures) -> list[str]:
    """Judge a work beside ksmtuned, a clairvoyant, flat out, no KSM and these; return the goals that are missed."""
    results = {"adaptive": ours, "ksmtuned": PEER, "clairvoyant": CLAIRVOYANT, "flat": PEER, "off": OFF, **others}
    return [goal.what for goal in judge_work(work, results)[0] if not goal.met]


@pytest.mark.parametrize(
    ("work", "ours", "what"),
    [
        ("storm", replace(OURS, until_most_s=33.0), "90 % after, 1.25 of the clairvoyant's"),
        ("storm", replace(OURS, cpu_until_idle_s=None), "ksmd CPU until idle, 1.6 of the clairvoyant's"),
        ("storm", replace(OURS, hour_cpu_s=101.0), "ksmd CPU in the hour, 1/10 of the best peer's"),
        ("storm", replace(OURS, rest_share=0.004), "ksmd at rest"),
        ("storm", replace(OURS, saved_mib_s_per_cpu_s=4999.0), "saved MiB-s per ksmd-s, 5 of the best peer's"),
        ("storm", replace(OURS, neighbour_rest_ms=5.2), "neighbour at rest, as beside the quickest peer"),
        ("small", replace(OURS, until_most_s=103.5), "90 % after, the best peer's and 3 s"),
        ("linux", replace(OURS, cpu_until_idle_s=51.0), "ksmd CPU until idle, the fastest peer's until its 90 %"),
        ("twin", replace(OURS, until_most_s=None), "90 % after, 1/2 of the best peer's"),
        ("growth", replace(OURS, lag_share=1.0, late_lag_share=-0.2), "behind flat out at worst"),
        ("churn", replace(OURS, held_mib=949.0), "savings, within 5 % of the best peer's"),
        ("thrash", replace(OURS, merges=201), "merges, 1/5 of flat out's"),
        ("thrash", replace(OURS, min_merge_ratio=0.5), "says so: the share that it expects to merge, and to last"),
        ("zero", replace(OURS, used_mib=521.0), "used 10 s after settling, as flat out and 2 % of what that frees"),
        ("zero", replace(OURS, told_mib=949.0), "says that is saved, 95 % of what came free"),
        ("zero", replace(OURS, told_mib=1051.0), "says that is saved, 105 % of what came free"),
        ("stop", replace(OURS, backlog_mib=5.0), "idle again, with a backlog of"),
    ],
)
def test_one_goal_is_missed(work: str, ours: Figures, what: str) -> None:
    assert missed(work, ours) == [what]


def test_the_best_peer_is_the_fastest_for_time_and_the_cheapest_that_merges_for_the_hour() -> None:
    assert [work for work in GOALS if missed(work)] == []
    fast, never = replace(PEER, until_most_s=60.0, hour_cpu_s=2000.0), replace(PEER, until_most_s=None)
    useless = replace(never, hour_cpu_s=1.0)
    assert missed("storm", **{"advisor-late": fast, "default": useless}) == ["90 % after, 1/3 of the best peer's"]
    assert missed("twin", replace(OURS, until_most_s=130.0), ksmtuned=never) == [], "half the rest of the run"
    assert missed("twin", replace(OURS, until_most_s=131.0), ksmtuned=never) == ["90 % after, 1/2 of the best peer's"]


def test_what_lacks_a_run_is_not_judged() -> None:
    goals, left_out = judge_work("storm", {"adaptive": OURS, "flat": PEER})
    assert [goal.what for goal in goals] == ["ksmd at rest"]
    assert left_out == ["no run of clairvoyant", "no run of a peer"]
    assert judge_work("storm", {"ksmtuned": PEER})[0] == []
