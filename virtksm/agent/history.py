"""The agent's writer of the history: samples and decisions of passes, and libvirt's events, on disk once a minute.

The writer wakes no resting agent: a minute after the first pass or event that is not written yet, all are written in
one transaction; a process that is killed loses that minute. The disk is used beside the loop, one call at a time and
each with a limit. While it does not answer, or fails, all wait, and the oldest of too many are dropped; each try is
reported, and the agent goes on. Of the events that a guest makes by itself (balloon, memory devices) the last of its
kind waits alone, so that the history gets one a minute.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from virtksm.agent.calls import BlockingCalls, wait_set
from virtksm.errors import StateUnusable
from virtksm.history.samples import SAMPLE_S, GuestEvent, History, Sample, replaces, sample_of
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.snapshot import Guest
from virtksm.trace import Pass
from virtksm.trace.text import dump_line

WRITE_S = 60.0
"""How long the first may wait for others before they are written."""
DISK_LIMIT_S = 10.0
WRITING = "write the history"
DISK_HANGS = partial(StateUnusable, remedy="the disk behind the state folder does not answer: see the kernel's log")
MAX_WAITING_SAMPLES = 360
MAX_WAITING_EVENTS = 1_000
MAX_WAITING_DECISIONS = 300
"""More than a storm of events makes in a minute, at four passes a second."""

Value = TypeVar("Value")
Batch = tuple[list[Sample], list[GuestEvent], list[str]]


class Unwritten:
    """Samples, events and decisions that are not written yet: the oldest of too many are dropped."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=MAX_WAITING_SAMPLES)
        self._shared_from_s = -math.inf
        """Since when the last sample is shared by passes, in Unix time."""
        self.events: dict[object, GuestEvent] = {}
        self.decisions: deque[str] = deque(maxlen=MAX_WAITING_DECISIONS)

    def add_event(self, event: GuestEvent) -> None:
        key = replaces(event)
        self.events.pop(key, None)
        self.events[key] = event
        if len(self.events) > MAX_WAITING_EVENTS:
            chatter = (key for key, waits in self.events.items() if key is not waits)
            del self.events[next(chatter, next(iter(self.events)))]

    def add_sample(self, sample: Sample) -> None:
        """Add a sample, or replace the last one, while passes still share that."""
        if not self._is_shared(sample.at_s):
            self._shared_from_s = sample.at_s
        elif self.samples:
            self.samples.pop()
        self.samples.append(sample)

    def _is_shared(self, at_s: float) -> bool:
        return 0 <= at_s - self._shared_from_s < SAMPLE_S

    def take_out(self, now_s: float) -> Batch:
        """Take a batch to write at Unix time `now_s`; the last sample waits as long as later passes may share it."""
        batch = list(self.samples), list(self.events.values()), list(self.decisions)
        for waiting in (self.samples, self.events, self.decisions):
            waiting.clear()
        if batch[0] and self._is_shared(now_s):
            self.samples.append(batch[0].pop())
        return batch

    def put_back(self, batch: Batch) -> None:
        """Have a batch wait for the next write, before what has been added since."""
        samples, events, decisions = self.take_out(math.inf)
        self.samples.extend((*batch[0], *samples))
        for event in (*batch[1], *events):
            self.add_event(event)
        self.decisions.extend((*batch[2], *decisions))


