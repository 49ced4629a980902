"""Issue 3's goals, work by work, as one table of rules; and their verdicts.

Pure: results in, verdicts out. What a rule says is in rules.py. What lacks a run is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.race.measures import Results
from bench.race.rules import (
    CPU,
    HOUR,
    LEAD,
    NEIGHBOUR,
    OURS,
    PARKS,
    REST,
    SAID,
    SAVINGS,
    TIME,
    NotRun,
    Rule,
    Verdict,
    cpu_of_best_peer,
    cpu_over_clairvoyant,
    hour_of_best_peer,
    lag_at_most,
    late_lag_at_most,
    leads_by,
    merges_of_flat,
    parks_again,
    rest_below,
    savings_within,
    says_thrash,
    smallest_at_rest,
    time_behind_best_peer,
    time_over_best_peer,
    time_over_clairvoyant,
)

ALWAYS: tuple[tuple[str, Rule], ...] = ((LEAD, leads_by(5)), (NEIGHBOUR, smallest_at_rest))

GOALS: Mapping[str, tuple[tuple[str, Rule], ...]] = {
    "storm": (
        (TIME, time_over_clairvoyant(1.25)),
        (TIME, time_over_best_peer(3)),
        (CPU, cpu_over_clairvoyant(1.6)),
        (HOUR, hour_of_best_peer(10)),
        (REST, rest_below(0.3)),
        *ALWAYS,
    ),
    "small": (
        (TIME, time_behind_best_peer(3)),
        (CPU, cpu_over_clairvoyant(1.6)),
        (HOUR, hour_of_best_peer(5)),
        (REST, rest_below(0.3)),
        *ALWAYS,
    ),
    "linux": (
        (TIME, time_behind_best_peer(10)),
        (CPU, cpu_of_best_peer),
        (HOUR, hour_of_best_peer(10)),
        (REST, rest_below(0.3)),
        *ALWAYS,
    ),
    "twin": (
        (TIME, time_over_best_peer(2)),
        (CPU, cpu_over_clairvoyant(1.6)),
        (HOUR, hour_of_best_peer(5)),
        (REST, rest_below(0.3)),
        *ALWAYS,
    ),
    "growth": (
        (SAVINGS, lag_at_most(15)),
        (SAVINGS, late_lag_at_most(15)),
        (HOUR, hour_of_best_peer(5)),
        (REST, rest_below(0.3)),
        *ALWAYS,
    ),
    "churn": ((SAVINGS, savings_within(5)), (HOUR, hour_of_best_peer(5)), (REST, rest_below(1)), *ALWAYS),
    "thrash": (
        (SAVINGS, merges_of_flat(5)),
        (SAID, says_thrash),
        (HOUR, hour_of_best_peer(10)),
        (REST, rest_below(1)),
        (NEIGHBOUR, smallest_at_rest),
    ),
    "stop": ((PARKS, parks_again), (REST, rest_below(0.3)), *ALWAYS),
}


def judge_work(results: Results) -> list[Verdict]:
    """Judge all goals of one work; an empty list for a work without goals or without a run of ours."""
    if OURS not in results.figures:
        return []
    verdicts = []
    for column, rule in GOALS.get(results.work, ()):
        try:
            verdicts.append(rule(results))
        except NotRun as error:
            verdicts.append(Verdict(column=column, measured="", goal=f"no run of {error}", met=None))
    return verdicts
