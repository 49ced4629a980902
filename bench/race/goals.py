"""The race's goals, work by work, as one table of rules. Pure: results in, goals out.

Peers are the real ksmtuned, the kernel's advisor in both ways and the kernel's default; flat out and the clairvoyant
are bounds. The best peer for CPU is, of those that reached 90 % of the final savings in the run, the one that takes
least over the hour. Where no peer reached 90 %, times are judged by what is left of the run, which is less than they
need, and CPU by the peer that holds most. What lacks a run is not judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.figures import Goal
from bench.race.measures import OURS, Figures, Results

PEERS = ("ksmtuned", "advisor-boot", "advisor-late", "default")
NEIGHBOUR_NOISE = 1.01


class NotJudged(Exception):
    """What a rule compares with is not there; carries what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One goal: what is measured of our run, and the limit that follows from other runs."""

    what: str
    measured: Callable[[Figures], float | None]
    limit: Callable[[Results], float]
    unit: str = ""
    is_least: bool = False

    def judge(self, results: Results) -> Goal:
        """Return the goal of one work; raises NotJudged."""
        measured, limit = self.measured(run_of(results, OURS)), self.limit(results)
        return Goal(what=self.what, measured=measured, limit=limit, unit=self.unit, is_least=self.is_least)


def run_of(results: Results, contender: str) -> Figures:
    """Return one contender's figures; raises NotJudged."""
    if contender not in results:
        raise NotJudged(f"no run of {contender}")
    return results[contender]


def peers(results: Results) -> list[Figures]:
    """Return the figures of all peers that ran; raises NotJudged without any."""
    found = [results[name] for name in PEERS if name in results]
    if not found:
        raise NotJudged("no run of a peer")
    return found


def there(value: float | None, what: str) -> float:
    """Return a value; raises NotJudged where it is None."""
    if value is None:
        raise NotJudged(what)
    return value


def best_time_s(results: Results) -> float:
    """Return the least time to 90 % of a peer, or, if none got there, what is left of the run."""
    found = peers(results)
    reached = [peer.until_most_s for peer in found if peer.until_most_s is not None]
    return min(reached or [peer.watched_s for peer in found])


def best_earlier_s(results: Results) -> float:
    """Return the least time of a peer to 90 % of the earlier of two changes."""
    reached = [peer.until_earlier_s for peer in peers(results) if peer.until_earlier_s is not None]
    return there(min(reached, default=None), "no peer reached 90 % of the earlier change")


def best_hour_s(results: Results) -> float:
    """Return the CPU over the hour of the best peer, or, if none reached 90 %, of the one that holds most."""
    reached = [peer.hour_cpu_s for peer in peers(results) if peer.until_most_s is not None]
    return min(reached, default=max(peers(results), key=lambda peer: peer.held_mib).hour_cpu_s)


def cpu_of_fastest_s(results: Results) -> float:
    """Return the CPU that the peer that is first at its 90 % has used until then."""
    found = [(peer.until_most_s, peer.cpu_until_most_s) for peer in peers(results)]
    reached = [(until_s, cpu_s) for until_s, cpu_s in found if until_s is not None and cpu_s is not None]
    return there(min(reached, default=(0.0, None))[1], "no peer reached 90 %")


def clairvoyant_s(results: Results) -> float:
    return there(run_of(results, "clairvoyant").until_most_s, "the clairvoyant did not reach 90 %")


def flat_merges(results: Results) -> float:
    return there(run_of(results, "flat").merges, "the kernel does not count writes to merged pages (cow_ksm)")


def came_free_mib(results: Results, taken_mib: Callable[[Figures], float]) -> float:
    """Return how much less our run takes at its end than one with KSM off."""
    return taken_mib(run_of(results, "off")) - taken_mib(run_of(results, OURS))


def quickest_neighbour_ms(results: Results) -> float:
    times_ms = [peer.neighbour_rest_ms for peer in peers(results) if peer.neighbour_rest_ms is not None]
    return there(min(times_ms, default=None), "no neighbour at rest")


def time(what: str, limit: Callable[[Results], float]) -> Rule:
    return Rule(what=f"90 % after, {what}", measured=lambda one: one.until_most_s, limit=limit, unit="s")


def cpu(what: str, limit: Callable[[Results], float]) -> Rule:
    return Rule(what=f"ksmd CPU until idle, {what}", measured=lambda one: one.cpu_until_idle_s, limit=limit, unit="s")


def hour(divisor: int) -> Rule:
    what = f"ksmd CPU in the hour, 1/{divisor} of the best peer's"
    return Rule(
        what=what, measured=lambda one: one.hour_cpu_s, limit=lambda runs: best_hour_s(runs) / divisor, unit="s"
    )


def rest(percent: float) -> Rule:
    return Rule(what="ksmd at rest", measured=lambda one: 100 * one.rest_share, limit=lambda _: percent, unit="%")


def lag(what: str, share: Callable[[Figures], float | None]) -> Rule:
    def percent(one: Figures) -> float:
        return 100 * there(share(one), "no run of flat")

    return Rule(what=f"behind flat out at worst{what}", measured=percent, limit=lambda _: 15.0, unit="%")


def as_free(since: str, used_mib: Callable[[Figures], float | None]) -> Rule:
    def limit(results: Results) -> float:
        flat_mib, off_mib = (there(used_mib(run_of(results, name)), "nothing changes") for name in ("flat", "off"))
        return 0.98 * flat_mib + 0.02 * off_mib

    what = f"used 10 s after {since}, as flat out and 2 % of what that frees"
    return Rule(what=what, measured=used_mib, limit=limit, unit="MiB")


