"""Each part of `script/bench sim`: what it plays, its rows and its goals.

A goal is the one of issue 20 where that has one. "No worse than with the counter" has the limits that the tests of
older kernels have.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import mean

from bench.figures import Goal, number
from bench.race.measures import HOST_KIB, MAX_SHARE
from bench.race.works import Work, list_works
from bench.sim.driver import FLAT_OUT, Event, Outcome, Sample, run_advisor, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.least import random_series
from bench.sim.memory import WRITE_BLOCKS
from bench.sim.visit import Rules
from bench.sim.works import (
    DRIFT_COMMON_MIB,
    DRIFT_GUESTS,
    DRIFT_HOURS,
    DRIFT_OWN_MIB,
    DRIFT_PAGES_PER_S,
    DRIFT_S,
    DRIFT_ZERO_MIB,
    GIB_KIB,
    HOUR_S,
    LARGE_COMMON_MIB,
    LARGE_EVERY_S,
    LARGE_IMAGES,
    LARGE_ZERO_MIB,
    NEWCOMERS_MERGED_PAGES,
    NEWCOMERS_S,
    drift_day,
    drift_host,
    idle,
    large_day,
    large_guest,
    large_host,
    little_guests,
    mixed_hour,
    mixed_may_mib,
    spoiler_day,
    spoilers,
)
from bench.steps import Start
from demo.guests import PAGES_PER_MIB
from virtksm.config.schema import AdaptiveParams
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.worth import NEGLIGIBLE
from virtksm.values import replace

PAGES_PER_GIB = 1024 * PAGES_PER_MIB
DAY_S = 24 * HOUR_S
REST_FROM_S = 2 * HOUR_S
"""Without any change: after the guests' start was scanned."""
LARGE_GUESTS, SERIES = 500, 700
DEFAULT, ALWAYS = AdaptivePolicy(params=AdaptiveParams()), AdaptivePolicy(params=AdaptiveParams(engage="always"))
OLD_RULES = Rules(smart_scan=False, checksum_first=False)
SMALL_PERCENT = 10
QUIET_SCANS = 14
"""As in the race."""


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


def first_s(run: Outcome, is_there: Callable[[Sample], bool]) -> float:
    """Return the time of the first sample of which that is true, infinite if there is none."""
    return next((one.t_s for one in run.samples if is_there(one)), inf)


def minutes_to_most(run: Outcome) -> Iterator[float]:
    """Yield for each change how many minutes after its end all that is known to be equal was saved but for 10 % of it.

    Infinite if it was not before the next change. Once each guest has replaced all of its own pages, a change replaces
    what earlier ones have brought. The simulator writes whole blocks. 256 places at most share a zero page.
    """
    before_mib = DRIFT_COMMON_MIB * (DRIFT_GUESTS - 1) + DRIFT_ZERO_MIB * DRIFT_GUESTS * 255 / 256
    block_mib = DRIFT_OWN_MIB / WRITE_BLOCKS
    change_mib = DRIFT_S * DRIFT_PAGES_PER_S / PAGES_PER_MIB // block_mib * block_mib
    for count, hour in enumerate(DRIFT_HOURS, start=1):
        equal_mib = (min(count * change_mib, DRIFT_OWN_MIB) - 0.1 * change_mib) * (DRIFT_GUESTS - 1)
        least_pages, ended_s = (before_mib + equal_mib) * PAGES_PER_MIB, hour * HOUR_S + DRIFT_S
        window = [sample for sample in run.samples if ended_s <= sample.t_s < (hour + 4) * HOUR_S]
        yield next(((one.t_s - ended_s) / 60 for one in window if one.saved_pages >= least_pages), inf)


