"""The report of one pass: everything that it saw, decided and did, as one value and as JSON.

`as_dict` is the interface of `virtksm retune --json`, of the control socket and of the log line `pass_completed`
(docs/reference.md lists the fields); fields are added, never renamed, while SCHEMA stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from virtksm.errors import REMEDIES, Cause, ExitCode, SettingsRefused
from virtksm.model.decision import EVALUATING_ONLY, Decision, Pause, Threshold, Trigger, Triggers
from virtksm.model.snapshot import Settings, Snapshot, Source

SCHEMA = 1

KSM_OFF = "KSM is off on this host (run={run}), so nothing merges (virtksm doctor)"

UNCOUNTED_ZERO_PAGES = "use_zero_pages is 1 on a kernel that does not count the zero pages it merges (before 6.6)"
COUNT_ZERO_PAGES = "echo 0 > /sys/kernel/mm/ksm/use_zero_pages, and start the guests anew"

HELD = "an earlier refusal still stands, so nothing was tried again; `virtksm retune` tries at once"
FOREIGN = "another program sets KSM's parameters (ksmtuned, tuned, virsh): stop it, or stop virtksm"
ADVISOR_UNSEEN = f"or, which cannot be seen from here: {REMEDIES[Cause.ADVISOR_ON]}"

KEEP_OUT = (
    "keep it out with <memoryBacking><nosharepages/></memoryBacking> in its XML (virsh edit) and start it anew, "
    "or declare it private no longer"
)


class Outcome(Enum):
    """What became of a decision."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    OBSERVED = "observed"
    """By a policy that sets nothing."""
    DRY_RUN = "dry_run"
    YIELDED = "yielded"
    HELD = "held"
    REFUSED = "refused"


class Foreign(NamedTuple):
    """A value that another writer put in place of ours."""

    parameter: str
    ours: int | None
    found: int


