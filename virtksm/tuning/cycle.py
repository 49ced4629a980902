"""One cycle: sense, decide, actuate, report. The agent and the one-shot run this same code.

A pass holds the host's lock from the first read to the last, so that no two passes interleave. Baseline, intention and
the policy's state are saved before the first write, the confirmation after it. If sensing fails, nothing is written; if
the state cannot be saved, nothing is written either. While virtksm is paused, every pass lets ksmd idle, and so
does a restore: the baseline would scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple

from virtksm.errors import SettingsRefused
from virtksm.model.decision import Decision, Pause, Threshold, Triggers
from virtksm.model.report import Outcome, PassReport, RestoreReport
from virtksm.model.snapshot import IDLE, KsmState, Settings, Snapshot
from virtksm.policy.base import Policy, State
from virtksm.policy.off import RESUMED, decide_off
from virtksm.tuning.actuate import Call, Refused, apply, plan, still_refused, unoffered
from virtksm.tuning.conflict import ConflictState, ConflictVerdict, Mode, judge
from virtksm.tuning.ownership import HostState, Ownership, adopt, claim, confirm, distrust, intend, restoration
from virtksm.tuning.ports import Clock, Hypervisor, LocalFacts, StateStore, Switch
from virtksm.tuning.sense import sense, sense_settings
from virtksm.values import replace


class Tenure:
    """One process's knowledge between its passes; it ends with the process."""

    def __init__(self) -> None:
        self.has_begun = False
        self.saved: HostState | None = None
        """The state as this process last saved it: the runtime folder may be removed, and the baseline with it."""
        self.was_off = False
        self.files_agree = False
        """True once libvirt and this machine's files showed the same settings: later passes read the files."""
        self.conflict = ConflictState()
        self.refused: dict[str, Refused] = {}
        self.dirty_kib_per_s: dict[str, float] = {}
        """How much of its memory each guest (`Guest.key`) writes to in a second, as far as the agent has measured."""
        self.lacking: frozenset[str] = frozenset()
        """The parameters that the kernel did not offer in the last pass, which reported them: not with each timer."""


