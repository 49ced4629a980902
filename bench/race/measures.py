"""Figures of the race: what the runs over one work come to, in numbers that can be compared.

Pure: runs in, figures out. Definitions, the same for every contender:
- what a run holds: the median of pages_sharing over its last 30 s (in runs of less than 300 s: a tenth), where guests
  stop, before the first stop;
- the final savings of a work: what the run holds that holds most, so that no run is judged by less than was possible;
- 90 % after: from the last guest's settling in that run, or from the end of the last change in place, to the first
  sample with 90 % of the final savings, negative if it was reached before;
- 90 % of an earlier change: the same from that change's end, of what the run that then holds most holds when the later
  one begins;
- idle: the first sample after the 90 % and after the work's last event from which ksmd scans nothing for 30 s (in
  runs of less than 300 s: for a tenth of the run);
- at rest: the 120 s after that; the last 120 s, if ksmd never idles (in runs of less than 300 s: two fifths of the
  run);
- the neighbour: the median at rest; p95 and p99 (nearest-rank) of the pieces begun while ksmd is not idle, settling
  guests included;
- used: what guests hold resident, less what they share, 10 s after the last guest's settling, 10 s after the last
  change or growth of a work that has any, and at the end. What a run with KSM off uses more came free, zero pages of
  split huge pages included, which no counter of KSM's tells;
- taken: what MemAvailable has lost from the run's beginning to its end, KSM's own tables included;
- over the hour: the run's CPU, the rest of the hour at the mean at rest, and what comes later (the policy adaptive's
  check scans, simulated); savings as the run holds them.
"""

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.figures import percentile
from bench.race.contenders import read_backlog_mib
from bench.race.run import Run, Sample
from bench.race.works import Work
from bench.sim.driver import Event, run_policy
from bench.sim.host import SimHost
from bench.steps import Start
from demo.guests import PAGES_PER_MIB
from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import IDLE
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.values import replace

OURS = "adaptive"
HOUR_S = 3600.0
LONG_RUN_S = 300.0
HELD_S, IDLE_S, REST_S = 30.0, 30.0, 120.0
"""In runs of LONG_RUN_S or more; in shorter ones as much less."""
MAX_SHARE = 0.9
LAG_FROM_SHARE = 0.1
"""A lag is judged once a tenth of the final savings is there: before, a second's delay is all of it."""
HOST_KIB = 24 * 1024 * 1024
AHEAD_S = 60.0
"""In the simulation, guests that have long been there start so long before the work's first step."""
USED_S = 10.0
LATE_LAG_S = 15.0
"""From so long after the last guest's settling on, a lag is that of growing guests, no longer of starting ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run in numbers. Times are seconds after the last guest's settling; None: did not happen in the run.

    `watched_s` is how long the run went on after that. `lag_share` is how far it was behind flat-out scanning at worst
    (negative: never), `late_lag_share` the same from 15 s after its last guest's settling on. `min_merge_ratio`
    and `backlog_mib` (in the end) are what the policy adaptive says in its decisions' numbers.
    """

    watched_s: float
    held_mib: float
    until_most_s: float | None
    until_earlier_s: float | None
    cpu_until_most_s: float | None
    idle_after_s: float | None
    cpu_until_idle_s: float | None
    cpu_s: float
    rest_share: float
    hour_cpu_s: float
    saved_mib_s_per_cpu_s: float
    merges: int | None
    neighbour_rest_ms: float | None
    neighbour_p95_ms: float | None
    neighbour_p99_ms: float | None
    lag_share: float | None
    late_lag_share: float | None
    min_merge_ratio: float | None
    backlog_mib: float | None
    used_mib: float
    used_changed_mib: float | None
    used_at_end_mib: float
    taken_mib: float
    told_mib: float | None


Results = Mapping[str, Figures]
"""The figures of all runs over one work, by contender."""


