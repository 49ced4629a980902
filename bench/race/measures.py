"""Figures of the race: what the runs over one work come to, in numbers that can be compared.

Pure: records in, figures out. Definitions, the same for every contender:
- what a run holds: the median of pages_sharing over its last 30 s, at most a tenth of it (where guests stop: before the
  first stop);
- the final savings of a work: what the run holds that holds most, so that nobody is judged by less than was possible;
- time to 90 %: from the last guest's settling in that run to the first sample with 90 % of the final savings, negative
  if it was reached before;
- parked: the first sample after the 90 % and after the work's last event from which ksmd scans nothing for 30 s
  (in runs of less than 300 s: for a tenth of the run);
- at rest: ksmd's mean over the 120 s after parking; over the last 120 s for whoever never parks (in runs of less than
  300 s: over two fifths of the run);
- over the hour: the run's CPU, the rest of the hour at that mean, and what is told to come later (the policy
  adaptive's probes, simulated); savings as the run holds them.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.figures import Summary, summarize
from bench.race.records import Record, Sample

OFF = "off"
PAGES_PER_MIB = 256
HOUR_S = 3600.0
HELD_WINDOW_S = 30.0
HELD_WINDOW_SHARE = 0.1
REST_WINDOW_S = 120.0
REST_WINDOW_SHARE = 0.4
PARKED_FOR_S = 30.0
PARKED_FOR_SHARE = 0.1
OWED = ("settling_kib", "new_kib", "scanned_once_kib")
MAX_SHARE = 0.9
LAG_FROM_SHARE = 0.1
"""A lag is judged once a tenth of the final savings is there: before, a second's delay is all of it."""
LATE_LAG_S = 15.0
"""From so long after the last guest's settling on, a lag is that of growing guests, no longer of starting ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run in numbers. Times are seconds after the last guest's settling; None: did not happen in the run.

    `backoff_most` and `owed_mib` (in the end) are what the policy adaptive says in its decisions' numbers.
    """

    contender: str
    last_settled_s: float
    length_s: float
    held_mib: float
    until_most_s: float | None
    cpu_until_most_s: float | None
    parked_after_s: float | None
    cpu_until_parked_s: float | None
    cpu_s: float
    rest_share: float
    hour_cpu_s: float
    saved_mib_s_per_cpu_s: float | None
    merges: int | None
    neighbour_sweep: Summary | None
    neighbour_rest: Summary | None
    own_cpu_s: float | None
    backoff_most: float | None
    owed_mib: float | None
    last_decision: str | None

    @property
    def watched_s(self) -> float:
        """Tell how long the run went on after the last guest's settling."""
        return self.length_s - self.last_settled_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All runs over one work.

    `lag_shares` tells of each how far it was behind flat-out scanning at worst, `late_lag_shares` the same from 15 s
    after its last guest's settling on.
    """

    work: str
    told: str
    quick: bool
    final_mib: float
    figures: Mapping[str, Figures]
    lag_shares: Mapping[str, float]
    late_lag_shares: Mapping[str, float]


def measure_work(records: Sequence[Record], later_cpu_s: Mapping[str, float] | None = None) -> Results:
    """Measure all runs over one work; raises ValueError without any.

    `later_cpu_s` is what a contender's ksmd takes in the rest of the hour beside its mean at rest.
    """
    if not records:
        raise ValueError("no records")
    final_pages = max((held_pages(report) for report in records if report.contender != OFF), default=0.0)
    flat = next((report for report in records if report.contender == "flat"), None)
    lags, late_lags = {}, {}
    if flat is not None and final_pages:
        lags = {one.contender: worst_lag_share(one, flat, final_pages, 0.0) for one in records}
        late_lags = {
            one.contender: worst_lag_share(one, flat, final_pages, one.last_settled_s + LATE_LAG_S) for one in records
        }
    return Results(
        work=records[0].work,
        told=records[0].told,
        quick=records[0].quick,
        final_mib=final_pages / PAGES_PER_MIB,
        figures={
            report.contender: measure_run(report, final_pages, (later_cpu_s or {}).get(report.contender, 0.0))
            for report in records
        },
        lag_shares=lags,
        late_lag_shares=late_lags,
    )


def measure_run(report: Record, final_pages: float, later_cpu_s: float = 0.0) -> Figures:
    """Measure one run against the final savings of its work."""
    samples, settled_s = report.samples, report.last_settled_s
    most_s = find_most_s(samples, final_pages)
    still_s = min(PARKED_FOR_S, report.length_s * PARKED_FOR_SHARE)
    busy_until_s = max(most_s or 0.0, settled_s, report.busy_until_s)
    idle_s = None if most_s is None else find_parked_s(samples, busy_until_s, still_s)
    rest_from_s, rest_until_s = rest_window(report.length_s, idle_s)
    cpu_s = cpu_until_s(samples, report.length_s)
    rest_share = (cpu_until_s(samples, rest_until_s) - cpu_until_s(samples, rest_from_s)) / (rest_until_s - rest_from_s)
    left_s = max(HOUR_S - report.length_s, 0.0)
    hour_cpu_s = cpu_s + left_s * rest_share + later_cpu_s
    saved_mib_s = (saved_page_seconds(samples) + left_s * samples[-1].pages_sharing) / PAGES_PER_MIB
    sweep_until_s = next(end_s for end_s in (idle_s, most_s, rest_from_s) if end_s is not None)
    return Figures(
        contender=report.contender,
        last_settled_s=settled_s,
        length_s=report.length_s,
        held_mib=held_pages(report) / PAGES_PER_MIB,
        until_most_s=None if most_s is None else most_s - settled_s,
        cpu_until_most_s=None if most_s is None else cpu_until_s(samples, most_s),
        parked_after_s=None if idle_s is None else idle_s - settled_s,
        cpu_until_parked_s=None if idle_s is None else cpu_until_s(samples, idle_s),
        cpu_s=cpu_s,
        rest_share=rest_share,
        hour_cpu_s=hour_cpu_s,
        saved_mib_s_per_cpu_s=saved_mib_s / hour_cpu_s if hour_cpu_s > 0 else None,
        merges=count_merges(samples),
        neighbour_sweep=summarize_between(report.neighbour, settled_s, sweep_until_s),
        neighbour_rest=summarize_between(report.neighbour, rest_from_s, rest_until_s),
        own_cpu_s=report.own_cpu_s,
        backoff_most=max(
            (one["numbers"]["backoff"] for one in report.decisions if "backoff" in one["numbers"]), default=None
        ),
        owed_mib=read_owed_mib(report.decisions[-1]["numbers"]) if report.decisions else None,
        last_decision=report.decisions[-1]["reason"] if report.decisions else None,
    )


def held_pages(report: Record) -> float:
    """Tell what a run holds in the end."""
    until_s = report.savings_until_s
    from_s = until_s - min(HELD_WINDOW_S, report.length_s * HELD_WINDOW_SHARE)
    held = [sample.pages_sharing for sample in report.samples if from_s <= sample.at_s < until_s]
    return statistics.median(held) if held else 0.0


def find_most_s(samples: Sequence[Sample], final_pages: float) -> float | None:
    """Find when 90 % of the final savings was reached; None when it was not, or when nothing can be saved."""
    if not final_pages:
        return None
    enough = MAX_SHARE * final_pages
    return next((sample.at_s for sample in samples if sample.pages_sharing >= enough), None)


def find_parked_s(samples: Sequence[Sample], from_s: float, still_s: float) -> float | None:
    """Find from when on, not before `from_s`, ksmd scanned nothing for `still_s` seconds."""
    since_s = None
    for sample in samples:
        if sample.at_s < from_s or not sample.is_idle:
            since_s = None
        elif since_s is None:
            since_s = sample.at_s
        elif sample.at_s - since_s >= still_s:
            return since_s
    return None


def rest_window(length_s: float, idle_s: float | None) -> tuple[float, float]:
    """Tell from when until when a run counts as at rest."""
    window_s = min(REST_WINDOW_S, length_s * REST_WINDOW_SHARE)
    if idle_s is None:
        return length_s - window_s, length_s
    return idle_s, min(idle_s + window_s, length_s)


def cpu_until_s(samples: Sequence[Sample], at_s: float) -> float:
    """Tell ksmd's CPU seconds from the first sample to a moment, evenly spread between two samples."""
    after = bisect_right(samples, at_s, key=lambda sample: sample.at_s)
    if after in {0, len(samples)}:
        return samples[max(after - 1, 0)].ksmd_cpu_s - samples[0].ksmd_cpu_s
    before, next_one = samples[after - 1], samples[after]
    part = (at_s - before.at_s) / (next_one.at_s - before.at_s)
    return before.ksmd_cpu_s + part * (next_one.ksmd_cpu_s - before.ksmd_cpu_s) - samples[0].ksmd_cpu_s


