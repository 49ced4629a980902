"""When to run a pass, given when triggers came: pure, with time as data.

Rules:
1. The first trigger after quiet is due at once.
2. Passes begin at least one window apart: triggers within the window after a pass began make one trailing pass, due
   when the window ends. So a storm costs one pass a window, and its last trigger is answered at most a window later.
3. An explicit request waits for no window.
4. A trigger that comes while a pass runs belongs to the next pass: the last state is always the one acted upon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from virtksm.model.decision import EXPLICIT, Occasion, Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Coalescer:
    """Triggers that wait for their pass. Times are seconds of any one clock that does not step."""

    window_s: float
    pending: frozenset[Trigger] = frozenset()
    began_s: float | None = None

    def offer(self, trigger: Trigger) -> Coalescer:
        """Add a trigger."""
        return replace(self, pending=self.pending | {trigger})

    def due_s(self, now_s: float) -> float | None:
        """Return when the pending triggers' pass is due (now_s for at once), None while nothing is pending."""
        if not self.pending:
            return None
        if self.began_s is None or self.pending & EXPLICIT:
            return now_s
        return max(now_s, min(self.began_s, now_s) + self.window_s)

    def take(self, now_s: float) -> tuple[Occasion, Coalescer]:
        """Begin the pass that is due: return what it answers, and the rest."""
        return Occasion(triggers=self.pending), replace(self, pending=frozenset(), began_s=now_s)
