"""What a policy is: a pure function from a snapshot and its own past to a decision and its next past.

A policy reads no clock, draws no random number, logs nothing and touches nothing: time is in the snapshot, the past is
a value that the cycle keeps between passes (in the runtime folder, so that the agent, its successor and the one-shot
continue where the other was).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from virtksm.model.decision import Decision, Occasion
from virtksm.model.snapshot import Snapshot

Past = TypeVar("Past")


class Policy(Protocol[Past]):
    """One control law. See CONTRIBUTING.md, "Add a policy"."""

    @property
    def name(self) -> str:
        """The name by which the configuration chooses it."""

    @property
    def wants_maxima(self) -> bool:
        """Whether it looks at `Guest.max_kib`: asking for it costs a call for each guest that is new."""

    @property
    def wants_others(self) -> bool:
        """Whether it looks at `Snapshot.others`: that costs a look at every process, once a minute."""

    def first_past(self, snapshot: Snapshot) -> Past:
        """Return the past to begin with where none was kept."""

    def load_past(self, kept: Mapping[str, object]) -> Past:
        """Rebuild a past from what `dump_past` gave; raise ValueError if it is not one."""

    def dump_past(self, past: Past) -> dict[str, object]:
        """Return the past as plain JSON values."""

    def decide(self, snapshot: Snapshot, past: Past, occasion: Occasion) -> tuple[Decision, Past]:
        """Decide. Pure: equal arguments give equal answers."""
