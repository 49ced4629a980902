"""The quantities that may change the adaptive policy's decision, and what it would do. Pure; see policy/thresholds.py.

While KSM is off, `run` alone counts. Time and the guests' growth count while the policy is engaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from virtksm.model.decision import GROWTH_KIB, PASSED_S, Decision
from virtksm.model.snapshot import Guest, Snapshot
from virtksm.policy.adaptive.backlog import OTHER_PROCESSES
from virtksm.policy.adaptive.engage import available_of_kib, potential_of_kib
from virtksm.policy.adaptive.state import AdaptiveState
from virtksm.policy.thresholds import LATER_S, TIMER, Quantity

if TYPE_CHECKING:
    from virtksm.policy.adaptive import AdaptivePolicy

SCANS = ("full_scan", "check_scan")
LEAVES = {"off": "decides by memory", "disengaged": "engages"}
"""What it is called when a rule no longer holds, whichever comes after it."""
ENTERS = {
    "disengaged": "disengages",
    "stalled": "gives the full scan up",
    "empty": "gives the full scan up",
    "wait": "plans a full scan",
    "full_scan": "begins a full scan",
    "check_scan": "begins a check scan",
}
"""What it is called when a rule fires; nothing happens when `idle` does between full scans."""
AFTER = {"stalled": "wait", "empty": "idle"}
"""The rules that hold after those of one pass."""


def find_quantities(
    policy: AdaptivePolicy, snapshot: Snapshot, state: AdaptiveState, decision: Decision
) -> Iterator[Quantity]:
    """Yield what may change the decision that has left `state` behind."""
    snapshot, state = with_one_guest(snapshot, state)
    rule, host, ksm = decision.reason.rule, snapshot.host, snapshot.ksm

    def ask(seen: Snapshot) -> str:
        return name_change(rule, state, *policy.decide(seen, state, TIMER))

    def moving(name: str, present: int, points: tuple[float, ...], move: Callable[[int], Snapshot]) -> Quantity:
        return Quantity(name=name, present=present, points=points, then=lambda value: ask(move(int(value))))

    is_engaged = rule not in LEAVES
    yield Quantity(
        name=PASSED_S,
        present=0,
        points=(0.0, *(LATER_S if is_engaged else ())),
        then=lambda passed_s: ask(later(snapshot, passed_s)),
    )
    if rule == "off" and ksm.run is not None:
        yield moving("run", ksm.run, (1,), lambda run: replace(snapshot, ksm=replace(ksm, run=run)))
        return
    if rule in SCANS and ksm.full_scans is not None:
        points = tuple(ksm.full_scans + more for more in (1, 2))
        yield moving(
            "full_scans", ksm.full_scans, points, lambda count: replace(snapshot, ksm=replace(ksm, full_scans=count))
        )
    if rule in ("idle", "empty"):
        growth = _growth(policy, snapshot, state, rule)
        if not growth.then(0):  # else time alone brings that about
            yield growth
    if policy.params.engage == "auto":
        yield moving(
            "available_kib",
            available_of_kib(snapshot),
            (host.total_kib if is_engaged else 0,),
            lambda kib: replace(snapshot, host=replace(host, available_kib=kib)),
        )
        yield moving(
            "potential_kib",
            potential_of_kib(snapshot),
            (snapshot.committed_kib if is_engaged else host.total_kib + 1,),
            lambda kib: replace(snapshot, guests=tuple(replace(guest, max_kib=kib) for guest in snapshot.guests[:1])),
        )


def _growth(policy: AdaptivePolicy, snapshot: Snapshot, state: AdaptiveState, rule: str) -> Quantity:
    """Return the quantity of memory that guests take in addition; it has to settle, so that two passes tell."""
    all_guests, unread = snapshot.guests

    def then(kib: float) -> str:
        grown = replace(all_guests, rss_kib=snapshot.committed_kib + int(kib))
        seen = replace(snapshot, guests=(grown, unread))
        _, after = policy.decide(seen, state, TIMER)
        return name_change(rule, state, *policy.decide(later(seen, policy.params.settle_s), after, TIMER))

    points = tuple(float(kib) for kib in (2**10, 2**15, 2**20, snapshot.host.total_kib))
    return Quantity(name=GROWTH_KIB, present=0, points=points, then=then)


def name_change(rule: str, state: AdaptiveState, decision: Decision, after: AdaptiveState) -> str:
    """Return what a decision does after one by `rule` that has left `state` behind; empty if all goes on."""
    new, current = decision.reason.rule, state.scans.current
    if rule in LEAVES:
        return "" if new == rule else LEAVES[rule]
    if current is not None and new in (*SCANS, "wait", "idle"):
        goes_on = after.scans.current is not None and after.scans.current.began == current.began
        return "" if goes_on else "ends the full scan"
    return "" if new == AFTER.get(rule, rule) else ENTERS.get(new, "")


def later(snapshot: Snapshot, passed_s: float) -> Snapshot:
    """Return the same host after so many seconds."""
    return replace(snapshot, taken_s=snapshot.taken_s + passed_s)


def with_one_guest(snapshot: Snapshot, state: AdaptiveState) -> tuple[Snapshot, AdaptiveState]:
    """Return the same host with its guests in one, and those that are unread in another: the law goes by their sums.

    So to ask about 150 guests takes no longer than to ask about one.
    """
    others_kib = state.guests_kib.get(OTHER_PROCESSES)
    read_kib = snapshot.committed_kib
    unread_kib = sum(state.guests_kib.values()) - read_kib - (others_kib or 0)
    guests = (
        Guest(uuid="all", name="all", rss_kib=read_kib, max_kib=potential_of_kib(snapshot)),
        Guest(uuid="unread", name="unread", rss_kib=None),
    )
    guests_kib = {guests[0].key: read_kib, guests[1].key: unread_kib}
    if others_kib is not None:
        guests_kib[OTHER_PROCESSES] = others_kib
    return replace(snapshot, guests=guests), replace(state, guests_kib=guests_kib)
