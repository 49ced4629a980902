"""When to run a pass, given when triggers came and when the policy wants its next one: pure, with time as data.

Rules:
1. The first trigger after quiet is due at once.
2. Passes begin at least one window apart: triggers within the window after a pass began make one trailing pass, due
   when the window ends. So a storm costs one pass a window, and its last trigger is answered at most a window later.
3. An explicit request waits for no window.
4. A trigger that comes while a pass runs belongs to the next pass: the last state is always the one acted upon.
5. The policy's timer is a trigger once its time has come.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtksm.model.decision import EXPLICIT, Trigger, Triggers
from virtksm.values import replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Coalescer:
    """Triggers that wait for their pass. Times are seconds of any one clock that does not step."""

    window_s: float
    pending: frozenset[Trigger] = frozenset()
    heard_s: float | None = None
    """When the first of the pending triggers came."""
    began_s: float | None = None
    timer_s: float | None = None
    """When the policy wants its next pass."""

    def offer(self, trigger: Trigger, heard_s: float) -> Coalescer:
        first_s = heard_s if self.heard_s is None else self.heard_s
        return replace(self, pending=self.pending | {trigger}, heard_s=first_s)

    def ring(self, now_s: float) -> Coalescer:
        if self.timer_s is None or self.timer_s > now_s:
            return self
        return replace(self, timer_s=None).offer(Trigger.TIMER, now_s)

    def next_s(self, now_s: float) -> float | None:
        """Return when a pass or the timer is due next, None if nothing asks for one."""
        return min((at_s for at_s in (self.due_s(now_s), self.timer_s) if at_s is not None), default=None)

    def due_s(self, now_s: float) -> float | None:
        """Return when the pending triggers' pass is due (now_s for at once), None while nothing is pending."""
        if not self.pending:
            return None
        if self.began_s is None or self.pending & EXPLICIT:
            return now_s
        return max(now_s, min(self.began_s, now_s) + self.window_s)

    def take(self, now_s: float) -> tuple[Triggers, Coalescer]:
        """Begin the pass that is due: return what it answers, and the rest."""
        return Triggers(kinds=self.pending), replace(self, pending=frozenset(), heard_s=None, began_s=now_s)