def measure_work(runs: Sequence[Run], check_scans_s: float = 0.0) -> Results:
    """Measure all runs over one work; `check_scans_s` is what our ksmd takes later in the hour."""
    final_pages = max((held_pages(run) for run in runs), default=0.0)
    earlier_pages = max((earlier_held_pages(run) for run in runs), default=0.0)
    flat = next((run for run in runs if run.contender == "flat"), None)
    return {
        run.contender: replace(
            measure_run(run, final_pages, flat, check_scans_s if run.contender.startswith(OURS) else 0.0),
            until_earlier_s=until_earlier_s(run, earlier_pages),
        )
        for run in runs
    }


def measure_run(run: Run, final_pages: float, flat: Run | None = None, later_cpu_s: float = 0.0) -> Figures:
    """Measure one run against the final savings of its work."""
    samples, settled_s, length_s = run.samples, run.last_settled_s + run.work.changes_s, run.work.length_s
    most_s = find_most_s(samples, final_pages)
    busy_until_s = max(most_s or 0.0, settled_s, run.work.busy_until_s)
    idle_s = None if most_s is None else find_idle_s(samples, busy_until_s, at_most(IDLE_S, length_s))
    rest_from_s, rest_until_s = rest_window(length_s, idle_s)
    cpu_s = cpu_until_s(samples, length_s)
    rest_share = (cpu_until_s(samples, rest_until_s) - cpu_until_s(samples, rest_from_s)) / (rest_until_s - rest_from_s)
    left_s = max(HOUR_S - length_s, 0.0)
    hour_cpu_s = cpu_s + left_s * rest_share + later_cpu_s
    saved_page_s = sum(one.pages_sharing * (later.at_s - one.at_s) for one, later in pairwise(samples))
    saved_mib_s = (saved_page_s + left_s * samples[-1].pages_sharing) / PAGES_PER_MIB
    scanning_ms = [ms for at_s, ms in run.neighbour if not sample_at(samples, at_s).is_idle]
    at_rest_ms = [ms for at_s, ms in run.neighbour if rest_from_s <= at_s < rest_until_s]
    numbers = [decision["numbers"] for decision in run.decisions]
    return Figures(
        watched_s=length_s - settled_s,
        held_mib=held_pages(run) / PAGES_PER_MIB,
        until_most_s=None if most_s is None else most_s - settled_s,
        until_earlier_s=None,
        cpu_until_most_s=None if most_s is None else cpu_until_s(samples, most_s),
        idle_after_s=None if idle_s is None else idle_s - settled_s,
        cpu_until_idle_s=None if idle_s is None else cpu_until_s(samples, idle_s),
        cpu_s=cpu_s,
        rest_share=rest_share,
        hour_cpu_s=hour_cpu_s,
        saved_mib_s_per_cpu_s=saved_mib_s / hour_cpu_s if hour_cpu_s > 0 else 0.0,
        merges=count_merges(run),
        neighbour_rest_ms=statistics.median(at_rest_ms) if at_rest_ms else None,
        neighbour_p95_ms=percentile(scanning_ms, 95) if scanning_ms else None,
        neighbour_p99_ms=percentile(scanning_ms, 99) if scanning_ms else None,
        lag_share=None if flat is None else worst_lag_share(run, flat, final_pages, 0.0),
        late_lag_share=None if flat is None else worst_lag_share(run, flat, final_pages, settled_s + LATE_LAG_S),
        min_merge_ratio=min((one["merge_ratio"] for one in numbers), default=None),
        backlog_mib=read_backlog_mib(numbers[-1]) if numbers else None,
        used_mib=sample_at(samples, run.last_settled_s + USED_S).used_mib,
        used_changed_mib=sample_at(samples, settled_s + USED_S).used_mib if run.work.changes_s else None,
        used_at_end_mib=samples[-1].used_mib,
        taken_mib=samples[0].available_mib - samples[-1].available_mib,
        told_mib=run.told_mib,
    )