def tells_the_truth(source: str, taken_mib: Callable[[Figures], float]) -> tuple[Rule, Rule]:
    """Judge what we say is saved by what came free, as a source tells."""

    def rule(percent: int, *, is_least: bool) -> Rule:
        return Rule(
            what=f"says that is saved, {percent} % of what came free, by {source}",
            measured=lambda one: one.told_mib,
            limit=lambda runs: percent / 100 * came_free_mib(runs, taken_mib),
            unit="MiB",
            is_least=is_least,
        )

    return rule(95, is_least=True), rule(105, is_least=False)


LEAD = Rule(
    what="saved MiB-s per ksmd-s, 5 of the best peer's",
    measured=lambda one: one.saved_mib_s_per_cpu_s,
    limit=lambda runs: 5 * max(peer.saved_mib_s_per_cpu_s for peer in peers(runs)),
    is_least=True,
)
NEIGHBOUR = Rule(
    what="neighbour at rest, as beside the quickest peer",
    measured=lambda one: one.neighbour_rest_ms,
    limit=lambda runs: NEIGHBOUR_NOISE * quickest_neighbour_ms(runs),
    unit="ms",
)
SAVINGS = Rule(
    what="savings, within 5 % of the best peer's",
    measured=lambda one: one.held_mib,
    limit=lambda runs: 0.95 * max(peer.held_mib for peer in peers(runs)),
    unit="MiB",
    is_least=True,
)
MERGES = Rule(
    what="merges, 1/5 of flat out's", measured=lambda one: one.merges, limit=lambda runs: flat_merges(runs) / 5
)
SAYS_SO = Rule(
    what="says so: the share that it expects to merge, and to last",
    measured=lambda one: one.min_merge_ratio,
    limit=lambda _: 0.3,
)
AS_FLAT = Rule(
    what="savings, 98 % of flat out's",
    measured=lambda one: one.held_mib,
    limit=lambda runs: 0.98 * run_of(runs, "flat").held_mib,
    unit="MiB",
    is_least=True,
)
IDLES_AGAIN = Rule(
    what="idle again, with a backlog of",
    measured=lambda one: None if one.idle_after_s is None else one.backlog_mib,
    limit=lambda _: 0.0,
    unit="MiB",
)
CLAIRVOYANT_CPU = cpu("1.6 of the clairvoyant's", lambda runs: 1.6 * run_of(runs, "clairvoyant").cpu_s)

STORM = (
    time("1.25 of the clairvoyant's", lambda runs: 1.25 * clairvoyant_s(runs)),
    time("1/3 of the best peer's", lambda runs: best_time_s(runs) / 3),
    CLAIRVOYANT_CPU,
    *(hour(10), rest(0.3), LEAD, NEIGHBOUR),
)
GOALS: Mapping[str, Sequence[Rule]] = {
    "storm": STORM,
    "huge": (*STORM, AS_FLAT),
    "zero": (
        as_free("settling", lambda one: one.used_mib),
        as_free("growth", lambda one: one.used_changed_mib),
        *tells_the_truth("RSS", lambda one: one.used_at_end_mib),
        *tells_the_truth("MemAvailable", lambda one: one.taken_mib),
    ),
    "small": (
        time("the best peer's and 3 s", lambda runs: best_time_s(runs) + 3),
        CLAIRVOYANT_CPU,
        *(hour(5), rest(0.3), LEAD, NEIGHBOUR),
    ),
    "linux": (
        time("the best peer's and 10 s", lambda runs: best_time_s(runs) + 10),
        cpu("the fastest peer's until its 90 %", cpu_of_fastest_s),
        *(hour(10), rest(0.3), LEAD, NEIGHBOUR),
    ),
    "twin": (
        time("1/2 of the best peer's", lambda runs: best_time_s(runs) / 2),
        CLAIRVOYANT_CPU,
        *(hour(5), rest(0.3), LEAD, NEIGHBOUR),
    ),
    "growth": (
        lag("", lambda one: one.lag_share),
        lag(", once settled", lambda one: one.late_lag_share),
        *(hour(5), rest(0.3), LEAD, NEIGHBOUR),
    ),
    "churn": (SAVINGS, hour(5), rest(1), LEAD, NEIGHBOUR),
    "thrash": (MERGES, SAYS_SO, hour(10), rest(1), NEIGHBOUR),
    "drift": (
        Rule(
            what="90 % after the earlier change, 1.25 of the best peer's",
            measured=lambda one: one.until_earlier_s,
            limit=lambda runs: 1.25 * best_earlier_s(runs),
            unit="s",
        ),
        time("1.25 of the best peer's", lambda runs: 1.25 * best_time_s(runs)),
        *(hour(5), rest(0.3)),
    ),
    "stop": (IDLES_AGAIN, rest(0.3), LEAD, NEIGHBOUR),
}


def judge_work(work: str, results: Results) -> tuple[list[Goal], list[str]]:
    """Judge all goals of one work; return what could be judged, and why the rest could not."""
    goals, left_out = [], []
    for rule in GOALS[work]:
        try:
            goals.append(rule.judge(results))
        except NotJudged as error:
            left_out.append(str(error))
    return goals, list(dict.fromkeys(left_out))
