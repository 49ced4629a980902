"""Runs a policy over a recorded trace, beside the one that was recorded. Pure.

Open loop: the snapshots are those that the recorded settings have led to. The effects of another policy on ksmd,
merging and memory, and the times of its passes, are not in them. Each decision is true by itself: that policy's answer
to that host, with its own state after the passes before.

A policy that is the recorded one by name takes over the recorded state where the trace has it (at the beginning, after
a gap); with the recorded configuration it decides the same. Another one begins anew with the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from virtksm.model.decision import Decision
from virtksm.model.snapshot import KsmState, Settings, Snapshot
from virtksm.policy.adaptive.state import DEFAULT_COST_S_PER_KIB
from virtksm.policy.base import Policy
from virtksm.policy.off import decide_off
from virtksm.trace import Gap, Header, Law, Line, Pass, Torn

Chooser = Callable[[Law], Policy[Any]]
"""Gives the policy to run where a law was in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayStep:
    """One pass and both answers to it. `lasted_s` is the time since the pass before it, None where none follows on it.

    `began_anew` says that the recorded policy's state could not be taken over.
    """

    line: Pass
    replayed: Decision
    lasted_s: float | None
    began_anew: bool

    @property
    def differs(self) -> bool:
        recorded, replayed = self.line.decision, self.replayed
        return (recorded.target, recorded.reason.rule) != (replayed.target, replayed.reason.rule)


def replay(lines: Iterable[Line | Torn], choose: Chooser, sums: Sums) -> Iterator[ReplayStep]:
    """Yield a step for each pass of a trace, and count them in `sums`; raises what `choose` raises."""
    player: _Player | None = None
    before: Snapshot | None = None
    for line in lines:
        match line:
            case Header():
                player, before = _Player(choose, line.law), None
            case Pass():
                assert player is not None, "a trace begins with its header"
                replayed, began_anew = player.decide(line)
                lasted_s = None
                if before is not None and line.snapshot.taken_s >= before.taken_s:
                    lasted_s = line.snapshot.taken_s - before.taken_s
                before = line.snapshot
                step = ReplayStep(line=line, replayed=replayed, lasted_s=lasted_s, began_anew=began_anew)
                sums.take(step)
                yield step
            case Gap(missed=missed):
                before = None
                sums.gaps += 1
                sums.missed += missed or 0
            case _:
                before = None
                sums.is_torn |= isinstance(line, Torn)


class _Player:
    """The policy that is replayed, and its state from pass to pass."""

    def __init__(self, choose: Chooser, law: Law) -> None:
        self._choose = choose
        self._take(law)
        self._state: Any = None
        self._was_off = False

    def decide(self, line: Pass) -> tuple[Decision, bool]:
        """Answer a pass, and say whether the policy had to begin anew where the recorded one had a state."""
        if line.law is not None:
            name = self._policy.name
            self._take(line.law)
            self._state = self._state if self._policy.name == name else None
        if line.paused is not None:
            decision = decide_off(line.paused, was_off=self._was_off)
            self._state, self._was_off = None, True
            return decision, False
        self._was_off = False
        began_anew = False
        if not line.continues and self._policy.name == self._recorded:
            self._state = None
            if line.state is not None:
                try:
                    self._state = self._policy.load_state(line.state)
                except ValueError:  # another version's
                    began_anew = True
        if self._state is None:
            self._state = self._policy.first_state(line.snapshot)
        decision, self._state = self._policy.decide(line.snapshot, self._state, line.triggers)
        return decision, began_anew

    def _take(self, law: Law) -> None:
        self._policy, self._recorded = self._choose(law), law.policy


@dataclass(slots=True)
class Share:
    """What one side's settings came to: time idle, and pages that ksmd was granted at most."""

    idle_s: float = 0.0
    pages: float = 0.0
    _settings: Settings | None = None
    _is_granted: bool = False

    def take(self, lasted_s: float | None, ksm: KsmState, settings: Settings) -> None:
        """Count the settings of the pass before, which have held for so long, and take those of this one.

        `ksm` is the kernel's state that it has found; a changed sleep grants a batch at once.
        """
        held, page_cost_s = self._settings or ksm.settings, DEFAULT_COST_S_PER_KIB * ksm.page_kib
        batch, sleep_s = held.pages_to_scan or 0, (held.sleep_millisecs or 0) / 1000
        if lasted_s is not None and batch and self._settings is not None:
            self.pages += batch * (self._is_granted + lasted_s / (sleep_s + batch * page_cost_s))
        elif lasted_s is not None:
            self.idle_s += lasted_s
        self._is_granted = settings.sleep_millisecs != held.sleep_millisecs
        self._settings = settings

    def as_dict(self, lasted_s: float) -> dict[str, object]:
        return {
            "idle_percent": round(100 * self.idle_s / lasted_s, 1) if lasted_s else None,
            "pages_per_s": round(self.pages / lasted_s, 1) if lasted_s else None,
        }


@dataclass(slots=True)
class Sums:
    """What a replay came to, and what its trace lacks: at least so many passes, in gaps, and a whole last line.

    `lasted_s` leaves out what lies between passes that do not follow each other.
    """

    passes: int = 0
    differing: int = 0
    lasted_s: float = 0.0
    began_anew: int = 0
    gaps: int = 0
    missed: int = 0
    is_torn: bool = False
    recorded: Share = field(default_factory=Share)
    replayed: Share = field(default_factory=Share)

    def take(self, step: ReplayStep) -> None:
        self.lasted_s += step.lasted_s or 0.0
        ksm = step.line.snapshot.ksm
        self.recorded.take(step.lasted_s, ksm, step.line.decision.target)
        self.replayed.take(step.lasted_s, ksm, step.replayed.target)
        self.passes += 1
        self.differing += step.differs
        self.began_anew += step.began_anew

    def as_dict(self) -> dict[str, object]:
        return {
            "passes": self.passes,
            "seconds": round(self.lasted_s, 3),
            "differing": self.differing,
            "began_anew": self.began_anew,
            "recorded": self.recorded.as_dict(self.lasted_s),
            "replayed": self.replayed.as_dict(self.lasted_s),
            "gaps": self.gaps,
            "missed": self.missed,
            "torn": self.is_torn,
        }
