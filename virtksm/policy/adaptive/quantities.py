"""The quantities that may change the adaptive policy's decision, and what it would do; see policy/thresholds.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from virtksm.model.decision import GROWTH_KIB, PASSED_S, Decision
from virtksm.model.snapshot import Guest, Snapshot
from virtksm.policy.adaptive.changes import CHANGED, add, changing
from virtksm.policy.adaptive.engage import available_of_kib, potential_of_kib, with_available
from virtksm.policy.adaptive.state import AdaptiveState, Appeared, Ratio
from virtksm.policy.adaptive.worth import expect
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
    snapshot, state = with_one_guest(snapshot, state)
    rule, ksm = decision.reason.rule, snapshot.ksm
    everyone, unread = snapshot.guests
    held_kib, usable_kib = snapshot.committed_kib, snapshot.host.usable_kib
    is_engaged = rule not in LEAVES

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
        grown = asking(
            at_once, lambda kib: replace(snapshot, guests=(replace(everyone, rss_kib=held_kib + kib), unread))
        )
        yield GROWTH_KIB, 0, (2**10, 2**15, 2**20, usable_kib), grown
    if policy.params.engage in ("auto", "short"):
        freed = asking(policy, lambda kib: with_available(snapshot, kib))
        yield "available_kib", available_of_kib(snapshot), (usable_kib if is_engaged else 0,), freed
    if policy.params.engage == "auto":
        allowed = asking(policy, lambda kib: replace(snapshot, guests=(replace(everyone, max_kib=kib), unread)))
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


def with_one_guest(snapshot: Snapshot, state: AdaptiveState) -> tuple[Snapshot, AdaptiveState]:
    """Return the same host with its guests in one, and unread ones in another: 150 take no longer than one.

    The law goes by their sums, but that no guest changes more than it has. What is expected of them all is as if it had
    been learned.
    """
    one = Guest(uuid="all", name="all", rss_kib=snapshot.committed_kib, max_kib=potential_of_kib(snapshot))
    unread = Guest(uuid="unread", name="unread")
    named = {guest.key: (unread if guest.rss_kib is None else one).key for guest in snapshot.guests}

    def gather(kib_by_key: Mapping[str, Any]) -> dict[str, Any]:
        found = defaultdict[str, Any](int)
        for key, kib in kib_by_key.items():
            process = key.removeprefix(CHANGED)
            found[key.removesuffix(process) + named.get(process, process)] += kib
        return found

    def gather_appeared(appeared: Iterable[Appeared]) -> tuple[Appeared, ...]:
        found = defaultdict[tuple[float, str], int](int)
        for at_s, key, kib in appeared:
            found[at_s, named.get(key, key)] += kib
        return tuple(Appeared(*moment, kib) for moment, kib in found.items())

    backlog, shares = state.backlog, expect(snapshot, state)
    rates = {key: kib_per_s for key, (kib_per_s, _) in changing(snapshot, state).items()}
    waiting = add(backlog.new, backlog.scanned_once)
    for _, key, kib in backlog.settling:
        waiting[key] = waiting.get(key, 0) + kib
    waiting |= {key: backlog.changed.get(key, 0.0) or kib_per_s for key, kib_per_s in rates.items()}
    gain = gather({key: kib * shares.of(key).share for key, kib in waiting.items()})
    ratios = {
        key: Ratio(max(gain[key] / kib, 0.0 if key.startswith(CHANGED) else shares.least), kib)
        for key, kib in gather(waiting).items()
        if kib
    }
    learned = replace(state.learned, ratios=ratios, pair={})
    held_kib, current = gather(state.guests_kib), state.scans.current
    if current is not None:
        current = replace(current, scanning=gather(current.scanning))
    state = replace(
        state,
        guests_kib=held_kib,
        given_back_kib={},
        backlog=replace(
            backlog,
            settling=gather_appeared(backlog.settling),
            new=gather(backlog.new),
            scanned_once=gather(backlog.scanned_once),
            changed=gather(backlog.changed),
        ),
        arrivals=replace(state.arrivals, recent=gather_appeared(state.arrivals.recent)),
        scans=replace(state.scans, current=current),
        learned=learned,
    )
    their_rates = gather(rates)
    one = replace(one, shared_kib=max(snapshot.committed_kib - held_kib.get(one.key, 0), 0))
    guests = (replace(guest, dirty_kib_per_s=their_rates.get(CHANGED + guest.key, 0.0)) for guest in (one, unread))
    return replace(snapshot, guests=tuple(guests)), state
