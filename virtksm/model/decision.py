"""What asks for a pass, what was decided and why, and what would change it. Pure.

A threshold names a quantity, the first value of it at which the policy decides otherwise, and what it is now
(policy/thresholds.py finds them).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from virtksm.model.snapshot import Settings
from virtksm.text import format_kib
from virtksm.values import EMPTY

PASSED_S = "passed_s"
"""The quantity that time alone moves: seconds from now, so that it is 0 now."""
GROWTH_KIB = "growth_kib"
"""The quantity of memory that guests take in addition to what they hold, so that it is 0 now."""
PAUSED = "paused"
"""The quantity of `virtksm pause`: 1 while it is in force."""

WORDS = {
    "available_kib": "available memory",
    "committed_kib": "guests' resident memory",
    "free_kib": "free memory, buffers and cache",
    "full_scans": "full_scans",
    "potential_kib": "what guests can grow to",
    "run": "run of /sys/kernel/mm/ksm",
    "total_kib": "the host's memory",
}
"""What the other quantities are called."""


class Threshold(NamedTuple):
    """`then` is what the policy would do: a verb with its object. The unit is in the quantity's name."""

    then: str
    quantity: str
    value: float
    present: float

    @property
    def text(self) -> str:
        """The threshold as a sentence, without a full stop."""
        if self.quantity == PAUSED:
            return f"{self.then} after `virtksm resume`"
        if self.quantity == PASSED_S:
            left = f"in {self.value:.0f} s" if self.value > 0 else "at the next pass"
            return f"{self.then} {left}, if nothing else changes"
        value, present = self._values()
        if self.quantity == GROWTH_KIB:
            return f"{self.then} after {value} of new guest memory"
        verb = "rises to" if self.value > self.present else "falls to"
        return f"{self.then} when {WORDS[self.quantity]} {verb} {value}; now {present}"

    def as_dict(self) -> dict[str, object]:
        return {**self._asdict(), "text": self.text}

    def _values(self) -> tuple[str, str]:
        """Return both values as text, exact where they would look the same."""
        if self.quantity.endswith("_kib"):
            rounded = format_kib(self.value), format_kib(self.present)
            if rounded[0] != rounded[1]:
                return rounded
            return f"{self.value:.0f} KiB", f"{self.present:.0f} KiB"
        return f"{self.value:.0f}", f"{self.present:.0f}"


class Trigger(Enum):
    """What asked for a pass."""

    CONNECTED = "connected"
    STARTED = "started"
    STOPPED = "stopped"
    BALLOON = "balloon"
    MEMORY_DEVICE = "memory_device"
    METADATA = "metadata"
    GUESTS = "guests"
    POKE = "poke"
    SIGNAL = "signal"
    RELOAD = "reload"
    RETUNE = "retune"
    TIMER = "timer"
    PAUSE = "pause"
    RESUME = "resume"


EVALUATING_ONLY = frozenset({Trigger.BALLOON, Trigger.MEMORY_DEVICE, Trigger.METADATA, Trigger.GUESTS})
"""Triggers that re-evaluate without being a step of the policy. Guests, or their owners, cause any number of them.
GUESTS: what is known of them has changed, as a list has come late or some were unmerged while they run."""


EXPLICIT = frozenset({Trigger.RETUNE, Trigger.RELOAD, Trigger.PAUSE, Trigger.RESUME})
"""Triggers by which an administrator asks for virtksm's settings, whatever it had yielded to before."""


class Triggers(NamedTuple):
    """The triggers that one pass answers; a coalesced burst is answered by one pass."""

    kinds: frozenset[Trigger]

    @property
    def is_step(self) -> bool:
        return bool(self.kinds - EVALUATING_ONLY)

    @property
    def is_explicit(self) -> bool:
        return bool(self.kinds & EXPLICIT)

    @property
    def names(self) -> list[str]:
        return sorted(trigger.value for trigger in self.kinds)


Number = int | float | None


class Reason(NamedTuple):
    """Why a policy decided so: the rule that fired, a sentence, and the numbers that it went by."""

    rule: str
    text: str
    numbers: Mapping[str, Number] = EMPTY


class Decision(NamedTuple):
    """A policy's answer: always the whole target, also where nothing changes.

    `next_pass_s` is when the policy wants its own next pass, in seconds from now; None for never. `is_routine` says
    that the same rule goes on as in the pass before: one of many, which only a log at level debug needs.
    `wants_dirty_rates`: guests' dirty rates are of use to the next decisions; `wants_merged`: so is what is merged of
    them; `wants_zero_pages`: so is a merged zero page to ksmd. `rewriters` are the guests (`Guest.key`) that are to be
    out of KSM, as they rewrite what merges.
    """

    target: Settings
    reason: Reason
    next_pass_s: float | None
    is_routine: bool = False
    wants_dirty_rates: bool = False
    wants_merged: bool = False
    wants_zero_pages: bool = False
    rewriters: tuple[str, ...] = ()

    @property
    def is_idle(self) -> bool:
        return self.target.pages_to_scan == 0


class Pause(NamedTuple):
    """`since` is UTC as text. `damage` says why the switch could not be read: that counts as off, too."""

    since: str = ""
    damage: str = ""

    @property
    def warning(self) -> str:
        """What is wrong with the switch, with the remedy; empty if nothing is."""
        if not self.damage:
            return ""
        return (
            f"{self.damage}, so virtksm counts as paused; `virtksm pause` writes it anew, `virtksm resume` removes it"
        )
