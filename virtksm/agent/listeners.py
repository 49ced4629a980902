"""The listeners to events and passes: log, history, trace buffer, headroom, and those who ask for more about guests.

Which passes are news, which are logged at level info, and kept in the history:
1. A requested pass, a guest's start or stop, a refusal and another writer are news.
2. A timer's routine pass is none (`PassReport.is_routine`).
3. Of the other passes, MAX_AT_ONCE are, and one more for each REFILL_S: a guest that inflates and deflates its balloon
   changes the decision as often as it likes, and may fill neither the log nor the history.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from virtksm.agent.dirty_rates import DirtyRates
from virtksm.agent.guest_switches import GuestSwitches
from virtksm.agent.guest_xml import GuestReader
from virtksm.agent.headroom import Rooms
from virtksm.agent.history import HistoryWriter
from virtksm.agent.log import Reporter
from virtksm.agent.merged_memory import MergedMemory
from virtksm.agent.passes import DonePass
from virtksm.agent.trace_buffer import TraceBuffer
from virtksm.agent.zero_pages import ZeroPages
from virtksm.config.schema import Config
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Trigger
from virtksm.model.report import PassReport
from virtksm.values import replace

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


@dataclass(frozen=True, slots=True)
class Listeners:
    """All of them, as the one listener of the passes."""

    reporter: Reporter
    history_writer: HistoryWriter
    trace: TraceBuffer
    guests: GuestReader
    switches: GuestSwitches
    dirty_rates: DirtyRates
    merged: MergedMemory
    zero_pages: ZeroPages = field(default_factory=ZeroPages)
    news: News = field(default_factory=News)
    rooms: Rooms = field(default_factory=Rooms)

    @property
    def room_kib(self) -> Mapping[str, int] | None:
        """The room for more guest memory, by name; None while it is unknown."""
        return self.rooms.room_kib(self.guests.known)

    def heard(self, event: DomainEvent) -> None:
        if event.trigger in (Trigger.METADATA, Trigger.MEMORY_DEVICE):
            self.guests.reread(event.uuid)
        self.reporter.event(event)
        self.history_writer.hear(event)

    def complete(self, report: PassReport, config: Config) -> PassReport:
        return replace(report, exposed=self.guests.exposed(report.snapshot.guests, config.private_guests))

    def passed(self, done: DonePass) -> None:
        if done.report.paused is None:  # else the policy was not asked; first, as ksmd goes on
            self.zero_pages.follow(done.report)
        line = self.trace.add(done.report, done.config, now_s=done.ended_s, at_s=time.time())
        is_news = self.news.is_news(done.report, done.ended_s)
        self.reporter.passed(done.report, done.heard_s, done.ended_s, is_news=is_news)
        thresholds = [one.as_dict() for one in done.report.find_thresholds()] if is_news else []
        self.history_writer.take(line, line.summary(thresholds) if is_news else None)
        self.guests.see(done.report.snapshot.guests, again=done.report.triggers.is_explicit)
        self.rooms.passed(done, self.guests.known)
        if done.report.triggers.is_explicit:
            self.switches.see(again=True)
        guests, decision = done.report.snapshot.guests, done.report.decision
        if done.report.paused is None:
            self.switches.follow(None if done.config.only_observes else decision.rewriters)
        swapped_kib = done.report.snapshot.host.swapped_kib or 0
        self.dirty_rates.see(guests, is_wanted=decision.wants_dirty_rates, swapped_kib=swapped_kib)
        self.merged.see(guests, is_wanted=decision.wants_merged)
