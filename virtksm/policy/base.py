"""What a policy is: a pure function from a snapshot and its own state to a decision and its next state.

A policy reads no clock, draws no random number, logs nothing and touches nothing: time is in the snapshot, the state is
a value that the cycle keeps between passes (in the runtime folder, so that the agent, its successor and the one-shot
continue where the other was).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from virtksm.model.decision import Decision, Triggers
from virtksm.model.snapshot import Snapshot

if TYPE_CHECKING:
    from virtksm.policy.thresholds import Quantity

State = TypeVar("State")


class Policy(Protocol[State]):
    """One control law. See CONTRIBUTING.md, "Add a policy"."""

    @property
    def name(self) -> str:
        """The name by which the configuration chooses it."""

    @property
    def only_observes(self) -> bool:
        """Whether nothing of what it decides is ever done."""

    @property
    def wants_maxima(self) -> bool:
        """Whether it uses `Guest.max_kib`: asking for it costs a call for each guest that is new."""

    @property
    def wants_other_processes(self) -> bool:
        """Whether it uses `Snapshot.other_processes`: sensing it reads every process, once a minute."""

    def first_state(self, snapshot: Snapshot) -> State:
        """Return the state to begin with where none was saved."""

    def load_state(self, values: Mapping[str, object]) -> State:
        """Rebuild a state from what `dump_state` gave; raise ValueError if it is not one."""

    def dump_state(self, state: State) -> dict[str, object]:
        """Return the state as plain JSON values."""

    def quantities(self, snapshot: Snapshot, state: State, decision: Decision) -> Iterable[Quantity]:
        """Return what may change the decision that has left `state` behind (thresholds.py), time passed first."""

    def decide(self, snapshot: Snapshot, state: State, triggers: Triggers) -> tuple[Decision, State]:
        """Decide. Pure: equal arguments give equal answers."""