def play_drift() -> Part:
    """A day of memory that changes in place: what is known of changes, and who is beside."""
    rows = [["contender", "saved GiB", "ksmd-s an hour", "90 % of each change, min after its end"]]
    goals = []

    def add(name: str, run: Outcome) -> tuple[float, float, float]:
        saved_gib, cpu_s, waits = mean_gib(run), cpu_s_per_hour(run), list(minutes_to_most(run))
        rows.append([name, number(saved_gib, 1), number(cpu_s, 1), ", ".join(number(one, 1) for one in waits)])
        return saved_gib, cpu_s, max(waits)

    advised = run_advisor(drift_host(), drift_day(), until_s=DAY_S, sample_every_s=20.0)
    best_gib, best_cpu_s, _ = add("the kernel's advisor", advised)
    for told, hidden in (("", ()), (", no dirty rates", ("dirty_rates",)), (", on another machine", ("local_facts",))):
        for beside, rewriters in (("", False), (", beside two rewriters", True)):
            if not (rewriters and "local_facts" in hidden):
                events = drift_day(rewriters=rewriters)
                run = run_policy(drift_host(*hidden), DEFAULT, events, until_s=DAY_S, sample_every_s=20.0)
                of = f"adaptive{told}{beside}"
                saved_gib, cpu_s, slowest_min = add(of, run)
                what = f"{of}: saved, 97 % of the advisor's"
                goals.append(Goal(what=what, measured=saved_gib, limit=0.97 * best_gib, unit="GiB", is_least=True))
                goals.append(most(f"{of}: ksmd an hour, 1/4 of the advisor's", cpu_s, best_cpu_s / 4, "s"))
                goals.append(most(f"{of}: 90 % of the slowest change", slowest_min, 12.0, "min"))
    events = drift_day(changes=False)
    still = run_policy(drift_host(), DEFAULT, events, until_s=DAY_S, sample_every_s=20.0)
    rest_s = cpu_s_per_hour(still, REST_FROM_S)
    rows.append(["adaptive, nothing changes", number(mean_gib(still), 1), number(rest_s, 1), ""])
    goals.append(most("adaptive, nothing changes: ksmd an hour from hour 2 on", rest_s, 0.003 * HOUR_S, "s"))
    title = "16 guests, 55 GiB, for a day; every four hours 940 MiB of each become equal in place within five minutes"
    return Part(title=title, rows=rows, goals=goals)


def play_spoiler() -> Part:
    """A day with and without two guests that rewrite what has merged."""
    rows = [["kernel, what is told", "newcomers' 90 % after s", "without the two", "ksmd-s an hour", "without the two"]]
    goals = []
    for smart_scan in (False, True):
        alone: dict[str, tuple[float, float]] = {}
        for hidden, low_s in (("nothing", 0.0), ("dirty_rates", 0.0), ("dirty_rates", 21.0)):

            def measure(more: list[Event], *, hidden: str = hidden, smart: bool = smart_scan) -> tuple[float, float]:
                ksmd = Ksmd(rules=Rules(smart_scan=smart))
                host = idle(SimHost(total_kib=64 * GIB_KIB, ksmd=ksmd, hidden=frozenset([hidden])))
                run = run_policy(host, ALWAYS, [*spoiler_day(), *more], until_s=NEWCOMERS_S + 600.0)
                wait_s = first_s(run, lambda one: one.saved_pages >= NEWCOMERS_MERGED_PAGES)
                return wait_s - NEWCOMERS_S, cpu_s_per_hour(run, HOUR_S, NEWCOMERS_S)

            if hidden not in alone:
                alone[hidden] = measure([])
            alone_s, alone_cpu_s = alone[hidden]
            wait_s, cpu_s = measure(spoilers(low_s=low_s))
            name = "smart_scan" if smart_scan else "no smart_scan"
            name += ", no dirty rates" * (hidden == "dirty_rates") + ", by a balloon" * (low_s > 0)
            figures = ((wait_s, 0), (alone_s, 0), (cpu_s, 1), (alone_cpu_s, 1))
            rows.append([name, *(number(value, digits) for value, digits in figures)])
            goals.append(most(f"{name}: newcomers' 90 %, twice that without the two", wait_s, 2 * alone_s, "s"))
    title = "8 guests of 2 GiB for a day, beside two of 256 MiB that rewrite what has merged; four newcomers at hour 22"
    return Part(title=title, rows=rows, goals=goals)


def play_mixed() -> Part:
    """An hour with and without two guests that cannot merge."""
    rows = [["guests", "ksmd-s in the hour", "full scans", "MiB behind what may merge, mean from minute 10"]]
    found = []
    for name, beside in (("four, and one late", False), ("and two that cannot merge", True)):
        host = idle(SimHost(total_kib=64 * GIB_KIB, ksmd=Ksmd(rules=Rules(smart_scan=False))))
        run = run_policy(host, ALWAYS, mixed_hour(beside=beside), until_s=HOUR_S)
        late = [one for one in run.samples if one.t_s >= 600.0]
        behind_mib = mean(mixed_may_mib(one.t_s) - one.saved_pages / PAGES_PER_MIB for one in late)
        cpu_s = run.cpu_until(HOUR_S)
        found.append((cpu_s, behind_mib))
        rows.append([name, number(cpu_s, 1), str(run.samples[-1].full_scans), number(behind_mib, 1)])
    (alone_s, alone_mib), (mixed_s, mixed_mib) = found
    goals = [
        most("ksmd, within 10 % of a run without the two", mixed_s, 1.1 * alone_s, "s"),
        most("ordinary growth merges as soon: MiB behind, within 10 %", mixed_mib, 1.1 * alone_mib, "MiB"),
    ]
    title = (
        "4 guests of 1600 MiB that grow, one of 2 GiB of shared memory, that grows by 50 MiB/s, one with nosharepages"
    )
    return Part(title=title, rows=rows, goals=goals)