class PassReport(NamedTuple):
    """One pass. `duration_ms` is from the lock to the last read-back.

    `exposed` names the private guests that can merge; None where nobody has looked (a pass without an agent).
    `trouble` is what kept processes from being read. `find_thresholds` asks the policy what would change the decision.
    `state_before` and `state_after` are the policy's state, as kept; None where it began anew, or was not asked.
    """

    uri: str
    policy: str
    triggers: Triggers
    snapshot: Snapshot
    decision: Decision
    outcome: Outcome
    before: Settings
    after: Settings
    duration_ms: float
    refusals: tuple[SettingsRefused, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    yields_now: bool = False
    resumes_now: bool = False
    paused: Pause | None = None
    exposed: tuple[str, ...] | None = None
    state_before: Mapping[str, object] | None = None
    state_after: Mapping[str, object] | None = None
    trouble: tuple[str, ...] = ()
    find_thresholds: Callable[[], Iterable[Threshold]] = tuple

    @property
    def changed(self) -> dict[str, int]:
        """The parameters whose value this pass changed in the kernel, with their new value."""
        return _changed(self.before, self.after)

    @property
    def is_routine(self) -> bool:
        """Whether it is a pass of many: only the policy and guests asked for it, and all goes on as before."""
        is_new = self.refusals or self.foreign or self.yields_now or self.resumes_now
        return self.decision.is_routine and self.is_unasked and not is_new

    @property
    def is_unasked(self) -> bool:
        """Whether only the policy's timer asked for it, and what a guest does by itself, as often as it likes."""
        return self.triggers.kinds <= EVALUATING_ONLY | {Trigger.TIMER}

    @property
    def saved_kib(self) -> int | None:
        return self.snapshot.ksm.saved_kib

    @property
    def warnings(self) -> list[str]:
        ksm = self.snapshot.ksm
        notes = [str(error) for error in self.refusals]
        if self.paused is not None and self.paused.warning:
            notes.append(self.paused.warning)
        if ksm.run is not None and ksm.run != 1 and self.paused is None:
            notes.append(KSM_OFF.format(run=ksm.run))
        if self.outcome is Outcome.HELD:
            notes.append(HELD)
        if self.outcome is Outcome.YIELDED:
            yields = "another program sets KSM's parameters, so virtksm yields; `virtksm retune` takes them back"
            notes.append(f"{yields}; {ADVISOR_UNSEEN}" if self.snapshot.source is Source.LIBVIRT else yields)
        return [*notes, *self.trouble, *self.exposures]

    @property
    def rewriters(self) -> list[str]:
        keys = self.decision.rewriters
        return sorted(guest.name for guest in self.snapshot.guests if guest.key in keys) if keys else []

    @property
    def foreign_remedy(self) -> str:
        """What to do about another writer: a remote host's kernel may be one itself."""
        return f"{FOREIGN}; {ADVISOR_UNSEEN}" if self.snapshot.source is Source.LIBVIRT else FOREIGN

    @property
    def exposures(self) -> list[str]:
        return [f"private guest {name!r} can merge: {KEEP_OUT}" for name in self.exposed or ()]

    def as_dict(self, *, with_thresholds: bool = False) -> dict[str, object]:
        """Return the report as JSON values; memory in KiB, pages in pages, times in the unit of the name.

        What would change the decision takes many more decisions, and is for somebody who has asked.
        """
        snapshot, ksm, decision = self.snapshot, self.snapshot.ksm, self.decision
        thresholds = {"thresholds": [one.as_dict() for one in self.find_thresholds()]} if with_thresholds else {}
        return {
            "schema": SCHEMA,
            "uri": self.uri,
            "policy": self.policy,
            "triggers": self.triggers.names,
            "source": snapshot.source.value,
            "sensed": {
                "total_kib": snapshot.host.total_kib,
                "free_kib": snapshot.host.free_kib,
                "buffers_kib": snapshot.host.buffers_kib,
                "cached_kib": snapshot.host.cached_kib,
                "available_kib": snapshot.host.spare_kib,
                "guests": len(snapshot.guests),
                "guests_unread": snapshot.guests_unread,
                "committed_kib": snapshot.committed_kib,
                "pages_shared": ksm.pages_shared,
                "pages_sharing": ksm.pages_sharing,
                "pages_unshared": ksm.pages_unshared,
                "pages_volatile": ksm.pages_volatile,
                "full_scans": ksm.full_scans,
                "ksm_zero_pages": ksm.ksm_zero_pages,
                "freed_kib": ksm.freed_kib,
                "page_kib": ksm.page_kib,
                "saved_kib": self.saved_kib,
                "ksm_run": ksm.run,
                "advisor_mode": ksm.advisor_mode,
                "ksmd_cpu_seconds": ksm.ksmd_cpu_seconds,
            },
            "decision": {
                "idle": decision.is_idle,
                "rule": decision.reason.rule,
                "reason": decision.reason.text,
                "numbers": dict(decision.reason.numbers),
                **thresholds,
                "target": decision.target.as_dict(),
                "next_pass_s": decision.next_pass_s,
                "rewriters": self.rewriters,
            },
            "outcome": self.outcome.value,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "changed": self.changed,
            "refused": _refused(self.refusals),
            "foreign": [value._asdict() for value in self.foreign],
            "exposed": None if self.exposed is None else list(self.exposed),
            "warnings": self.warnings,
            "duration_ms": round(self.duration_ms, 3),
        }


class RestoreReport(NamedTuple):
    """What a restore (or the agent's end) did to the settings; `left` are parameters that others have changed since.

    `paused` says that a restore let ksmd idle instead; `doubted` are parameters that got the kernel's default, as
    the saved value is none that anybody sets, and may be planted.
    """

    before: Settings
    after: Settings
    left: tuple[str, ...] = ()
    refusals: tuple[SettingsRefused, ...] = ()
    paused: bool = False
    doubted: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[SettingsRefused, ...]:
        """The refusals that leave work to somebody; merge_across_nodes waits by nature until nothing is shared."""
        return tuple(
            error
            for error in self.refusals
            if (error.parameter, error.cause) != ("merge_across_nodes", Cause.PAGES_SHARED)
        )

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.REFUSED if self.failures else ExitCode.DONE

    def as_dict(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "changed": _changed(self.before, self.after),
            "left": list(self.left),
            "doubted": list(self.doubted),
            "paused": self.paused,
            "refused": _refused(self.refusals),
        }


def _refused(refusals: Iterable[SettingsRefused]) -> list[dict[str, object]]:
    return [{"parameter": one.parameter, "cause": one.cause.value, "message": str(one)} for one in refusals]


def _changed(before: Settings, after: Settings) -> dict[str, int]:
    return {name: value for name, value in after.items() if getattr(before, name) != value}
