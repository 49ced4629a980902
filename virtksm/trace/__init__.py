"""A trace: what an agent's policy was given, pass after pass, and what came of it. Plain values, no I/O.

A trace is a header, then passes in their order. Another header may follow where the agent was started anew, a gap where
passes are missing, an end where the recording was ended in order. The policy's state is there where it does not follow
from the line before: at a header, after a gap, and where another process has run a pass in between. As JSON lines:
text.py; docs/reference.md has the schema.

The history keeps a decision as the summary of its pass: one line that stands alone, as long for 500 guests as for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from virtksm.model.decision import Decision, Pause, Triggers
from virtksm.model.report import Foreign
from virtksm.model.snapshot import Settings, Snapshot
from virtksm.values import replace

State = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The policy's name, and the configuration's keys of all policies, dotted."""

    policy: str
    config: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What holds for the passes that follow. `began` is UTC as text; `kernel` is None where it is another machine's."""

    version: str
    uri: str
    began: str
    page_bytes: int
    kernel: str | None
    law: Law


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass. `at_s` is Unix time at its end; `law` is there where it is not that of the line before.

    `continues` says that the policy went by the state that the line before has left; else by `state`, or anew where
    that is None. `refused` has a sentence for each setting that the kernel refused.

    A summary has the thresholds that would change the decision, as JSON values. It lacks the policy's state, and so
    many guests (`guests_left_out`), so that it cannot be replayed.
    """

    seq: int
    at_s: float
    triggers: Triggers
    snapshot: Snapshot
    decision: Decision
    thresholds: tuple[Mapping[str, object], ...] = ()
    outcome: str
    after: Settings
    refused: tuple[str, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    paused: Pause | None = None
    law: Law | None = None
    continues: bool = True
    state: State | None = None
    guests_left_out: int = 0

    @property
    def policy(self) -> str:
        """The policy's name; empty where it is that of the line before."""
        return "" if self.law is None else self.law.policy

    @property
    def changed(self) -> dict[str, tuple[int | None, int]]:
        """The settings before and after the pass, of those that it changed in the kernel."""
        before = self.snapshot.ksm.settings.as_dict()
        return {name: (before[name], value) for name, value in self.after.items() if before[name] != value}

    def summary(self, thresholds: Iterable[Mapping[str, object]] = ()) -> Pass:
        """Return the same with thresholds, and without what grows with the guests; `law` has to be there."""
        return replace(
            self,
            snapshot=replace(self.snapshot, guests=()),
            thresholds=tuple(thresholds),
            continues=False,
            state=None,
            guests_left_out=len(self.snapshot.guests),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """So many passes are missing here; None where the number is unknown."""

    missed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The recording was ended in order, at Unix time `at_s`."""

    at_s: float
    passes: int
    missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """The last line is not whole."""


Line = Header | Pass | Gap | End