class HistoryWriter:
    """Writes a host's history; to be used from one asyncio loop. Without `write_to` all is lost at the end.

    `written` is called after each write, with the file that was set aside for it; `failed` with its error.
    """

    def __init__(
        self,
        written: Callable[[str | None], None] = lambda _aside: None,
        failed: Callable[[Exception], None] = lambda _error: None,
        *,
        wall_clock: Callable[[], float] = time.time,
        write_s: float = WRITE_S,
        disk_limit_s: float = DISK_LIMIT_S,
    ) -> None:
        self.now_s = wall_clock
        self._written = written
        self._failed = failed
        self._write_s = write_s
        self._calls = BlockingCalls(DISK_HANGS, disk_limit_s)
        self._turn = asyncio.Lock()
        self._history: History | None = None
        self._is_new = False
        self._waiting = Unwritten()
        self._has_news = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._is_ending = False

    def write_to(self, history: History) -> None:
        """Write there from now on; a damaged file is set aside at once."""
        self._history, self._is_new = history, True
        self._is_urgent.set()
        self._has_news.set()

    def hear(self, event: DomainEvent) -> None:
        self._note(event.trigger.value, event.guest, event.uuid, event.detail)

    def note(self, guest: Guest, kind: str, detail: str) -> None:
        self._note(kind, guest.name, guest.uuid, detail)

    def _note(self, kind: str, domain: str, uuid: str, detail: str) -> None:
        at_s = round(self.now_s(), 3)
        self._waiting.add_event(GuestEvent(at_s=at_s, kind=kind, domain=domain, uuid=uuid, detail=detail))
        self._has_news.set()

    def take(self, line: Pass, news: Pass | None) -> None:
        """Take note of a pass that was no dry run: the host as it left it, and its summary, if it was news."""
        self._waiting.add_sample(sample_of(line.at_s, line.snapshot, line.after, line.decision.reason.rule))
        if news is not None:
            self._waiting.decisions.append(dump_line(news))
        self._has_news.set()

    async def keep_writing(self) -> None:
        """Write at most once in `write_s`, until `end` is called; then once more."""
        while not self._is_ending:
            await self._has_news.wait()
            await wait_set(self._is_urgent, self._write_s)
            self._is_urgent.clear()
            if not self._is_ending:
                await self._write(is_last=False)
        await self._write(is_last=True)

    def end(self) -> None:
        self._is_ending = True
        self._is_urgent.set()
        self._has_news.set()

    async def samples(self, since_s: float) -> tuple[Sample, ...]:
        """Return the samples from `since_s` on, also those not written yet; raises StateUnusable."""
        return await self._read(
            lambda history: history.samples(since_s),
            lambda: [one for one in self._waiting.samples if one.at_s >= since_s],
        )

    async def events(self, since_s: float, limit: int) -> tuple[GuestEvent, ...]:
        """Return the last `limit` events (1 or more) from `since_s` on, also those not written yet; as `samples`."""
        found = await self._read(
            lambda history: history.events(since_s, limit),
            lambda: [one for one in self._waiting.events.values() if one.at_s >= since_s],
        )
        return found[-limit:]

    async def decisions(self, limit: int) -> tuple[str, ...]:
        """Return the lines of the last `limit` decisions (1 or more), also those not written yet; as `samples`."""
        found = await self._read(lambda history: history.decisions(limit), lambda: self._waiting.decisions)
        return found[-limit:]

    async def _read(
        self, written: Callable[[History], tuple[Value, ...]], waiting: Callable[[], Iterable[Value]]
    ) -> tuple[Value, ...]:
        async with self._turn:  # while it is held, nothing is on its way to the disk
            history = self._history
            if history is None:
                return tuple(waiting())
            found = await self._calls.run("read the history", lambda: written(history))
            return (*found, *waiting())

    async def _write(self, *, is_last: bool) -> None:
        async with self._turn:
            self._has_news.clear()
            history = self._history
            if history is None:
                return
            if self._calls.waiting is not None:  # a call that was given up is still out
                self._failed(DISK_HANGS(f"{WRITING}: still waiting for an earlier call"))
                self._has_news.set()
                return
            batch = self._waiting.take_out(math.inf if is_last else self.now_s())
            if self._waiting.samples:
                self._has_news.set()
            if not self._is_new and not any(batch):
                return
            self._is_new = False
            try:
                aside = await self._calls.run(WRITING, lambda: history.add(*batch))
            except Exception as error:  # noqa: BLE001  # whatever it is, the batch waits for another try
                self._failed(error)
                if self._calls.waiting is None:  # it has failed; one that was given up may still be done
                    self._waiting.put_back(batch)
                    if any(batch):
                        self._has_news.set()
            else:
                self._written(aside)
