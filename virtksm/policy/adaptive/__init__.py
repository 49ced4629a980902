"""The adaptive policy: every page that can merge, soon, and then silence.

In goes a snapshot and the state, out come the settings, the rule that fired with its numbers, and the next state. The
law, numbered as in docs/policies.md; each rule's code is in the module named:

1. Engage when memory is short or will be, always or never, as configured (`engage`).
2. The less memory is available below the reserve, the more waiting costs and the larger the CPU budget (`engage`).
3. Debt is memory of guests and others that has appeared, and broken merges; what has stopped owes nothing (`debt`).
4. Memory is young for settle_s, and pays for no round; then it is fresh debt, owed two visits (`debt`).
5. Debt that waits adds up: KiB times seconds (`debt`).
6. A round begins when waiting for what is likely to merge is worth it, cheap while more comes (`growth`, `rounds`).
7. A round is one full scan: at its end, what was fresh at its beginning is half paid, half is paid (`rounds`).
8. ksmd is fed one batch after the other, within the CPU budget; without ticks it does one a minute (`rounds`).
9. A round that does not get on is given up; its debt stays, unless no memory may merge at all (`rounds`).
10. A round in which smart_scan skipped most old pages pays nothing: their twins are still to be met (`rounds`).
11. Merges that are broken within the next round's time double the price of rounds (`yields`).
12. Without debt: park, and probe now and then, sooner after a probe that found something (`yields`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Decision, Reason, Triggers
from virtksm.model.snapshot import IDLE, Settings, Snapshot, Source
from virtksm.policy.adaptive.debt import OTHER_PROCESSES, account, known_kib, owed_kib, total_kib
from virtksm.policy.adaptive.engage import Need, judge_need
from virtksm.policy.adaptive.rounds import (
    LOOK_S,
    begin_round,
    end_round,
    feed,
    has_ended,
    is_scanned_by_others,
    read_meter,
    round_cost_s,
    seconds_to_wait,
    seconds_until_empty,
    seconds_until_stalled,
)
from virtksm.policy.adaptive.state import AdaptiveState, Round, dump_state, load_state
from virtksm.policy.adaptive.turns import find_turns
from virtksm.policy.adaptive.yields import PROBE_ROUNDS, count_probe_round, judge_lasting, plan_probe, probe_is_due
from virtksm.text import format_kib

NAME = "adaptive"

WATCH_S: Mapping[Source, float] = {Source.LOCAL: 20.0, Source.LIBVIRT: 60.0}
"""How often to look at the guests' memory at rest: a pass wakes libvirt's threads some forty times, and libvirt's own
figures cost 2-5 ms a guest (measured)."""
YOUNG_WATCH_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePolicy:
    """The policy `adaptive`; `params` are the keys of the configuration's table [adaptive]."""

    params: AdaptiveParams

    @property
    def name(self) -> str:
        return NAME

    @property
    def wants_maxima(self) -> bool:
        return self.params.engage == "auto"

    @property
    def wants_other_processes(self) -> bool:
        return True

    def first_state(self, snapshot: Snapshot) -> AdaptiveState:
        return AdaptiveState()

    def load_state(self, kept: Mapping[str, object]) -> AdaptiveState:
        return load_state(kept)

    def dump_state(self, state: AdaptiveState) -> dict[str, object]:
        return dump_state(state)

    def decide(self, snapshot: Snapshot, state: AdaptiveState, triggers: Triggers) -> tuple[Decision, AdaptiveState]:
        """Decide by the rules of this package's docstring. Pure; raises nothing."""
        need = judge_need(snapshot, self.params, was_engaged=state.engaged)
        state = replace(account(snapshot, state, settle_seconds(self.params, need)), engaged=need.engaged)
        if snapshot.ksm.run not in (None, 1):
            return self._rest(snapshot, stand_down(state), need, "off", "KSM is switched off, so nothing can merge")
        if not need.engaged:
            return self._rest(snapshot, stand_down(state), need, "disengaged", f"no need to merge: {need.why}")
        if state.round is not None:
            if not has_ended(snapshot, state.round):
                return self._scan(snapshot, state, state.round, need)
            state = self._close_round(snapshot, state, state.round)
        elif is_scanned_by_others(snapshot, state):
            state = replace(state, full_scans=None)
        return self._between_rounds(snapshot, state, need, triggers)

    def _between_rounds(
        self, snapshot: Snapshot, state: AdaptiveState, need: Need, triggers: Triggers
    ) -> tuple[Decision, AdaptiveState]:
        if state.probe_due_s is None:
            state = plan_probe(state, snapshot.taken_s, round_cost_s(snapshot, state))
        memory_kib = total_kib(snapshot, state)
        if state.probe_rounds == 0 and probe_is_due(state, snapshot.taken_s):
            state = replace(state, probe_rounds=PROBE_ROUNDS)
        wait_s = seconds_to_round(snapshot, state, need, triggers)
        if wait_s is not None and wait_s < LOOK_S:
            state = judge_lasting(state, memory_kib)
            wait_s = seconds_to_round(snapshot, state, need, triggers)
        if wait_s is not None and wait_s < LOOK_S:
            state = begin_round(snapshot, state)
        if state.round is not None:
            return self._scan(snapshot, state, state.round, need)
        if wait_s is None:
            return self._rest(snapshot, state, need, "rest", covered_text(snapshot, state))
        text = f"{format_kib(owed_kib(state))} owed, worth a round in {wait_s:.0f} s"
        return self._rest(snapshot, state, need, "wait", text, wait_s)

    def _close_round(self, snapshot: Snapshot, state: AdaptiveState, ended: Round) -> AdaptiveState:
        before_kib = state.gained_kib
        memory_kib = total_kib(snapshot, state)
        state = end_round(snapshot, state, ended)
        state = count_probe_round(state, state.gained_kib - before_kib, memory_kib)
        return plan_probe(state, snapshot.taken_s, round_cost_s(snapshot, state))

    def _scan(
        self, snapshot: Snapshot, state: AdaptiveState, current: Round, need: Need
    ) -> tuple[Decision, AdaptiveState]:
        empty_s = seconds_until_empty(snapshot, current)
        if empty_s is not None and empty_s <= 0:
            state = forgo(snapshot, state)
            return self._rest(snapshot, state, need, "empty", "KSM knows of no page that may merge, so nothing is owed")
        if seconds_until_stalled(snapshot, state, current) < 0:
            state = plan_probe(stand_down(state), snapshot.taken_s, round_cost_s(snapshot, state))
            return self._rest(snapshot, state, need, "stalled", "ksmd does not get on with its round: given up")
        settings, next_pass_s, state = feed(snapshot, state, current, self.params, need.pressure)
        rule = "probe" if state.probe_rounds > 0 else "round"
        memory, fresh = format_kib(total_kib(snapshot, state)), format_kib(current.scanning_kib)
        text = f"{rule} over {memory}{progress(snapshot, current)}, {fresh} of it fresh"
        return self._decision(snapshot, state, need, rule, text, settings, next_pass_s)

    def _rest(
        self, snapshot: Snapshot, state: AdaptiveState, need: Need, rule: str, text: str, wait_s: float | None = None
    ) -> tuple[Decision, AdaptiveState]:
        waits = [WATCH_S[snapshot.source]]
        if need.engaged and state.young:
            waits.append(YOUNG_WATCH_S)
        if need.engaged and state.probe_due_s is not None:
            waits.append(state.probe_due_s - snapshot.taken_s)
        if wait_s is not None:
            waits.append(wait_s)
        return self._decision(snapshot, state, need, rule, f"{text}: parked", IDLE, max(min(waits), LOOK_S))

    def _decision(
        self,
        snapshot: Snapshot,
        state: AdaptiveState,
        need: Need,
        rule: str,
        text: str,
        settings: Settings,
        next_pass_s: float,
    ) -> tuple[Decision, AdaptiveState]:
        merge = {"keep": None, "never": 0, "always": 1}[self.params.merge_across_nodes]
        has = snapshot.ksm.settings.merge_across_nodes
        if merge is not None and has not in (None, merge) and snapshot.ksm.pages_shared:
            text += "; merge_across_nodes waits until nothing is shared"
            merge = None
        if state.backoff > 1:
            text += f"; merges do not last, so that a round has to be worth {state.backoff} times its cost"
        numbers = {
            "memory_kib": total_kib(snapshot, state),
            "young_kib": sum(kib for _, kib in state.young),
            "fresh_kib": state.fresh_kib,
            "half_kib": state.half_kib,
            "gone_kib": state.gone_kib,
            "waited_kib_s": round(state.waited_kib_s, 1),
            "round_cost_s": round(round_cost_s(snapshot, state), 3),
            "page_cost_us": round(state.page_cost_s * 1e6, 3),
            "backoff": state.backoff,
            "yielded": round(state.yielded, 3),
            "narrow_rounds": state.narrow_rounds,
            "pressure": round(need.pressure, 3),
            "guests": len(snapshot.guests),
            "guests_unread": snapshot.guests_unread,
        }
        if snapshot.other_processes is not None:
            numbers |= {
                "other_processes_kib": snapshot.other_processes.kib,
                "other_processes_unread": snapshot.other_processes.unread,
            }
        turns = tuple(find_turns(snapshot, state, need, settle_seconds(self.params, need)))
        decision = Decision(
            target=replace(settings, merge_across_nodes=merge),
            reason=Reason(rule=rule, text=text, numbers=numbers, turns_when=turns),
            next_pass_s=next_pass_s,
            is_routine=rule == state.rule,
        )
        return decision, replace(state, rule=rule)


