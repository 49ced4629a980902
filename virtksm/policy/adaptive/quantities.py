"""The quantities that may change the adaptive policy's decision, and what it would do; see policy/thresholds.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from virtksm.model.decision import GROWTH_KIB, PASSED_S, Decision
from virtksm.model.snapshot import Guest, Snapshot
from virtksm.policy.adaptive.engage import available_of_kib, potential_of_kib, with_available
from virtksm.policy.adaptive.state import AdaptiveState
from virtksm.policy.thresholds import LATER_S, TIMER, Quantity
from virtksm.values import replace

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
    rule, ksm, is_engaged = decision.reason.rule, snapshot.ksm, decision.reason.rule not in LEAVES
    held_kib, usable_kib = snapshot.committed_kib, snapshot.host.usable_kib
    more = Guest(uuid="more", name="more")

    def asking(by: AdaptivePolicy, move: Callable[[Any], Snapshot]) -> Callable[[Any], str]:
        return lambda value: name_change(rule, state, *by.decide(move(value), state, TIMER))

    later = asking(policy, lambda passed_s: replace(snapshot, taken_s=snapshot.taken_s + passed_s))
    yield PASSED_S, 0, (0, *(LATER_S if is_engaged else ())), later
    if rule == "off":
        yield "run", ksm.run or 0, (1,), asking(policy, lambda run: replace(snapshot, ksm=replace(ksm, run=run)))
        return
    if rule in SCANS and ksm.full_scans is not None:
        counted = asking(policy, lambda full_scans: replace(snapshot, ksm=replace(ksm, full_scans=full_scans)))
        yield "full_scans", ksm.full_scans, (ksm.full_scans + 1, ksm.full_scans + 2), counted
    if AFTER.get(rule, rule) == "idle" and not state.backlog.settling:  # as if what guests take had settled
        at_once = type(policy)(replace(policy.params, settle_s=0))
        grown = asking(at_once, lambda kib: replace(snapshot, guests=(*snapshot.guests, replace(more, rss_kib=kib))))
        yield GROWTH_KIB, 0, (2**10, 2**15, 2**20, usable_kib), grown
    if policy.params.engage in ("auto", "short"):
        freed = asking(policy, lambda kib: with_available(snapshot, kib))
        yield "available_kib", available_of_kib(snapshot), (usable_kib if is_engaged else 0,), freed
    if policy.params.engage == "auto":
        full = [replace(guest, max_kib=None) for guest in snapshot.guests]
        allowed = asking(policy, lambda kib: replace(snapshot, guests=(*full, replace(more, max_kib=kib - held_kib))))
        yield "potential_kib", potential_of_kib(snapshot), (held_kib if is_engaged else usable_kib + 1,), allowed


def name_change(rule: str, state: AdaptiveState, decision: Decision, after: AdaptiveState) -> str:
    """Return what a decision does after one by `rule` that has left `state` behind; empty if all goes on."""
    new, current = decision.reason.rule, state.scans.current
    if rule in LEAVES:
        return "" if new == rule else LEAVES[rule]
    if current is not None and new in (*SCANS, "wait", "idle"):
        goes_on = after.scans.current is not None and after.scans.current.began == current.began
        return "" if goes_on else "ends the full scan"
    return "" if new == AFTER.get(rule, rule) else ENTERS.get(new, "")
