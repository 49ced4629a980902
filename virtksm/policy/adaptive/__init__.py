"""The adaptive policy: every page that can merge, but for what smart_scan keeps apart, soon, and then silence.

One idea carries the law: **a full scan is made when what it is expected to gain is worth what it costs.** In goes a
snapshot and the state, out come the settings, the reason with its numbers, and the next state. The rules, numbered as
in docs/policies.md; each rule's code is in the module named:

1. Need: act when memory is short, or may be once guests have grown, always or never, as configured. The less of the
   reserve is available, the more waiting costs and the larger the CPU budget (`engage`).
2. Backlog: memory that appears, once it has settled, needs two full scans; so does what changes in place, where no
   count tells: how much is measured or assumed. A guest that stops takes its own away, and leaves pages that one full
   scan has KSM forget (`backlog`, `changes`, `full_scans`).
3. Gain: what share of a process's new and changed memory merges, and lasts, is learned from the full scans before, so
   that one that rewrites what merges pays for itself. Guests that start go by others of their image (`worth`).
4. Worth: a backlog that waits adds up, KiB times seconds. A full scan begins when that, times its share, is worth the
   cost; later while more comes. One for changed memory alone is a check scan. One more follows a pair by the same
   measure: what was skipped by smart_scan, or is left of a split huge page, has met no twins yet (`worth`, `growth`,
   `full_scans`).
5. Feeding: ksmd gets batch by batch, within the CPU budget; without passes it does one a minute. A full scan without
   progress is given up, and its backlog stays, unless it is known that no memory may merge at all (`full_scans`).
6. Rewriters: a guest that keeps rewriting what merges is to be out for a day, where `exclude_rewriters` asks for it
   (`rewriters`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Decision, Number, Reason, Triggers
from virtksm.model.snapshot import IDLE, Settings, Snapshot, Source
from virtksm.policy.adaptive.backlog import account
from virtksm.policy.adaptive.changes import CHANGED, OTHER_PROCESSES, UNSEEN, add, knows_of_none, total_kib
from virtksm.policy.adaptive.engage import Need, judge_need
from virtksm.policy.adaptive.full_scans import (
    begin_full_scan,
    cpu_share,
    end_full_scan,
    feed,
    has_ended,
    is_empty,
    is_scanned_by_another,
    page_cost_s,
    progress_numbers,
    read_meter,
    scanned_pages,
    seconds_until_stalled,
)
from virtksm.policy.adaptive.growth import Growth, judge_growth
from virtksm.policy.adaptive.rewriters import wants_merged, watch
from virtksm.policy.adaptive.state import AdaptiveState, Backlog, FullScan, Scans, dump_state, load_state
from virtksm.policy.adaptive.worth import (
    MIN_WAIT_S,
    expect,
    expect_of_backlog,
    full_scan_cost_s,
    is_backlog,
    learn,
    seconds_to_wait,
)
from virtksm.text import format_kib
from virtksm.values import replace

if TYPE_CHECKING:
    from virtksm.policy.thresholds import Quantity

NAME = "adaptive"

WATCH_S: Mapping[Source, float] = {Source.LOCAL: 20.0, Source.LIBVIRT: 60.0}
"""Between two sensings while idle: libvirt takes 2-5 ms a guest (measured)."""
SETTLING_WATCH_S = 0.5
"""While memory appears on the local host, and at least until some has settled (chosen)."""


class AdaptivePolicy:
    """The policy `adaptive`; `params` are the keys of the configuration's table [adaptive]."""

    name = NAME
    only_observes = False
    wants_other_processes = True

    def __init__(self, params: AdaptiveParams) -> None:
        self.params = params

    @property
    def wants_maxima(self) -> bool:
        return self.params.engage == "auto"

    def first_state(self, snapshot: Snapshot) -> AdaptiveState:
        return AdaptiveState()

    load_state = staticmethod(load_state)
    dump_state = staticmethod(dump_state)

    def decide(self, snapshot: Snapshot, state: AdaptiveState, triggers: Triggers) -> tuple[Decision, AdaptiveState]:
        """Decide by the rules of this package's docstring. Pure; raises nothing."""
        need = judge_need(snapshot, self.params, was_engaged=state.engaged)
        state = replace(account(snapshot, state, self._settle_s(need)), engaged=need.engaged)
        state = watch(snapshot, state, is_wanted=self.params.exclude_rewriters)
        if snapshot.ksm.run not in (None, 1):
            return self._idle(snapshot, stand_down(state), need, "off", "KSM is off, so nothing can merge")
        if not need.engaged:
            return self._idle(snapshot, stand_down(state), need, "disengaged", need.why)
        current = state.scans.current
        if current is not None:
            if not has_ended(snapshot, current):
                return self._scan(snapshot, state, current, need)
            share = cpu_share(snapshot, self.params, need.pressure)
            state = end_full_scan(snapshot, state, current, share)
        elif is_scanned_by_another(snapshot, state):
            state = replace(state, scans=replace(state.scans, cursor_full_scans=None))
        return self._between_full_scans(snapshot, state, need, triggers)

    def quantities(self, snapshot: Snapshot, state: AdaptiveState, decision: Decision) -> Iterator[Quantity]:
        """Yield what may change the decision that has left `state` behind."""
        from virtksm.policy.adaptive.quantities import find_quantities

        return find_quantities(self, snapshot, state, decision)

    def _settle_s(self, need: Need) -> float:
        return self.params.settle_s * (1 - need.pressure)

    def _between_full_scans(
        self, snapshot: Snapshot, state: AdaptiveState, need: Need, triggers: Triggers
    ) -> tuple[Decision, AdaptiveState]:
        has_backlog = is_backlog(state.backlog.due_kib, total_kib(snapshot, state))
        wait_s = 0.0 if triggers.is_explicit and has_backlog else seconds_to_wait(snapshot, state, need)
        if wait_s is not None and wait_s < MIN_WAIT_S:
            state = begin_full_scan(snapshot, state)
        if state.scans.current is not None:
            return self._scan(snapshot, state, state.scans.current, need)
        if wait_s is None or not has_backlog:
            return self._idle(snapshot, state, need, "idle", idle_text(snapshot, state), wait_s)
        backlog = state.backlog
        text = f"{backlog_text(backlog)}, next full scan in {wait_s:.0f} s"
        if backlog.due_kib > backlog.exited_kib:
            ratio, source = expect_of_backlog(expect(snapshot, state), backlog)
            text += f": {100 * ratio:.0f} % should merge, {source}"
        return self._idle(snapshot, state, need, "wait", text, wait_s)

    def _scan(
        self, snapshot: Snapshot, state: AdaptiveState, current: FullScan, need: Need
    ) -> tuple[Decision, AdaptiveState]:
        finds_nothing, may_be_off = is_empty(snapshot, current), snapshot.ksm.run is None
        if finds_nothing and (state.scans.is_check or not may_be_off):
            text = "KSM knows of no page that may merge, so there is no backlog"
            return self._idle(snapshot, drop_backlog(snapshot, state), need, "empty", text)
        share = cpu_share(snapshot, self.params, need.pressure)
        if seconds_until_stalled(snapshot, state, current, share) < 0:
            state = stand_down(replace(state, learned=replace(state.learned, ended_s=snapshot.taken_s)))
            return self._idle(snapshot, state, need, "stalled", "the full scan makes no progress: given up")
        settings, next_pass_s, state = feed(snapshot, state, current, share)
        rule = "check_scan" if state.scans.is_check else "full_scan"
        memory = format_kib(total_kib(snapshot, state))
        text = f"{rule.replace('_', ' ')} of {memory}: {progress(snapshot, state, current)}"
        if finds_nothing:
            text += "; KSM knows of no page that may merge, or is off"
            next_pass_s = WATCH_S[snapshot.source]
        return self._decision(snapshot, state, need, rule, text, settings, next_pass_s)

    def _idle(
        self, snapshot: Snapshot, state: AdaptiveState, need: Need, rule: str, text: str, wait_s: float | None = None
    ) -> tuple[Decision, AdaptiveState]:
        waits, memory_kib = [WATCH_S[snapshot.source]], total_kib(snapshot, state)
        if need.engaged and (settling := state.backlog.settling):
            if snapshot.source is Source.LOCAL and judge_growth(state, memory_kib) is not Growth.SETTLED:
                waits.append(SETTLING_WATCH_S)
            if is_backlog(state.backlog.settling_kib, memory_kib):
                settled_s = min(one.at_s for one in settling) + self._settle_s(need)
                waits.append(max(settled_s - snapshot.taken_s, SETTLING_WATCH_S))
        if wait_s is not None:
            waits.append(wait_s)
        return self._decision(snapshot, state, need, rule, text, IDLE, max(min(waits), MIN_WAIT_S))

    def _word(self, text: str, settings: Settings) -> str:  # observe's
        """Return the reason as people read it."""
        return text

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
        text = self._word(text, settings)
        merge = {"keep": None, "never": 0, "always": 1}[self.params.merge_across_nodes]
        has = snapshot.ksm.settings.merge_across_nodes
        backlog, learned = state.backlog, state.learned
        if merge is not None and has not in (None, merge) and snapshot.ksm.pages_shared:
            text += "; merge_across_nodes waits until nothing is shared"
            merge = None
        if learned.rewritten_kib * 2 > learned.merged_kib > 0:
            text += "; most of what merged last was rewritten soon, so less is expected of the next full scan"
        if need.engaged and need.where and rule != "off":
            text += f"; {need.where}"
        if state.rewriters:
            would = "would be" if self.only_observes else "are"
            text += f"; guests that {would} out for a day, as they rewrite what merges: {len(state.rewriters)}"
        shares = expect(snapshot, state)
        numbers: dict[str, Number] = {
            "memory_kib": total_kib(snapshot, state),
            "settling_kib": backlog.settling_kib,
            "new_kib": backlog.new_kib,
            "scanned_once_kib": backlog.scanned_once_kib,
            "exited_kib": backlog.exited_kib,
            "waited_kib_s": round(backlog.waited_kib_s, 1),
            "full_scan_cost_s": round(full_scan_cost_s(snapshot, state), 3),
            "page_cost_us": round(page_cost_s(snapshot, state) * 1e6, 3),
            "changed_kib": int(backlog.changed_kib),
            "merge_ratio": round(shares.ratio(state.guests_kib), 3),
            "expected_ratio": round(expect_of_backlog(shares, backlog)[0], 3),
            "changed_ratio": round(shares.ratio(backlog.changed, CHANGED), 4),
            "more_full_scans": state.scans.more,
            "pressure": round(need.pressure, 3),
            "cpu_budget_percent": round(100 * cpu_share(snapshot, self.params, need.pressure), 1),
            "guests": len(snapshot.guests),
            "guests_unread": snapshot.guests_unread,
        }
        if snapshot.other_processes is not None:
            numbers |= {
                "other_processes_kib": snapshot.other_processes.kib,
                "other_processes_unread": snapshot.other_processes.unread,
            }
        if state.scans.current is not None:
            numbers |= progress_numbers(snapshot, state, state.scans.current)
        decision = Decision(
            target=replace(settings, merge_across_nodes=merge),
            reason=Reason(rule=rule, text=text, numbers=numbers),
            next_pass_s=next_pass_s,
            is_routine=rule == state.rule,
            wants_dirty_rates=need.engaged and rule != "off" and not self.only_observes,
            wants_merged=self.params.exclude_rewriters and rule in ("idle", "wait") and wants_merged(snapshot, state),
            # Shared themselves, they would keep merge_across_nodes from being set and given back.
            wants_zero_pages=snapshot.source is Source.LOCAL
            and self.params.merge_across_nodes == "keep"
            and not self.only_observes,
            rewriters=tuple(sorted(state.rewriters)),
        )
        return decision, replace(state, rule=rule)