def at_most(seconds: float, length_s: float) -> float:
    """Shorten a window of a long run for a run of a length."""
    return seconds * min(1.0, length_s / LONG_RUN_S)


def held_pages(run: Run) -> float:
    """Tell what a run holds in the end."""
    return held_pages_before(run, run.work.savings_until_s)


def held_pages_before(run: Run, until_s: float) -> float:
    """Tell what a run holds at a moment: the median of what it held just before."""
    from_s = until_s - at_most(HELD_S, run.work.length_s)
    held = [sample.pages_sharing for sample in run.samples if from_s <= sample.at_s < until_s]
    return statistics.median(held) if held else 0.0


def earlier_held_pages(run: Run) -> float:
    """Tell what a run holds when the later of two changes begins; 0 without an earlier one."""
    return 0.0 if run.work.earlier is None else held_pages_before(run, run.last_settled_s + run.work.earlier[1])


def until_earlier_s(run: Run, held_most_pages: float) -> float | None:
    """Tell how long after an earlier change 90 % of it was saved; None if it was not before the later one began."""
    if run.work.earlier is None:
        return None
    ended_s, later_s = (run.last_settled_s + at_s for at_s in run.work.earlier)
    reached_s = find_most_s([sample for sample in run.samples if sample.at_s < later_s], held_most_pages)
    return None if reached_s is None else reached_s - ended_s


def find_most_s(samples: Sequence[Sample], final_pages: float) -> float | None:
    """Find when 90 % of the final savings was reached; None when it was not, or when nothing can be saved."""
    reached = (sample.at_s for sample in samples if sample.pages_sharing >= MAX_SHARE * final_pages)
    return next(reached, None) if final_pages else None


def find_idle_s(samples: Sequence[Sample], from_s: float, still_s: float) -> float | None:
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
    window_s = at_most(REST_S, length_s)
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


def sample_at(samples: Sequence[Sample], at_s: float) -> Sample:
    """Tell what was last seen at a moment."""
    return samples[max(bisect_right(samples, at_s, key=lambda sample: sample.at_s) - 1, 0)]


def count_merges(run: Run) -> int | None:
    """Count the merges: what is merged in the end, and what was and has been written to since (cow_ksm).

    Pages whose guest stopped are not in it. None where the kernel does not count.
    """
    first, last = run.samples[0], run.samples[-1]
    if first.cow_ksm is None or last.cow_ksm is None:
        return None
    merged = last.pages_sharing + last.pages_shared if run.merged_pages is None else run.merged_pages
    return merged - first.pages_sharing - first.pages_shared + last.cow_ksm - first.cow_ksm


def worst_lag_share(run: Run, flat: Run, final_pages: float, from_s: float) -> float:
    """Tell how far savings were behind flat-out scanning's at the same moment, at worst, as a share of those."""
    lags = [
        1 - sample_at(run.samples, sample.at_s).pages_sharing / sample.pages_sharing
        for sample in flat.samples
        if sample.at_s >= from_s and sample.pages_sharing >= max(LAG_FROM_SHARE * final_pages, 1)
    ]
    return max(lags, default=0.0)


def simulate_check_scans(work: Work) -> float:
    """Simulate what our check scans cost: ksmd's CPU seconds from the end of the work's length to that of the hour.

    A run of five minutes ends before the first one is due. Linux guests are simulated as payload guests.
    """
    host = SimHost(total_kib=HOST_KIB)
    host.set_parameters(dict(IDLE.items()))
    ahead_s = AHEAD_S if work.already else 0.0
    events: list[Event] = [Start(at_s=0.0, guest=guest) for guest in work.already]
    events += [replace(step, at_s=step.at_s + ahead_s) for step in work.steps]
    policy = AdaptivePolicy(params=AdaptiveParams(engage="always"))
    outcome = run_policy(host, policy, events, until_s=ahead_s + HOUR_S, sample_every_s=10.0)
    return outcome.cpu_until(ahead_s + HOUR_S) - outcome.cpu_until(ahead_s + work.length_s)
