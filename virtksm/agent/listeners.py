"""The listeners to events and passes: the log, the history, the trace buffer, and the reader of guests' XML."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from virtksm.agent.guest_xml import GuestReader
from virtksm.agent.history import Diary
from virtksm.agent.log import Reporter
from virtksm.agent.news import News
from virtksm.agent.passes import DonePass
from virtksm.agent.trace_buffer import Inputs
from virtksm.config.schema import Config
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.report import PassRecord


@dataclass(frozen=True, slots=True)
class Listeners:
    """All of them, as the one listener that passes know."""

    reporter: Reporter
    diary: Diary
    inputs: Inputs
    guests: GuestReader
    news: News = field(default_factory=News)

    def heard(self, event: DomainEvent) -> None:
        self.reporter.event(event)
        self.diary.hear(event)

    def complete(self, record: PassRecord, config: Config) -> PassRecord:
        return replace(record, exposed=self.guests.exposed(record.snapshot.guests, config.private_guests))

    def passed(self, done: DonePass) -> None:
        self.inputs.keep(done.record, done.config, now_s=done.ended_s, at_s=time.time())
        is_news = self.news.is_news(done.record, done.ended_s)
        self.reporter.passed(done.record, done.heard_s, done.ended_s, is_news=is_news)
        self.diary.take(done.record, is_news=is_news)
        self.guests.see(done.record.snapshot.guests, afresh=done.record.occasion.is_explicit)