def share_while_scanning(run: Outcome) -> float:
    """Return what ksmd takes of a core while a full scan is under way."""
    used_s = [
        later.ksmd_cpu_seconds - one.ksmd_cpu_seconds
        for one, later in pairwise(run.samples)
        if one.settings.pages_to_scan and later.settings.pages_to_scan
    ]
    return sum(used_s) / max(len(used_s), 1)


def play_kernels() -> Part:
    """Storm and growth on a kernel that does not count scanned pages; little guests on one with smart_scan."""
    heads = (
        "saved MiB, mean",
        "90 % after s",
        "ksmd-s in the hour",
        "% of a core while scanning",
        "full scans",
        "over nothing",
    )
    rows, goals = [["work, kernel", *heads]], []

    def add(name: str, run: Outcome, last_s: float) -> tuple[float, float, float, float]:
        saved_mib = mean(one.saved_pages for one in run.samples) / PAGES_PER_MIB
        most_pages = MAX_SHARE * run.samples[-1].saved_pages
        until_s = first_s(run, lambda one: one.saved_pages >= most_pages) - last_s
        figures = (saved_mib, until_s, run.cpu_until(HOUR_S), 100 * share_while_scanning(run))
        words = (number(value, digits) for value, digits in zip(figures, (0, 0, 1, 1), strict=True))
        rows.append([name, *words, str(run.samples[-1].full_scans), str(vain_full_scans(run))])
        return figures

    for work in ("storm", "growth"):
        steps = list_works(quick=False)[work].steps
        for percent in (SMALL_PERCENT, 100):
            found = []
            for told, hidden in (("", frozenset[str]()), (", no pages_scanned", frozenset(["pages_scanned"]))):
                host = idle(SimHost(total_kib=HOST_KIB, ksmd=Ksmd(rules=OLD_RULES), hidden=hidden))
                policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=percent))
                run = run_policy(host, policy, steps, until_s=HOUR_S)
                found.append(add(f"{work}, cpu_percent = {percent}{told}", run, max(step.at_s for step in steps)))
            (known_mib, known_until_s, known_s, _), (mib, until_s, cpu_s, share) = found
            of = f"{work}, cpu_percent = {percent}, no pages_scanned"
            held = Goal(what=f"{of}: saved, 99 % of that with it", measured=mib, limit=0.99 * known_mib, is_least=True)
            goals.append(replace(held, unit="MiB"))
            goals.append(most(f"{of}: 90 % after, 1.25 of that with it", until_s, 1.25 * known_until_s, "s"))
            goals.append(most(f"{of}: ksmd in the hour, 1.05 of that with it", cpu_s, 1.05 * known_s, "s"))
            goals.append(most(f"{of}: ksmd while scanning", share, 1.1 * percent, "% of a core"))
    for name, grows, last_image in (
        ("", False, 0),
        (", growing", True, 0),
        (", growing, the last a stranger", True, 1),
    ):
        for told, rules in (("", OLD_RULES), (", smart_scan", Rules())):
            of = f"three little guests{name}{told}"
            host = idle(SimHost(total_kib=16 * GIB_KIB, ksmd=Ksmd(rules=rules), guest_overhead_kib=0))
            run = run_policy(host, ALWAYS, little_guests(grows=grows, last_image=last_image), until_s=HOUR_S)
            add(of, run, 80.0)
            full_scans = run.samples[-1].full_scans
            if not grows:
                goals.append(most(f"{of}: full scans, as a real one without smart_scan", full_scans, 7))
            goals.append(most(f"{of}: over nothing, not most of them", vain_full_scans(run), full_scans // 2))
    return Part(title="An hour of the race's host on other kernels", rows=rows, goals=goals)


def vain_full_scans(run: Outcome) -> int:
    """Count full scans for new memory that are one more than a pair, or of a pair for less than is a backlog."""
    vain = 0
    for (_, before), (_, after) in pairwise(run.passes):
        if (after.snapshot.ksm.full_scans or 0) == (before.snapshot.ksm.full_scans or 0):
            continue
        told, ended = before.decision.reason, after.decision.reason.numbers
        new_kib = (told.numbers["scanned_once_kib"] or 0) + (ended["scanned_once_kib"] or 0)
        is_for_less = new_kib * NEGLIGIBLE <= (told.numbers["memory_kib"] or 0)
        vain += told.rule == "full_scan" and (is_for_less or bool(told.numbers["more_full_scans"]))
    return vain


def play_race() -> Part:
    """The race's works as the simulator has them, to be compared with what was measured of real guests."""
    heads = ("saved MiB at the end of the run", "90 % after s", "ksmd-s in the run", "ksmd-s in the hour")
    rows = [["work", *heads]]
    for work in list_works(quick=False).values():
        if work.huge_pages or work.name == "linux":
            continue
        rows.append([work.name, *play_race_work(work)])
    return Part(title="The race's works, but for huge pages and Linux guests", rows=rows, goals=[])


def play_race_work(work: Work) -> list[str]:
    host = SimHost(total_kib=HOST_KIB)
    settle(host, work)
    run = run_policy(idle(host), ALWAYS, work.steps, until_s=HOUR_S, sample_every_s=0.25)
    settled_s = max(
        one.at_s + one.guest.content_mib / (one.guest.slow_mib_per_s or host.fill_mib_per_s)
        for one in work.steps
        if isinstance(one, Start)
    )
    changed_s = max([settled_s, *(one.at_s for one in work.steps if not isinstance(one, Start))])
    from_s = changed_s if work.changes_s else settled_s
    last_s = work.savings_until_s
    held = [one.saved_pages for one in run.samples if last_s - 30.0 <= one.t_s < last_s]
    until_s = first_s(run, lambda one: one.saved_pages >= MAX_SHARE * mean(held)) - from_s
    run_s, hour_s = (run.cpu_until(until) for until in (work.length_s, HOUR_S))
    return [number(mean(held) / PAGES_PER_MIB, 0), number(until_s, 1), number(run_s, 1), number(hour_s, 1)]


def settle(host: SimHost, work: Work) -> None:
    """Start guests that have long been there when the clock starts, and scan until smart_scan skips their pages."""
    host.set_parameters(dict(FLAT_OUT.items()))
    for guest in work.already:
        host.start(guest)
        host.advance(guest.content_mib / (guest.slow_mib_per_s or host.fill_mib_per_s))
    target = host.ksmd.full_scans + QUIET_SCANS
    while work.already and host.ksmd.full_scans < target:
        host.advance(0.1)


def play_series() -> Part:
    """Random series of guests that start, beside whoever knows all starts."""
    shares = [(series.ksmd_s() / series.least_s(), len(series.starts_s)) for series in random_series(SERIES)]
    worst, guests = max(shares)
    rows = [["series", "ksmd's CPU, times the least possible: worst", "of guests", "mean"]]
    rows.append([str(SERIES), number(worst, 1), str(guests), number(mean(share for share, _ in shares), 1)])
    title = "Up to 20 guests start at random within hours, beside the least that waiting and scanning cost anybody"
    return Part(title=title, rows=rows, goals=[])


def play_large(guests: int = LARGE_GUESTS) -> Part:
    """A day of 1 TiB."""
    saved_mib = (guests - LARGE_IMAGES) * LARGE_COMMON_MIB + guests * LARGE_ZERO_MIB
    most_pages = MAX_SHARE * saved_mib * PAGES_PER_MIB
    settled_s = (guests - 1) * LARGE_EVERY_S + large_guest(0).content_mib / 100.0
    rows = [["contender", "saved GiB", "ksmd-s an hour", "90 % after min", "idle %"]]
    events = large_day(guests)
    for name, hidden in (
        ("the kernel's advisor", None),
        ("adaptive", ()),
        ("adaptive, no dirty rates", ("dirty_rates",)),
    ):
        if hidden is None:
            run = run_advisor(large_host(guests), events, until_s=DAY_S, sample_every_s=30.0)
        else:
            run = run_policy(large_host(guests, *hidden), DEFAULT, events, until_s=DAY_S, sample_every_s=30.0)
        until_s = first_s(run, lambda one: one.saved_pages >= most_pages) - settled_s
        idles = 100 * mean(one.settings.pages_to_scan == 0 for one in run.samples)
        figures = ((mean_gib(run), 0), (cpu_s_per_hour(run), 0), (until_s / 60, 1), (idles, 0))
        rows.append([name, *(number(value, digits) for value, digits in figures)])
    title = (
        f"{guests} guests of 1792 MiB that start two seconds apart, then one is replaced every ten minutes, for a day"
    )
    return Part(title=title, rows=rows, goals=[])


PARTS: Mapping[str, Callable[[], Part]] = {
    "drift": play_drift,
    "spoiler": play_spoiler,
    "mixed": play_mixed,
    "kernels": play_kernels,
    "race": play_race,
    "series": play_series,
    "large": play_large,
}