def settle_seconds(params: AdaptiveParams, need: Need) -> float:
    """Return how long memory is young (rule 4): shorter, the more memory presses."""
    return params.settle_s * (1 - need.pressure)


def seconds_to_round(snapshot: Snapshot, state: AdaptiveState, need: Need, triggers: Triggers) -> float | None:
    """Return how long the next round has yet to wait, None if nothing asks for one."""
    if state.probe_rounds > 0:
        return 0.0
    wait_s = seconds_to_wait(snapshot, state, need)
    return 0.0 if wait_s is not None and triggers.is_explicit else wait_s


def stand_down(state: AdaptiveState) -> AdaptiveState:
    """Drop the round that is under way: its debt is owed whole again, and ksmd's cursor is anywhere."""
    if state.round is None:
        return state
    return replace(
        state,
        round=None,
        full_scans=None,
        fresh_kib=state.fresh_kib + state.round.scanning_kib,
        pair_left=0,
        probe_rounds=0,
    )


def forgo(snapshot: Snapshot, state: AdaptiveState) -> AdaptiveState:
    """Drop the round and what is owed, as no memory may merge; what has appeared since is owed, and probes go on."""
    state = replace(state, round=None, full_scans=None, fresh_kib=0, half_kib=0, gone_kib=0, narrow_rounds=0, retries=0)
    state = count_probe_round(replace(state, probe_rounds=min(state.probe_rounds, 1)), 0, total_kib(snapshot, state))
    return plan_probe(state, snapshot.taken_s, round_cost_s(snapshot, state))


def covered_text(snapshot: Snapshot, state: AdaptiveState) -> str:
    """Say that nothing is owed, and of how much memory; of others', too, where there is any."""
    memory_kib, other_processes_kib = total_kib(snapshot, state), state.guests_kib.get(OTHER_PROCESSES, 0)
    if known_kib(snapshot) == 0:
        return "nothing is owed, and KSM knows of no page that may merge"
    others = f", {format_kib(other_processes_kib)} of it of others than guests," if other_processes_kib else ""
    return f"all of {format_kib(memory_kib)}{others} is covered"


def progress(snapshot: Snapshot, current: Round) -> str:
    """Say how far a round is, where the kernel tells."""
    now, began = read_meter(snapshot).pages_scanned, current.began.pages_scanned
    if now is None or began is None:
        return ""
    return f", {format_kib(snapshot.ksm.kib(max(now - began, 0)))} visited"
