"""The listeners to events and passes: the log, the history, the trace buffer, and the reader of guests' XML."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from virtksm.agent.guest_xml import GuestReader
from virtksm.agent.history import HistoryWriter
from virtksm.agent.log import Reporter
from virtksm.agent.news import News
from virtksm.agent.passes import DonePass
from virtksm.agent.trace_buffer import TraceBuffer
from virtksm.config.schema import Config
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.report import PassReport


@dataclass(frozen=True, slots=True)
class Listeners:
    """All of them, as the one listener of the passes."""

    reporter: Reporter
    history_writer: HistoryWriter
    trace: TraceBuffer
    guests: GuestReader
    news: News = field(default_factory=News)

    def heard(self, event: DomainEvent) -> None:
        self.reporter.event(event)
        self.history_writer.hear(event)

    def complete(self, report: PassReport, config: Config) -> PassReport:
        return replace(report, exposed=self.guests.exposed(report.snapshot.guests, config.private_guests))

    def passed(self, done: DonePass) -> None:
        line = self.trace.add(done.report, done.config, now_s=done.ended_s, at_s=time.time())
        is_news = self.news.is_news(done.report, done.ended_s)
        self.reporter.passed(done.report, done.heard_s, done.ended_s, is_news=is_news)
        thresholds = [one.as_dict() for one in done.report.find_thresholds()] if is_news else []
        self.history_writer.take(line, line.summary(thresholds) if is_news else None)
        self.guests.see(done.report.snapshot.guests, again=done.report.triggers.is_explicit)
