"""The kinds of goals of the race: rules that judge one work's figures, with their numbers as parameters.

Pure: results in, one verdict out. Peers are the real ksmtuned, the kernel's advisor in both ways and the kernel's
default; flat out and the clairvoyant are bounds. "The best peer that merges as much" is, of those that reached 90 % of
the final savings in the run, the one with the least ksmd CPU over the hour. Where no peer reached 90 %, times are
judged by what is left of the run, which is less than they need, and CPU by the peer that holds most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.race.measures import LATE_LAG_S, OFF, Figures, Results

OURS = "adaptive"
PEERS = ("ksmtuned", "advisor-boot", "advisor-late", "default")
NEIGHBOUR_NOISE = 1.01

TIME, SAVINGS, CPU, HOUR, REST = "time to 90 %", "savings", "ksmd CPU until parked", "ksmd CPU, hour", "ksmd at rest"
LEAD, NEIGHBOUR, SAID, PARKS = "saved MiB-s per ksmd-s", "neighbour at rest", "says so", "parks again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One goal beside what was measured; `met` is None where it could not be judged."""

    column: str
    measured: str
    goal: str
    met: bool | None

    @property
    def word(self) -> str:
        """Tell the verdict in a word."""
        return {True: "met", False: "MISSED", None: "not judged"}[self.met]


class NotRun(Exception):
    """A contender that a rule compares with has no run."""


Rule = Callable[[Results], Verdict]


def ours(results: Results) -> Figures:
    return run_of(results, OURS)


def run_of(results: Results, contender: str) -> Figures:
    """Return one contender's figures; raises NotRun."""
    try:
        return results.figures[contender]
    except KeyError:
        raise NotRun(contender) from None


def peers(results: Results) -> list[Figures]:
    """Return the figures of all peers that ran; raises NotRun without any."""
    found = [results.figures[name] for name in PEERS if name in results.figures]
    if not found:
        raise NotRun(f"a peer ({', '.join(PEERS)})")
    return found


def best_peer_time(results: Results) -> tuple[float, str]:
    """Return the least time to 90 % of a peer, or, if none got there, what is left of the run; and how to call it."""
    reached = [(peer.until_most_s, peer.contender) for peer in peers(results) if peer.until_most_s is not None]
    if reached:
        seconds, name = min(reached)
        return seconds, f"{name}'s {seconds:.1f} s"
    seconds = min(peer.watched_s for peer in peers(results))
    return seconds, f"the peers' more than {seconds:.1f} s"


def best_peer_hour(results: Results) -> Figures:
    """Return the best peer that merges as much, or, if none does, the one that holds most."""
    reached = [peer for peer in peers(results) if peer.until_most_s is not None]
    if reached:
        return min(reached, key=lambda peer: peer.hour_cpu_s)
    return max(peers(results), key=lambda peer: peer.held_mib)


def time_verdict(results: Results, at_most_s: float, goal: str) -> Verdict:
    until_s = ours(results).until_most_s
    measured = "not in the run" if until_s is None else f"{until_s:.1f} s"
    return Verdict(column=TIME, measured=measured, goal=goal, met=until_s is not None and until_s <= at_most_s)


def time_over_clairvoyant(times: float) -> Rule:
    def rule(results: Results) -> Verdict:
        until_s = run_of(results, "clairvoyant").until_most_s
        if until_s is None:
            raise NotRun("the clairvoyant that reached 90 %")
        goal = f"at most {times:g} times the clairvoyant's {until_s:.1f} s = {times * until_s:.1f} s"
        return time_verdict(results, times * until_s, goal)

    return rule


def time_over_best_peer(divisor: int) -> Rule:
    def rule(results: Results) -> Verdict:
        peer_s, name = best_peer_time(results)
        return time_verdict(results, peer_s / divisor, f"at most 1/{divisor} of {name} = {peer_s / divisor:.1f} s")

    return rule


def time_behind_best_peer(seconds: float) -> Rule:
    def rule(results: Results) -> Verdict:
        peer_s, name = best_peer_time(results)
        return time_verdict(results, peer_s + seconds, f"at most {seconds:g} s behind {name}")

    return rule


def cpu_over_clairvoyant(times: float) -> Rule:
    def rule(results: Results) -> Verdict:
        least_s, cpu_s = run_of(results, "clairvoyant").cpu_s, ours(results).cpu_until_parked_s
        return Verdict(
            column=CPU,
            measured="never parked" if cpu_s is None else f"{cpu_s:.1f} s",
            goal=f"at most {times:g} times the clairvoyant's {least_s:.1f} s = {times * least_s:.1f} s",
            met=cpu_s is not None and cpu_s <= times * least_s,
        )

    return rule


def cpu_of_best_peer(results: Results) -> Verdict:
    """Judge by the CPU that the peer that is first at its 90 % has used until then."""
    reached = [peer for peer in peers(results) if peer.until_most_s is not None]
    if not reached:
        raise NotRun("a peer that reached 90 %")
    peer = min(reached, key=lambda one: one.until_most_s or 0.0)
    assert peer.cpu_until_most_s is not None
    cpu_s = ours(results).cpu_until_parked_s
    return Verdict(
        column=CPU,
        measured="never parked" if cpu_s is None else f"{cpu_s:.1f} s",
        goal=f"at most {peer.contender}'s {peer.cpu_until_most_s:.1f} s until its 90 %",
        met=cpu_s is not None and cpu_s <= peer.cpu_until_most_s,
    )


