"""One cycle: sense, decide, actuate, report. The agent and the one-shot run this same code.

A pass holds the host's lock from the first read to the last, so that no two passes interleave. Baseline, intention and
the policy's state are saved before the first write, the confirmation after it. If sensing fails, nothing is written; if
the state cannot be saved, nothing is written either. While virtksm is paused, every pass lets ksmd idle, and so
does a restore: the baseline would scan. A policy that only observes is asked in every pass, and nothing is written to
the kernel, nor claimed or given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple

from virtksm.errors import SettingsRefused, VirtksmError
from virtksm.model.decision import Decision, Pause, Threshold, Trigger, Triggers
from virtksm.model.report import Outcome, PassReport, RestoreReport
from virtksm.model.snapshot import IDLE, KsmState, Settings, Snapshot
from virtksm.policy.base import Policy, State
from virtksm.policy.off import RESUMED, decide_off
from virtksm.tuning.actuate import Call, Refused, apply, plan, still_refused, unoffered
from virtksm.tuning.conflict import ConflictState, ConflictVerdict, Mode, judge
from virtksm.tuning.freed import Freed, count_freed
from virtksm.tuning.ownership import (
    HostState,
    Ownership,
    adopt,
    claim,
    confirm,
    distrust,
    intend,
    restoration,
    yield_sleep,
)
from virtksm.tuning.ports import Clock, Hypervisor, LocalFacts, StateStore, Switch
from virtksm.tuning.sense import GuestNotes, sense, sense_settings, with_bound, with_estimates
from virtksm.values import replace

SENSE_S, SENSE_GUEST_S = 2.0, 0.01
"""In a full scan a timer's or a balloon's pass senses guests and the host again after so long, and so much a guest: 500
take 20 ms (measured)."""

TICKS = frozenset({Trigger.TIMER, Trigger.BALLOON})
"""Triggers that tell of no guest's start or end: hundreds of guests' balloons may change four times a second."""
IN_VAIN_S = 20.0
"""Between two passes as long as another program or a refusal keeps pages_to_scan from being set: no batch ends
(chosen)."""


class Tenure:
    """One process's knowledge between its passes; it ends with the process."""

    def __init__(self) -> None:
        self.has_begun = False
        self.state: HostState | None = None
        """The state as this process's last pass left it: the runtime folder may be removed, baseline and all."""
        self.saved: HostState | None = None
        """The same as it was last saved: of passes that sense no guests and write nothing a crash may lose SENSE_S."""
        self.decided: tuple[Mapping[str, object] | None, Any] | None = None
        """The policy's state as it was last dumped, and as it was: parsing a thousand guests takes milliseconds."""
        self.sensed: Snapshot | None = None
        """The last snapshot that was read whole."""
        self.is_scanning = False
        """Whether the last pass left ksmd scanning."""
        self.was_off = False
        self.files_agree = False
        """True once libvirt and this machine's files showed the same settings: later passes read the files."""
        self.conflict = ConflictState()
        self.refused: dict[str, Refused] = {}
        self.notes = GuestNotes()
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
            snapshot, freed = self._sense(began_s, triggers, state.freed, is_off=off is not None)
            if self.local is not None and not self.tenure.files_agree:
                self.tenure.files_agree = sense_settings(self.local) == snapshot.ksm.settings
            decision, asked, left, state_before, find_thresholds = self._decide(state, snapshot, triggers, off)
            owned, target, verdict, conflict = self._judge(state, snapshot, decision.target, triggers)
            before, is_advised = snapshot.ksm.settings, snapshot.ksm.advisor_is_on
            wanted = plan(before, target, is_advised=is_advised) if verdict.may_write else ()
            calls = tuple(call for call in wanted if not self._is_held(call, snapshot.ksm, triggers))
            lacking = () if self.policy.only_observes else unoffered(before, decision.target)
            after = before
            refusals = tuple(error for error in lacking if error.parameter not in self.tenure.lacking)
            if not dry_run:
                tried = {name: value for call in calls for name, value in call.items()}
                intended = intend(owned, tried)
                next_state = replace(asked, ownership=intended, freed=freed)
                saved = self.tenure.saved
                if calls or snapshot is self.tenure.sensed or saved is None or saved.ownership != intended:
                    self._save(next_state)
                self.tenure.state = next_state
                after, refused = self._write(next_state, target, before, calls, may_confirm=verdict.may_write)
                self._remember(conflict, tried, refused)
                self.tenure.lacking = frozenset(error.parameter for error in lacking)
                refusals += refused
                self.tenure.was_off = off is not None
                self.tenure.is_scanning = bool(after.pages_to_scan)
                self.tenure.decided = asked.policy_state, left
            ended_s = self.clock()
        if not (dry_run or self.policy.only_observes) and after.pages_to_scan != target.pages_to_scan:
            decision = _put_off(decision)
        return PassReport(
            uri=self.hypervisor.uri,
            policy=self.policy.name,
            triggers=triggers,
            snapshot=snapshot,
            decision=decision,
            outcome=self._outcome(dry_run=dry_run, verdict=verdict, wanted=wanted, calls=calls, refusals=refusals),
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
        self._require_actor()
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
            is_advised = self.local is not None and self.local.advisor_mode() not in (None, "none")
            after, refusals = apply(self.hypervisor, self.local, plan(found, target, is_advised=is_advised))
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
        self._require_actor()
        with self.store.locked():
            return self._idle()

    def _require_actor(self) -> None:
        if self.policy.only_observes:
            raise VirtksmError(f"policy {self.policy.name} sets nothing", remedy="set another policy")

    def _idle(self) -> RestoreReport:
        state = self._load()
        found = self.hypervisor.ksm_state().settings
        owned, foreign = claim(state.ownership, found, [name for name, _ in IDLE.items()], tenure_begins=False)
        calls = () if foreign else plan(found, IDLE)
        intended = intend(owned, {name: value for call in calls for name, value in call.items()})
        state = replace(state, ownership=intended)
        self._save(state)
        after, refusals = self._write(state, IDLE, found, calls, may_confirm=not foreign)
        left = tuple(value.parameter for value in foreign)
        return RestoreReport(before=found, after=after, left=left, refusals=refusals)

    def _sense(
        self, now_s: float, triggers: Triggers, freed: Freed | None, *, is_off: bool
    ) -> tuple[Snapshot, Freed | None]:
        """Sense, but what changes slowly only now and then while a full scan goes on; return what is freed, too."""
        tenure, known = self.tenure, self.tenure.sensed
        is_tick = triggers.kinds <= TICKS and tenure.is_scanning and not is_off
        if known is not None:
            sense_s = max(SENSE_S, SENSE_GUEST_S * len(known.guests))
            if not (is_tick and 0 <= now_s - known.taken_s < sense_s):
                known = tenure.sensed = None  # also where sensing fails now: the next pass is to see what has changed
        snapshot = sense(
            self.hypervisor,
            self.local,
            now_s,
            with_max=not is_off and self.policy.wants_maxima,
            with_other_processes=not is_off and self.policy.wants_other_processes,
            files_agree=tenure.files_agree,
            known=known,
        )
        if known is not None and snapshot.is_sensed_with(known):
            return replace(snapshot, ksm=replace(snapshot.ksm, freed_kib=known.ksm.freed_kib)), freed
        freed = count_freed(snapshot, freed)
        snapshot = with_estimates(snapshot, freed, tenure.notes)
        if self.local is not None:
            snapshot = with_bound(snapshot, self.local, tenure.notes.traits)
        tenure.sensed = snapshot
        return snapshot, freed

    def _load(self) -> HostState:
        state, own = self.store.load(), self.tenure.state
        return own if own is not None and (state is self.tenure.saved or state == HostState()) else state

    def _save(self, state: HostState) -> None:
        self.store.save(state)
        self.tenure.saved = self.tenure.state = state

    def _decide(
        self, state: HostState, snapshot: Snapshot, triggers: Triggers, off: Pause | None
    ) -> tuple[Decision, HostState, Any, Mapping[str, object] | None, Callable[[], Iterable[Threshold]]]:
        """Decide; return the policy's next state, as a host's without ownership and as it is, the one before, and
        thresholds.
        """
        if off is not None:
            idle = decide_off(off, was_off=self.tenure.was_off, only_observes=self.policy.only_observes)
            return idle, HostState(), None, None, lambda: (RESUMED,)
        state_before = state.policy_state if state.policy_name == self.policy.name else None
        before = self.policy.first_state(snapshot)
        decided = self.tenure.decided
        if state_before is not None and decided is not None and decided[0] is state_before:
            before = decided[1]
        elif state_before is not None:
            try:
                before = self.policy.load_state(state_before)
            except ValueError:  # another version's: begin again, the ownership beside it still counts
                state_before = None
        decision, left = self.policy.decide(snapshot, before, triggers)

        def thresholds() -> Iterable[Threshold]:
            from virtksm.policy.thresholds import find_thresholds

            return find_thresholds(self.policy, snapshot, left, decision)

        saved = HostState(policy_name=self.policy.name, policy_state=self.policy.dump_state(left))
        return decision, saved, left, state_before, thresholds

    def _judge(
        self, state: HostState, snapshot: Snapshot, target: Settings, triggers: Triggers
    ) -> tuple[dict[str, Ownership], Settings, ConflictVerdict, ConflictState]:
        if self.policy.only_observes:
            return dict(state.ownership), target, ConflictVerdict(may_write=False), self.tenure.conflict
        saved, found = state.ownership, snapshot.ksm.settings
        if snapshot.ksm.advisor_is_on:
            saved, target = yield_sleep(saved, found, target)
        managed = [name for name, _ in target.items()]
        owned, foreign = claim(saved, found, managed, tenure_begins=not self.tenure.has_begun)
        if snapshot.ksm.advisor_is_on:  # it moves pages_to_scan by itself: a refusal, not another writer
            foreign = tuple(value for value in foreign if value.parameter != "pages_to_scan")
        verdict, conflict = judge(self.tenure.conflict, foreign, triggers, snapshot.taken_s, self.on_conflict)
        return owned, target, verdict, conflict

    def _is_held(self, call: Call, ksm: KsmState, triggers: Triggers) -> bool:
        return any(
            still_refused(self.tenure.refused, name, value, ksm, triggers, self.clock()) for name, value in call.items()
        )

    def _write(
        self, state: HostState, target: Settings, before: Settings, calls: tuple[Call, ...], *, may_confirm: bool
    ) -> tuple[Settings, tuple[SettingsRefused, ...]]:
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

    def _remember(self, conflict: ConflictState, tried: Call, refusals: tuple[SettingsRefused, ...]) -> None:
        self.tenure.has_begun = True
        self.tenure.conflict = conflict
        for name in tried:
            self.tenure.refused.pop(name, None)
        for error in refusals:
            self.tenure.refused[error.parameter] = Refused(tried[error.parameter], error.cause, at_s=self.clock())

    def _outcome(
        self,
        *,
        dry_run: bool,
        verdict: ConflictVerdict,
        wanted: tuple[Call, ...],
        calls: tuple[Call, ...],
        refusals: tuple[SettingsRefused, ...],
    ) -> Outcome:
        if dry_run:
            return Outcome.DRY_RUN
        if self.policy.only_observes:
            return Outcome.OBSERVED
        if not verdict.may_write:
            return Outcome.YIELDED
        if refusals:
            return Outcome.REFUSED
        if len(calls) < len(wanted):
            return Outcome.HELD
        return Outcome.APPLIED if calls else Outcome.UNCHANGED


def _put_off(decision: Decision) -> Decision:
    next_pass_s = decision.next_pass_s
    return decision if next_pass_s is None else replace(decision, next_pass_s=max(next_pass_s, IN_VAIN_S))
