"""One cycle: sense, decide, actuate, record. The agent and the one-shot run this same code.

A pass holds the host's lock from the first read to the last, so that no two passes interleave. Baseline, intention and
the policy's past are kept before the first write, what was confirmed after it. If sensing fails, nothing is written;
if the state cannot be kept, nothing is written either. While virtksm is switched off, every pass parks, and so does a
restore: the baseline would scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic

from virtksm.errors import SettingsRefused
from virtksm.model.decision import Decision, Occasion, SwitchedOff
from virtksm.model.report import Outcome, PassRecord, RestoreRecord
from virtksm.model.snapshot import PARKED, KsmState, Settings, Snapshot
from virtksm.policy.base import Past, Policy
from virtksm.policy.off import decide_off
from virtksm.tuning.actuate import Call, apply, plan, unoffered
from virtksm.tuning.conflict import ConflictPast, ConflictVerdict, Mode, judge
from virtksm.tuning.ownership import HostState, Ownership, adopt, claim, confirm, distrust, intend, restoration
from virtksm.tuning.ports import Clock, Hypervisor, LocalFacts, StateStore, Switch
from virtksm.tuning.refusals import Refused, still_refused
from virtksm.tuning.sense import sense, sense_settings


@dataclass(slots=True)
class Memory:
    """What a process remembers between passes and need not outlive it."""

    tenure_began: bool = False
    kept: HostState | None = None
    """The state as this process last kept it: somebody may remove the runtime folder, and the baseline with it."""
    was_off: bool = False
    files_agree: bool = False
    """Whether libvirt was seen to tell of KSM what this machine's files do: they are read in its place from then on."""
    conflict: ConflictPast = field(default_factory=ConflictPast)
    refused: dict[str, Refused] = field(default_factory=dict)
    lacking: frozenset[str] = frozenset()
    """The parameters that the kernel did not offer in the last pass, which has said so: no error every tick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle(Generic[Past]):
    """The parts of a pass over one connection. `local` is None for a remote host."""

    hypervisor: Hypervisor
    local: LocalFacts | None
    policy: Policy[Past]
    store: StateStore
    switch: Switch
    clock: Clock
    on_conflict: Mode
    memory: Memory

    def run(self, occasion: Occasion, *, dry_run: bool = False) -> PassRecord:
        """Run one pass; a dry run writes neither to the kernel nor to the state.

        Raises LibvirtUnreachable, SensingFailed, Unsupported, StateUnusable or AlreadyRunning. A setting refused by the
        kernel is no exception: it is in the record.
        """
        if occasion.is_explicit and not dry_run:
            self.memory.refused.clear()  # whoever asks may have mended the cause, though this pass has nothing to write
            self.memory.lacking = frozenset()
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
                others=off is None and self.policy.wants_others,
                files_agree=self.memory.files_agree,
            )
            if self.local is not None and not self.memory.files_agree:
                self.memory.files_agree = sense_settings(self.local) == snapshot.ksm.settings
            decision, asked, recalled = self._decide(state, snapshot, occasion, off)
            owned, verdict, conflict = self._judge(state, snapshot, decision.target, occasion)
            before = snapshot.ksm.settings
            wanted = plan(before, decision.target) if verdict.may_write else ()
            calls = tuple(call for call in wanted if not self._is_held(call, snapshot.ksm, occasion))
            lacking = unoffered(before, decision.target)
            after = before
            refusals = tuple(error for error in lacking if error.parameter not in self.memory.lacking)
            if not dry_run:
                intended = intend(owned, {name: value for call in calls for name, value in call.items()})
                kept = replace(asked, ownership=intended)
                after, refused = self._write(kept, decision.target, before, calls, may_confirm=verdict.may_write)
                self._remember(conflict, calls, refused)
                self.memory.lacking = frozenset(error.parameter for error in lacking)
                refusals += refused
                self.memory.was_off = off is not None
            ended_s = self.clock()
        return PassRecord(
            uri=self.hypervisor.uri,
            policy=self.policy.name,
            occasion=occasion,
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
            switched_off=off,
            past_before=recalled,
            past_after=asked.policy_past,
            trouble=() if self.local is None else self.local.trouble,
        )

    def restore(self, baseline: Settings | None = None) -> RestoreRecord:
        """Write the baseline back over every parameter that still holds our value, and forget those that took it.

        With a `baseline` its parameters get its values, whosever they hold. While switched off, park instead and keep
        the baseline. A merge_across_nodes that has to wait until nothing is shared keeps its baseline, too.
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
                return replace(self._park(), switched_off=True)
            target = restoration(state.ownership, found)
            after, refusals = apply(self.hypervisor, self.local, plan(found, target))
            refused = {error.parameter for error in refusals}
            kept = {name: past for name, past in state.ownership.items() if name in refused}
            self._save(replace(state, ownership=kept))
        left = tuple(
            name
            for name, past in state.ownership.items()
            if not past.never_written and not past.holds(getattr(found, name))
        )
        doubted = tuple(name for name in doubted if getattr(target, name) is not None)
        return RestoreRecord(before=found, after=after.settings, left=left, refusals=refusals, doubted=doubted)

    def park(self) -> RestoreRecord:
        """Stop scanning and keep the baseline, for `on_exit = "park"`; what others have set is left alone."""
        with self.store.locked():
            return self._park()

    def _park(self) -> RestoreRecord:
        state = self._load()
        found = self.hypervisor.ksm_state().settings
        owned, foreign = claim(state.ownership, found, [name for name, _ in PARKED.items()], tenure_begins=False)
        calls = () if foreign else plan(found, PARKED)
        intended = intend(owned, {name: value for call in calls for name, value in call.items()})
        after, refusals = self._write(replace(state, ownership=intended), PARKED, found, calls, may_confirm=not foreign)
        left = tuple(value.parameter for value in foreign)
        return RestoreRecord(before=found, after=after, left=left, refusals=refusals)

    def _load(self) -> HostState:
        state = self.store.load()
        return self.memory.kept if self.memory.kept is not None and state == HostState() else state

    def _save(self, state: HostState) -> None:
        self.store.save(state)
        self.memory.kept = state

    def _decide(
        self, state: HostState, snapshot: Snapshot, occasion: Occasion, off: SwitchedOff | None
    ) -> tuple[Decision, HostState, Mapping[str, object] | None]:
        """Decide; return what is to be kept of the policy as a state without ownership, and the past it went by."""
        if off is not None:
            return decide_off(off, was_off=self.memory.was_off), HostState(), None
        recalled = state.policy_past if state.policy_name == self.policy.name else None
        before = self.policy.first_past(snapshot)
        if recalled is not None:
            try:
                before = self.policy.load_past(recalled)
            except ValueError:  # kept by another version: begin anew, the ownership beside it still counts
                recalled = None
        decision, past = self.policy.decide(snapshot, before, occasion)
        return decision, HostState(policy_name=self.policy.name, policy_past=self.policy.dump_past(past)), recalled

    def _judge(
        self, state: HostState, snapshot: Snapshot, target: Settings, occasion: Occasion
    ) -> tuple[dict[str, Ownership], ConflictVerdict, ConflictPast]:
        managed = [name for name, _ in target.items()]
        owned, foreign = claim(
            state.ownership, snapshot.ksm.settings, managed, tenure_begins=not self.memory.tenure_began
        )
        if snapshot.ksm.advisor_is_on:  # it moves pages_to_scan by itself: a refusal, not another writer
            foreign = tuple(value for value in foreign if value.parameter != "pages_to_scan")
        verdict, conflict = judge(self.memory.conflict, foreign, occasion, snapshot.taken_s, self.on_conflict)
        return owned, verdict, conflict

    def _is_held(self, call: Call, ksm: KsmState, occasion: Occasion) -> bool:
        return any(
            still_refused(self.memory.refused, name, value, ksm, occasion, self.clock()) for name, value in call.items()
        )

    def _write(
        self,
        kept: HostState,
        target: Settings,
        before: Settings,
        calls: tuple[Call, ...],
        *,
        may_confirm: bool,
    ) -> tuple[Settings, tuple[SettingsRefused, ...]]:
        self._save(kept)
        refusals: tuple[SettingsRefused, ...] = ()
        after = before
        if calls:
            ksm, refusals = apply(self.hypervisor, self.local, calls)
            after = ksm.settings
        if may_confirm:
            confirmed = confirm(kept.ownership, target, after)
            if confirmed != kept.ownership:
                self._save(replace(kept, ownership=confirmed))
        return after, refusals

    def _remember(self, conflict: ConflictPast, calls: tuple[Call, ...], refusals: tuple[SettingsRefused, ...]) -> None:
        self.memory.tenure_began = True
        self.memory.conflict = conflict
        for call in calls:
            for name in call:
                self.memory.refused.pop(name, None)
        wanted: Mapping[str, int] = {name: value for call in calls for name, value in call.items()}
        for error in refusals:
            self.memory.refused[error.parameter] = Refused(
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
