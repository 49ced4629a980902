"""The simulated works of an hour or less, and the series: what each plays, its rows and its goals.

A goal is the one of issue 20 where that has one. "That with it" has the limits that the tests of older kernels have.
"""

from collections.abc import Iterable
from itertools import pairwise
from statistics import mean

from bench.figures import Goal, number
from bench.race.measures import HOST_KIB, MAX_SHARE
from bench.race.works import Work, list_works
from bench.sim.driver import FLAT_OUT, Event, Outcome, run_policy
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.least import random_series
from bench.sim.part import ALWAYS, Part, most, saved_s
from bench.sim.visit import Rules
from bench.sim.works import GIB_KIB, HOUR_S, idle, little_guests, mixed_hour, mixed_may_mib
from bench.steps import Start
from demo.guests import PAGES_PER_MIB
from virtksm.config.schema import AdaptiveParams
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.policy.adaptive.worth import NEGLIGIBLE

SERIES = 700
OLD_RULES = Rules(smart_scan=False, checksum_first=False)
SMALL_PERCENT = 10
QUIET_SCANS = 14
"""As in the race."""


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


def percent_while_scanning(run: Outcome) -> float | None:
    """Return what ksmd takes of a core while a full scan is under way, None if none lasts for two samples."""
    percents = [
        100 * (later.ksmd_cpu_seconds - one.ksmd_cpu_seconds) / (later.t_s - one.t_s)
        for one, later in pairwise(run.samples)
        if one.settings.pages_to_scan and later.settings.pages_to_scan
    ]
    return mean(percents) if percents else None


def play_kernels() -> Part:
    """Storm and growth on a kernel that does not count scanned pages."""
    rows = [
        ["work, cpu_percent", "saved MiB, mean", "90 % after s", "ksmd-s in the hour", "% of a core while scanning"]
    ]
    goals = []
    for work in ("storm", "growth"):
        steps = list_works(quick=False)[work].steps
        for percent in (SMALL_PERCENT, 100):
            found = []
            for told, hidden in (("", frozenset[str]()), (", no pages_scanned", frozenset(["pages_scanned"]))):
                host = idle(SimHost(total_kib=HOST_KIB, ksmd=Ksmd(rules=OLD_RULES), hidden=hidden))
                policy = AdaptivePolicy(params=AdaptiveParams(engage="always", cpu_percent=percent))
                run = run_policy(host, policy, steps, until_s=HOUR_S, sample_every_s=0.25)
                saved_mib = mean(one.saved_pages for one in run.samples) / PAGES_PER_MIB
                most_pages = MAX_SHARE * run.samples[-1].saved_pages
                until_s = saved_s(run, most_pages) - settled_s(steps, host)
                found.append((saved_mib, until_s, run.cpu_until(HOUR_S)))
                taken = percent_while_scanning(run)
                words = [number(one, digits) for one, digits in zip(found[-1], (0, 1, 1), strict=True)]
                rows.append([f"{work}, {percent}{told}", *words, number(taken, 1)])
            (known_mib, known_until_s, known_s), (mib, until_s, cpu_s) = found
            of = f"{work}, {percent}, no pages_scanned"
            held = f"{of}: saved, 99 % of that with it"
            goals.append(Goal(what=held, measured=mib, limit=0.99 * known_mib, unit="MiB", is_least=True))
            goals.append(most(f"{of}: 90 % after, 1.25 of that with it", until_s, 1.25 * known_until_s, "s"))
            goals.append(most(f"{of}: ksmd in the hour, 1.05 of that with it", cpu_s, 1.05 * known_s, "s"))
            if percent == SMALL_PERCENT and taken is not None:
                goals.append(most(f"{of}: ksmd while scanning", taken, 1.1 * percent, "% of a core"))
    title = "An hour of the race's host, on a kernel that counts scanned pages, and on one that does not (before 6.6)"
    return Part(title=title, rows=rows, goals=goals)


def settled_s(steps: Iterable[Event], host: SimHost) -> float:
    """Return when the last guest has filled its memory."""
    starts = [one for one in steps if isinstance(one, Start)]
    return max(one.at_s + one.guest.content_mib / (one.guest.slow_mib_per_s or host.fill_mib_per_s) for one in starts)


def play_little() -> Part:
    """Three little guests, with and without smart_scan."""
    rows, goals = [["guests", "full scans", "of them over nothing", "ksmd-s in the hour"]], []
    for name, grows, last_image in (
        ("three of 34 MiB", False, 0),
        ("that grow", True, 0),
        ("that grow, the last a stranger", True, 1),
    ):
        for told, rules in (("", OLD_RULES), (", smart_scan", Rules())):
            host = idle(SimHost(total_kib=16 * GIB_KIB, ksmd=Ksmd(rules=rules), guest_overhead_kib=0))
            run = run_policy(host, ALWAYS, little_guests(grows=grows, last_image=last_image), until_s=HOUR_S)
            full_scans, vain = run.samples[-1].full_scans, vain_full_scans(run)
            rows.append([f"{name}{told}", str(full_scans), str(vain), number(run.cpu_until(HOUR_S), 1)])
            if not grows:
                goals.append(most(f"{name}{told}: full scans, as a real kernel without smart_scan", full_scans, 7))
            goals.append(most(f"{name}{told}: over nothing, not most of them", vain, full_scans // 2))
    title = "Three little guests that fill slowly, 40 s apart, two of which or all have twins"
    return Part(title=title, rows=rows, goals=goals)


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
    filled_s = settled_s(work.steps, host)
    changed_s = max([filled_s, *(one.at_s for one in work.steps if not isinstance(one, Start))])
    from_s = changed_s if work.changes_s else filled_s
    last_s = work.savings_until_s
    held = [one.saved_pages for one in run.samples if last_s - 30.0 <= one.t_s < last_s]
    until_s = saved_s(run, MAX_SHARE * mean(held)) - from_s
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