def pages_at(samples: Sequence[Sample], at_s: float) -> int:
    """Tell pages_sharing as last seen at a moment."""
    return samples[max(bisect_right(samples, at_s, key=lambda sample: sample.at_s) - 1, 0)].pages_sharing


def saved_page_seconds(samples: Sequence[Sample]) -> float:
    """Add up pages_sharing over time."""
    return sum(one.pages_sharing * (later.at_s - one.at_s) for one, later in pairwise(samples))


def count_merges(samples: Sequence[Sample]) -> int | None:
    """Count the merges: what is merged in the end, and what was and has been written to since (cow_ksm).

    Pages whose guest stopped are not in it. None where the kernel does not count.
    """
    first, last = samples[0], samples[-1]
    if first.cow_ksm is None or last.cow_ksm is None:
        return None
    merged = last.pages_sharing + last.pages_shared - first.pages_sharing - first.pages_shared
    return merged + last.cow_ksm - first.cow_ksm


def worst_lag_share(report: Record, flat: Record, final_pages: float, from_s: float) -> float:
    """Tell how far savings were behind flat-out scanning's at the same moment, at worst, as a share of those.

    Negative: never behind.
    """
    lags = [
        1 - pages_at(report.samples, sample.at_s) / sample.pages_sharing
        for sample in flat.samples
        if sample.at_s >= from_s and sample.pages_sharing >= LAG_FROM_SHARE * final_pages
    ]
    return max(lags, default=0.0)


def read_owed_mib(numbers: Mapping[str, float]) -> float | None:
    """Tell what a decision of the policy adaptive says is owed; None if it does not say."""
    owed = [numbers[name] for name in OWED if name in numbers]
    return sum(owed) / 1024 if owed else None


def summarize_between(times: Sequence[tuple[float, float]], from_s: float, until_s: float) -> Summary | None:
    """Summarize the neighbour's ms between two moments; None without any."""
    series = [ms for at_s, ms in times if from_s <= at_s < until_s]
    return summarize(series) if series else None
