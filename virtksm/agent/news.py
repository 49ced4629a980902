"""Which passes are news: logged at level info, and kept in the history. Pure, with time as data.

Rules:
1. A requested pass, a guest's start or stop, a refusal and another writer are news.
2. A timer's routine pass is none (`PassReport.is_routine`).
3. Of the other passes, MAX_AT_ONCE are, and one more for each REFILL_S: a guest that inflates and deflates its balloon
   changes the decision as often as it likes, and may fill neither the log nor the history.
"""

from __future__ import annotations

from virtksm.model.report import PassReport

MAX_AT_ONCE = 30
"""A storm of guests takes the adaptive policy some ten changes of rule."""
REFILL_S = 30.0
"""A day of nothing but news is 2,910 lines, some 4 MB."""


class News:
    """A limit on one agent's news."""

    def __init__(self) -> None:
        self._left = float(MAX_AT_ONCE)
        self._at_s: float | None = None

    def is_news(self, report: PassReport, now_s: float) -> bool:
        """Judge a pass that has ended at `now_s`, by a clock that does not step."""
        if report.is_routine:
            return False
        if not report.is_unasked or report.refusals or report.foreign or report.yields_now or report.resumes_now:
            return True
        since_s = 0.0 if self._at_s is None else max(now_s - self._at_s, 0.0)
        self._at_s = now_s
        self._left = min(self._left + since_s / REFILL_S, MAX_AT_ONCE)
        if self._left < 1:
            return False
        self._left -= 1
        return True
