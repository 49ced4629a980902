"""A trace: what an agent's policy was given, pass after pass, and what came of it. Plain values, no I/O.

A trace is a header, then passes in their order. Another header may follow where the agent was started anew, a gap where
passes are missing, an end where the recording was ended in order. What the policy remembered is there where it does not
follow from the line before: at a header, after a gap, and where another process has run a pass in between. As JSON
lines: text.py; docs/reference.md has the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from virtksm.model.decision import Decision, SwitchedOff, Triggers
from virtksm.model.snapshot import Settings, Snapshot

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

    `continues` says that the policy went by what the line before has left; else by `state`, or anew where that is None.
    """

    seq: int
    at_s: float
    triggers: Triggers
    snapshot: Snapshot
    decision: Decision
    outcome: str
    after: Settings
    off: SwitchedOff | None = None
    law: Law | None = None
    continues: bool = True
    state: State | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """So many passes are missing here; None where nobody knows."""

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