class Cycle(NamedTuple, Generic[State]):
    """The parts of a pass over one connection. `local` is None for a remote host."""

    hypervisor: Hypervisor
    local: LocalFacts | None
    policy: Policy[State]
    store: StateStore
    switch: Switch
    clock: Clock
    on_conflict: Mode
    tenure: Tenure

    def run(self, triggers: Triggers, *, dry_run: bool = False) -> PassReport:
        """Run one pass; a dry run writes neither to the kernel nor to the state.

        Raises LibvirtUnreachable, SensingFailed, Unsupported, StateUnusable or AlreadyRunning. A setting refused by the
        kernel is no exception: it is in the report.
        """
        if triggers.is_explicit and not dry_run:
            self.tenure.refused.clear()  # the cause may be mended, though this pass may have nothing to write
            self.tenure.lacking = frozenset()
            self.hypervisor.forget_max()
        with self.store.locked():
            began_s = self.clock()  # not before: another pass may have held the lock for seconds
            state = self._load()
            off = self.switch.read()
            snapshot = sense(
                self.hypervisor,
                self.local,
                began_s,
                with_max=off is None and self.policy.wants_maxima,
                with_other_processes=off is None and self.policy.wants_other_processes,
                files_agree=self.tenure.files_agree,
            )
            if rates := self.tenure.dirty_kib_per_s:
                guests = (replace(guest, dirty_kib_per_s=rates.get(guest.key)) for guest in snapshot.guests)
                snapshot = replace(snapshot, guests=tuple(guests))
            if self.local is not None and not self.tenure.files_agree:
                self.tenure.files_agree = sense_settings(self.local) == snapshot.ksm.settings
            decision, asked, state_before, find_thresholds = self._decide(state, snapshot, triggers, off)
            owned, verdict, conflict = self._judge(state, snapshot, decision.target, triggers)
            before = snapshot.ksm.settings
            wanted = plan(before, decision.target) if verdict.may_write else ()
            calls = tuple(call for call in wanted if not self._is_held(call, snapshot.ksm, triggers))
            lacking = unoffered(before, decision.target)
            after = before
            refusals = tuple(error for error in lacking if error.parameter not in self.tenure.lacking)
            if not dry_run:
                intended = intend(owned, {name: value for call in calls for name, value in call.items()})
                next_state = replace(asked, ownership=intended)
                after, refused = self._write(next_state, decision.target, before, calls, may_confirm=verdict.may_write)
                self._remember(conflict, calls, refused)
                self.tenure.lacking = frozenset(error.parameter for error in lacking)
                refusals += refused
                self.tenure.was_off = off is not None
            ended_s = self.clock()
        return PassReport(
            uri=self.hypervisor.uri,
            policy=self.policy.name,
            triggers=triggers,
            snapshot=snapshot,
            decision=decision,
            outcome=_outcome(dry_run=dry_run, verdict=verdict, wanted=wanted, calls=calls, refusals=refusals),
            before=before,
            after=after,
            duration_ms=(ended_s - began_s) * 1000,
            refusals=refusals,
            foreign=verdict.news,
            yields_now=verdict.yields_now,
            resumes_now=verdict.resumes_now,
            paused=off,
            state_before=state_before,
            state_after=asked.policy_state,
            trouble=() if self.local is None else self.local.trouble,
            find_thresholds=find_thresholds,
        )

    def restore(self, baseline: Settings | None = None) -> RestoreReport:
        """Write the baseline back over every parameter that still holds our value, and forget those that took it.

        With a `baseline` its parameters get its values, whatever they hold. While paused, let ksmd idle instead
        and keep the baseline. A merge_across_nodes that has to wait until nothing is shared keeps its baseline, too.
        """
        doubted: tuple[str, ...] = ()
        with self.store.locked():
            state = self._load()
            if not self.store.is_own:
                owned, doubted = distrust(state.ownership)
                state = replace(state, ownership=owned)
            found = self.hypervisor.ksm_state().settings
            if baseline is not None:
                state = replace(state, ownership=adopt(state.ownership, found, baseline))
                self._save(state)
            if self.switch.read() is not None:
                return replace(self._idle(), paused=True)
            target = restoration(state.ownership, found)
            after, refusals = apply(self.hypervisor, self.local, plan(found, target))
            refused = {error.parameter for error in refusals}
            still_owned = {name: entry for name, entry in state.ownership.items() if name in refused}
            self._save(replace(state, ownership=still_owned))
        left = tuple(
            name
            for name, entry in state.ownership.items()
            if not entry.never_written and not entry.holds(getattr(found, name))
        )
        doubted = tuple(name for name in doubted if getattr(target, name) is not None)
        return RestoreReport(before=found, after=after.settings, left=left, refusals=refusals, doubted=doubted)

    def idle(self) -> RestoreReport:
        """Let ksmd idle and keep the baseline, for `on_exit = "idle"`; foreign values are left alone."""
        with self.store.locked():
            return self._idle()

    def _idle(self) -> RestoreReport:
        state = self._load()
        found = self.hypervisor.ksm_state().settings
        owned, foreign = claim(state.ownership, found, [name for name, _ in IDLE.items()], tenure_begins=False)
        calls = () if foreign else plan(found, IDLE)
        intended = intend(owned, {name: value for call in calls for name, value in call.items()})
        after, refusals = self._write(replace(state, ownership=intended), IDLE, found, calls, may_confirm=not foreign)
        left = tuple(value.parameter for value in foreign)
        return RestoreReport(before=found, after=after, left=left, refusals=refusals)

    def _load(self) -> HostState:
        state = self.store.load()
        return self.tenure.saved if self.tenure.saved is not None and state == HostState() else state

    def _save(self, state: HostState) -> None:
        self.store.save(state)
        self.tenure.saved = state

    def _decide(
        self, state: HostState, snapshot: Snapshot, triggers: Triggers, off: Pause | None
    ) -> tuple[Decision, HostState, Mapping[str, object] | None, Callable[[], Iterable[Threshold]]]:
        """Decide; return the policy's next state, as a host's without ownership, its state before, and thresholds."""
        if off is not None:
            return decide_off(off, was_off=self.tenure.was_off), HostState(), None, lambda: (RESUMED,)
        state_before = state.policy_state if state.policy_name == self.policy.name else None
        before = self.policy.first_state(snapshot)
        if state_before is not None:
            try:
                before = self.policy.load_state(state_before)
            except ValueError:  # another version's: begin again, the ownership beside it still counts
                state_before = None
        decision, left = self.policy.decide(snapshot, before, triggers)

        def thresholds() -> Iterable[Threshold]:
            from virtksm.policy.thresholds import find_thresholds

            return find_thresholds(self.policy, snapshot, left, decision)

        saved = HostState(policy_name=self.policy.name, policy_state=self.policy.dump_state(left))
        return decision, saved, state_before, thresholds

    def _judge(
        self, state: HostState, snapshot: Snapshot, target: Settings, triggers: Triggers
    ) -> tuple[dict[str, Ownership], ConflictVerdict, ConflictState]:
        managed = [name for name, _ in target.items()]
        owned, foreign = claim(state.ownership, snapshot.ksm.settings, managed, tenure_begins=not self.tenure.has_begun)
        if snapshot.ksm.advisor_is_on:  # it moves pages_to_scan by itself: a refusal, not another writer
            foreign = tuple(value for value in foreign if value.parameter != "pages_to_scan")
        verdict, conflict = judge(self.tenure.conflict, foreign, triggers, snapshot.taken_s, self.on_conflict)
        return owned, verdict, conflict

    def _is_held(self, call: Call, ksm: KsmState, triggers: Triggers) -> bool:
        return any(
            still_refused(self.tenure.refused, name, value, ksm, triggers, self.clock()) for name, value in call.items()
        )

    def _write(
        self,
        state: HostState,
        target: Settings,
        before: Settings,
        calls: tuple[Call, ...],
        *,
        may_confirm: bool,
    ) -> tuple[Settings, tuple[SettingsRefused, ...]]:
        self._save(state)
        refusals: tuple[SettingsRefused, ...] = ()
        after = before
        if calls:
            ksm, refusals = apply(self.hypervisor, self.local, calls)
            after = ksm.settings
        if may_confirm:
            confirmed = confirm(state.ownership, target, after)
            if confirmed != state.ownership:
                self._save(replace(state, ownership=confirmed))
        return after, refusals

    def _remember(
        self, conflict: ConflictState, calls: tuple[Call, ...], refusals: tuple[SettingsRefused, ...]
    ) -> None:
        self.tenure.has_begun = True
        self.tenure.conflict = conflict
        for call in calls:
            for name in call:
                self.tenure.refused.pop(name, None)
        wanted: Mapping[str, int] = {name: value for call in calls for name, value in call.items()}
        for error in refusals:
            self.tenure.refused[error.parameter] = Refused(
                value=wanted[error.parameter], cause=error.cause, at_s=self.clock()
            )


def _outcome(
    *,
    dry_run: bool,
    verdict: ConflictVerdict,
    wanted: tuple[Call, ...],
    calls: tuple[Call, ...],
    refusals: tuple[SettingsRefused, ...],
) -> Outcome:
    if dry_run:
        return Outcome.DRY_RUN
    if not verdict.may_write:
        return Outcome.YIELDED
    if refusals:
        return Outcome.REFUSED
    if len(calls) < len(wanted):
        return Outcome.HELD
    return Outcome.APPLIED if calls else Outcome.UNCHANGED