def stand_down(state: AdaptiveState) -> AdaptiveState:
    """Drop the full scan that is under way: what it was scanning waits again, and ksmd's cursor is anywhere."""
    scans, backlog = state.scans, state.backlog
    if scans.current is None:
        return state
    scanning = scans.current.scanning
    new = {key: int(kib) for key, kib in scanning.items() if not key.startswith(CHANGED)}
    changed = {key: kib for key, kib in scanning.items() if key.startswith(CHANGED)}
    return replace(
        state,
        backlog=replace(backlog, new=add(backlog.new, new), changed=add(backlog.changed, changed)),
        scans=replace(scans, current=None, cursor_full_scans=None, pair_left=0, fed=scans.last_fed),
    )


def drop_backlog(snapshot: Snapshot, state: AdaptiveState) -> AdaptiveState:
    """Drop the full scan and the backlog, as no memory may merge; what appears later counts, and check scans go on."""
    current = state.scans.current
    scanned = {**(current.scanning if current else {}), UNSEEN: 1.0}  # none of what nothing tells
    learned = learn(snapshot, state, scanned, 0)
    return replace(state, backlog=Backlog(settling=state.backlog.settling), scans=Scans(), learned=learned)


def backlog_text(backlog: Backlog) -> str:
    """Say what waits for a full scan: memory, and what KSM has yet to forget of guests that have stopped."""
    new_kib, exited_kib = backlog.due_kib - backlog.exited_kib, backlog.exited_kib
    new = [f"{format_kib(new_kib)} not scanned yet"] if new_kib or not exited_kib else []
    exited = [f"{format_kib(exited_kib)} of stopped guests to forget"] if exited_kib else []
    return " and ".join([*new, *exited])


def idle_text(snapshot: Snapshot, state: AdaptiveState) -> str:
    """Say that there is no backlog, and of how much memory; of other processes', too, where there is any."""
    if knows_of_none(snapshot):
        return "no backlog, and KSM knows of no page that may merge, ksmd idle"
    other_kib = state.guests_kib.get(OTHER_PROCESSES, 0)
    others = f", {format_kib(other_kib)} of it of other processes" if other_kib else ""
    return f"all {format_kib(total_kib(snapshot, state))} scanned{others}, ksmd idle"


def progress(snapshot: Snapshot, state: AdaptiveState, current: FullScan) -> str:
    """Say how far a full scan is, where it is known, and how much of the memory it scans for the first time."""
    new = f"{format_kib(current.scanning_kib)} not scanned before"
    pages = scanned_pages(current, read_meter(snapshot), page_cost_s(snapshot, state))
    return new if pages is None else f"{format_kib(snapshot.ksm.kib(pages))} done, {new}"
