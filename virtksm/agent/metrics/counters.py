"""The agent's own counts from its start on, for its metrics: plain numbers, counted also while metrics are off.

They cost a pass some microseconds, need no library, and go on when the configuration switches metrics off and on.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from virtksm.model.report import Outcome, PassReport
from virtksm.model.snapshot import PARAMETERS

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""A pass takes 4 to 17 ms (docs/security.md), and libvirt may keep it for `call_timeout_s`, 30 s."""
FAILED = "failed"
RESULTS = (*(outcome.value for outcome in Outcome if outcome is not Outcome.DRY_RUN), FAILED)
"""The results of a pass that is no dry run."""


class Durations:
    """A histogram of seconds, its bounds inclusive."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Return each bound, infinity at last, with how many were no longer."""
        return zip((*BOUNDS_S, math.inf), accumulate(self._counts), strict=True)


class PassCounts:
    """Counts of the passes that were no dry runs, and the last one."""

    def __init__(self) -> None:
        self.by_result = Counter(dict.fromkeys(RESULTS, 0))
        self.by_trigger: Counter[tuple[str, ...]] = Counter()
        """By trigger and result; a pass counts once for each of its triggers."""
        self.by_rule: Counter[str] = Counter()
        self.durations = Durations()
        self.latencies = Durations()
        self.conflicts = Counter(dict.fromkeys(PARAMETERS, 0))
        self.refusals: Counter[tuple[str, ...]] = Counter()
        """By parameter and cause."""
        self.last_result: str | None = None
        self.last_at_s: float | None = None
        """When the last pass that did not fail ended, in Unix time."""

    def count(self, result: str, triggers: Iterable[str]) -> None:
        self.by_result[result] += 1
        self.by_trigger.update((trigger, result) for trigger in triggers)
        self.last_result = result


class Tally:
    """The counts; `changed` is called after each pass and each change of the connection."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.passes = PassCounts()
        self.connections = 0
        self.history_failures = 0
        self.crashes = Counter(dict.fromkeys(("pass", "request", "task"), 0))
        """Unforeseen exceptions, by where they came."""
        self.is_off: bool | None = None
        self.exposed: int | None = None
        self.mixed_groups: int | None = None
        self.config_is_read = True

    def passed(self, report: PassReport, waited_s: float | None, at_s: float) -> None:
        """Count a pass, that ended at Unix time `at_s`, `waited_s` after its first trigger."""
        passes = self.passes
        passes.count(report.outcome.value, report.triggers.names)
        passes.by_rule[report.decision.reason.rule] += 1
        passes.durations.add(report.duration_ms / 1000)
        if waited_s is not None:
            passes.latencies.add(waited_s)
        passes.conflicts.update(value.parameter for value in report.foreign)
        passes.refusals.update((error.parameter, error.cause.value) for error in report.refusals)
        passes.last_at_s = at_s
        self.is_off = report.paused is not None
        self.changed()

    def failed(self, triggers: Iterable[str]) -> None:
        self.passes.count(FAILED, triggers)
        self.changed()

    def connected(self) -> None:
        self.connections += 1
        self.changed()

    def disconnected(self) -> None:
        self.changed()

    def switched(self, *, is_off: bool) -> None:
        self.is_off = is_off
        self.changed()