def hour_of_best_peer(divisor: int) -> Rule:
    def rule(results: Results) -> Verdict:
        peer, hour_s = best_peer_hour(results), ours(results).hour_cpu_s
        at_most_s = peer.hour_cpu_s / divisor
        return Verdict(
            column=HOUR,
            measured=f"{hour_s:.1f} s",
            goal=f"at most 1/{divisor} of {peer.contender}'s {peer.hour_cpu_s:.1f} s = {at_most_s:.1f} s",
            met=hour_s <= at_most_s,
        )

    return rule


def rest_below(percent: float) -> Rule:
    def rule(results: Results) -> Verdict:
        share = ours(results).rest_share
        measured, goal = f"{100 * share:.2f} % of a core", f"under {percent:g} %"
        return Verdict(column=REST, measured=measured, goal=goal, met=100 * share < percent)

    return rule


def lag_at_most(percent: float) -> Rule:
    def rule(results: Results) -> Verdict:
        run_of(results, "flat")
        return lag_verdict(results.lag_shares[OURS], percent, "")

    return rule


def late_lag_at_most(percent: float) -> Rule:
    def rule(results: Results) -> Verdict:
        run_of(results, "flat")
        when = f", from {LATE_LAG_S:g} s after the last guest's settling"
        return lag_verdict(results.late_lag_shares[OURS], percent, when)

    return rule


def lag_verdict(lag_share: float, percent: float, when: str) -> Verdict:
    behind = f"{100 * lag_share:.1f} % behind" if lag_share > 0 else f"{-100 * lag_share:.1f} % ahead"
    goal = f"never more than {percent:g} % behind flat out{when}"
    return Verdict(column=SAVINGS, measured=f"{behind} at worst", goal=goal, met=100 * lag_share <= percent)


def savings_within(percent: float) -> Rule:
    def rule(results: Results) -> Verdict:
        best = max(peers(results), key=lambda peer: peer.held_mib)
        least_mib, held_mib = best.held_mib * (1 - percent / 100), ours(results).held_mib
        goal = f"at least {least_mib:.0f} MiB: within {percent:g} % of {best.contender}'s {best.held_mib:.0f} MiB"
        return Verdict(column=SAVINGS, measured=f"{held_mib:.0f} MiB", goal=goal, met=held_mib >= least_mib)

    return rule


def merges_of_flat(divisor: int) -> Rule:
    def rule(results: Results) -> Verdict:
        flat, merges = run_of(results, "flat").merges, ours(results).merges
        if flat is None or merges is None:
            raise NotRun("a kernel that counts writes to merged pages (cow_ksm)")
        goal = f"fewer than 1/{divisor} of flat out's {flat} merges = {flat // divisor}"
        return Verdict(column=SAVINGS, measured=f"{merges} merges", goal=goal, met=merges < flat / divisor)

    return rule


def parks_again(results: Results) -> Verdict:
    figures = ours(results)
    parked = figures.parked_after_s is not None
    owed = "does not say what is owed" if figures.owed_mib is None else f"{figures.owed_mib:.0f} MiB owed"
    measured = f'{"parked" if parked else "never parked"}, {owed}; its last word: "{figures.last_decision}"'
    return Verdict(
        column=PARKS, measured=measured, goal="parked again, nothing owed", met=parked and figures.owed_mib == 0
    )


def says_thrash(results: Results) -> Verdict:
    backoff = ours(results).backoff_most
    measured = "its decisions do not say" if backoff is None else f"backed off up to {backoff:g} times"
    goal = "says that merges do not last, and backs off"
    return Verdict(column=SAID, measured=measured, goal=goal, met=backoff is not None and backoff > 1)


def leads_by(times: float) -> Rule:
    def rule(results: Results) -> Verdict:
        rates = [(one.saved_mib_s_per_cpu_s or 0.0, one.contender) for one in peers(results)]
        rate, name = max(rates)
        measured = ours(results).saved_mib_s_per_cpu_s or 0.0
        goal = f"at least {times:g} times {name}'s {rate:.0f}"
        return Verdict(column=LEAD, measured=f"{measured:.0f}", goal=goal, met=measured >= times * rate)

    return rule


def smallest_at_rest(results: Results) -> Verdict:
    """Judge the neighbour's median at rest, beside the peers' and that with KSM off."""
    base, our_own = run_of(results, OFF).neighbour_rest, ours(results).neighbour_rest
    theirs = [(one.neighbour_rest.median, one.contender) for one in peers(results) if one.neighbour_rest]
    if base is None or our_own is None or not theirs:
        raise NotRun("a neighbour at rest")
    median_ms, name = min(theirs)
    return Verdict(
        column=NEIGHBOUR,
        measured=f"{our_own.median:.2f} ms",
        goal=f"no slower than beside any peer: {name} {median_ms:.2f} ms (KSM off: {base.median:.2f} ms)",
        met=our_own.median <= median_ms * NEIGHBOUR_NOISE,
    )
