"""What a part of `script/bench sim` gives, and the figures that several have. Pure."""

from dataclasses import dataclass
from math import inf
from statistics import mean

from bench.figures import Goal
from bench.sim.driver import Outcome
from bench.sim.works import HOUR_S
from demo.guests import PAGES_PER_MIB
from virtksm.config.schema import AdaptiveParams
from virtksm.policy.adaptive import AdaptivePolicy

PAGES_PER_GIB = 1024 * PAGES_PER_MIB
DAY_S = 24 * HOUR_S
ALWAYS = AdaptivePolicy(params=AdaptiveParams(engage="always"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a part has given; `rows` begin with their heads."""

    title: str
    rows: list[list[str]]
    goals: list[Goal]


def most(what: str, measured: float, limit: float, unit: str = "") -> Goal:
    return Goal(what=what, measured=None if measured == inf else measured, limit=limit, unit=unit)


def mean_gib(run: Outcome) -> float:
    return mean(sample.saved_pages for sample in run.samples) / PAGES_PER_GIB


def cpu_s_per_hour(run: Outcome, from_s: float = 0.0, until_s: float = DAY_S) -> float:
    return (run.cpu_until(until_s) - run.cpu_until(from_s)) / (until_s - from_s) * HOUR_S


def saved_s(run: Outcome, least_pages: float) -> float:
    """Return the time of the first sample with such savings, infinite if there is none."""
    return next((one.t_s for one in run.samples if one.saved_pages >= least_pages), inf)
