"""The simulated days: what each plays, its rows and its goals, those of issue 20."""

from collections.abc import Iterator
from math import inf
from statistics import mean

from bench.figures import Goal, number
from bench.race.measures import MAX_SHARE
from bench.sim.driver import Event, Outcome, run_advisor, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.memory import WRITE_BLOCKS
from bench.sim.part import ALWAYS, DAY_S, Part, cpu_s_per_hour, mean_gib, most, saved_s
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
    spoiler_day,
    spoilers,
)
from demo.guests import PAGES_PER_MIB
from virtksm.config.schema import AdaptiveParams
from virtksm.policy.adaptive import AdaptivePolicy

REST_FROM_S = 2 * HOUR_S
"""Without any change: after the guests' start was scanned."""
LARGE_GUESTS = 500
DEFAULT = AdaptivePolicy(params=AdaptiveParams())


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
                wait_s = saved_s(run, NEWCOMERS_MERGED_PAGES)
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
            run = run_policy(
                large_host(guests, *hidden), DEFAULT, events, until_s=DAY_S, sample_every_s=30.0, keeps_passes=False
            )
        until_s = saved_s(run, most_pages) - settled_s
        idles = 100 * mean(one.settings.pages_to_scan == 0 for one in run.samples)
        figures = ((mean_gib(run), 0), (cpu_s_per_hour(run), 0), (until_s / 60, 1), (idles, 0))
        rows.append([name, *(number(value, digits) for value, digits in figures)])
    title = (
        f"{guests} guests of 1792 MiB that start two seconds apart, then one is replaced every ten minutes, for a day"
    )
    return Part(title=title, rows=rows, goals=[])
