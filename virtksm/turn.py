"""What would turn a decision: a quantity, the first value of it that does, and what it is now. Pure.

A turn speaks of the next look, all else equal: as soon as the quantity reaches the threshold, from whichever side it
comes, the policy decides as `then` says, and just short of it not yet. So a policy's hysteresis, and a round that has
just begun, are in it. What takes two quantities at once to come about is no turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtksm.units import format_kib

PASSED_S = "passed_s"
"""The quantity of turns that time alone brings about: seconds from now, so that it is 0.0 now."""
SWITCHED_OFF = "switched_off"
"""The quantity of `virtksm off`: 1 while it is in force."""

WORDS = {
    "available_kib": "available memory",
    "committed_kib": "guests' resident memory",
    "free_kib": "free memory, buffers and cache",
    "full_scans": "full_scans",
    "owed_kib": "what is owed, once it has settled,",
    "potential_kib": "what guests may grow to",
    "run": "run of /sys/kernel/mm/ksm",
    "total_kib": "the host's memory",
    "waited_kib_s": "the waiting of what is owed",
}
"""How each quantity is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """`then` is what the policy would do: a verb with its object. The unit is in the quantity's name."""

    then: str
    quantity: str
    threshold: float
    present: float

    @property
    def text(self) -> str:
        """The turn as a sentence, without a full stop."""
        if self.quantity == SWITCHED_OFF:
            return f"{self.then} after `virtksm on`"
        if self.quantity == PASSED_S:
            left = f"in {self.threshold:.0f} s" if self.threshold > 0 else "at the next look"
            return f"{self.then} {left}, if nothing else changes"
        threshold, present = self._values()
        verb = "rises to" if self.threshold > self.present else "falls to"
        return f"{self.then} when {WORDS[self.quantity]} {verb} {threshold}; now {present}"

    def as_dict(self) -> dict[str, object]:
        return {
            "then": self.then,
            "quantity": self.quantity,
            "threshold": self.threshold,
            "present": self.present,
            "text": self.text,
        }

    def _values(self) -> tuple[str, str]:
        """Return both values as text, exact where they would look the same."""
        if self.quantity.endswith("_kib_s"):
            return f"{format_kib(self.threshold)} s", f"{format_kib(self.present)} s"
        if self.quantity.endswith("_kib"):
            rounded = format_kib(self.threshold), format_kib(self.present)
            if rounded[0] != rounded[1]:
                return rounded
            return f"{self.threshold:.0f} KiB", f"{self.present:.0f} KiB"
        return f"{self.threshold:.0f}", f"{self.present:.0f}"
