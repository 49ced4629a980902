"""The agent's history_writer: turns passes and libvirt's events into memories, and has them kept on disk once a minute.

Nothing here wakes a resting agent: memories come with passes and events, and a minute after the first that is not yet
kept, all are written in one go; what is younger is lost with a process that is killed. The disk is talked to beside the
loop, one call at a time and each with a limit. While it does not answer, or fails, memories wait, and the oldest of too
many are given up; it is reported once, and the agent goes on. Of what a guest makes by itself (balloon, memory devices)
the last of its kind waits alone, so that the history gets one a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from virtksm.agent.calls import BlockingCalls
from virtksm.errors import StateUnusable, VirtksmError
from virtksm.history.samples import SAMPLE_S, GuestEvent, History, Sample, Told, replaces, sample_of
from virtksm.host.clock import boottime_s
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.report import PassReport

WRITE_S = 60.0
"""How long a memory may wait for others before it is written."""
DISK_LIMIT_S = 10.0
MAX_WAITING_SAMPLES = 360
MAX_WAITING_EVENTS = 1_000
MAX_WAITING_DECISIONS = 300
"""More than a storm of events makes in a minute, at four passes a second."""

Value = TypeVar("Value")
Batch = tuple[list[Sample], list[GuestEvent], list[Told]]


def disk_hangs(message: str) -> VirtksmError:
    """Return the error for a disk that does not answer."""
    return StateUnusable(message, remedy="the disk behind the state folder does not answer: see the kernel's log")


class Waiting:
    """What is not written yet, in bounded numbers: the oldest of too many are given up."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.samples: deque[Sample] = deque(maxlen=MAX_WAITING_SAMPLES)
        self.events: dict[object, GuestEvent] = {}
        self.decisions: deque[Told] = deque(maxlen=MAX_WAITING_DECISIONS)
        self._clock = clock
        self._shared_from_s = -SAMPLE_S
        """Since when the last sample is shared by passes."""

    def add_event(self, event: GuestEvent) -> None:
        key = replaces(event)
        self.events.pop(key, None)
        self.events[key] = event
        if len(self.events) > MAX_WAITING_EVENTS:
            chatter = (key for key, waits in self.events.items() if key is not waits)
            del self.events[next(chatter, next(iter(self.events)))]

    def add_sample(self, sample: Sample) -> None:
        """Add a sample, or have it take the place of the last one, if passes share that still."""
        if self._is_shared and self.samples:
            self.samples.pop()
        elif not self._is_shared:
            self._shared_from_s = self._clock()
        self.samples.append(sample)

    @property
    def _is_shared(self) -> bool:
        return self._clock() - self._shared_from_s < SAMPLE_S

    def take_out(self, *, is_last: bool) -> Batch:
        """Take what is to be written; the last sample waits as long as further passes may share it."""
        batch = list(self.samples), list(self.events.values()), list(self.decisions)
        for waiting in (self.samples, self.events, self.decisions):
            waiting.clear()
        if self._is_shared and batch[0] and not is_last:
            self.samples.append(batch[0].pop())
        return batch

    def put_back(self, batch: Batch) -> None:
        """Wait with them for the next write, before what has come since."""
        _prepend(self.samples, batch[0])
        newer, self.events = self.events, {}
        for event in (*batch[1], *newer.values()):
            self.add_event(event)
        _prepend(self.decisions, batch[2])


class HistoryWriter:
    """What is remembered; to be used from one asyncio loop. Without a history (`keep_in`) it is lost at the end.

    `kept` is told of each write that went well, and of a file that was set aside for it; `failed` of each that did not.
    """

    def __init__(
        self,
        kept: Callable[[str | None], None] = lambda _aside: None,
        failed: Callable[[Exception], None] = lambda _error: None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = boottime_s,
        write_s: float = WRITE_S,
        disk_limit_s: float = DISK_LIMIT_S,
    ) -> None:
        self.now_s = wall_clock
        self._kept = kept
        self._failed = failed
        self._write_s = write_s
        self._disk_limit_s = disk_limit_s
        self._calls = BlockingCalls(disk_hangs)
        self._turn = asyncio.Lock()
        self._history: History | None = None
        self._is_new = False
        self._waiting = Waiting(clock)
        self._stirred = asyncio.Event()
        self._hurried = asyncio.Event()
        self._is_ending = False

    def keep_in(self, history: History) -> None:
        """Keep memories there from now on; what it has is looked at, and mended, at once."""
        self._history, self._is_new = history, True
        self._hurried.set()
        self._stirred.set()

    def hear(self, event: DomainEvent) -> None:
        """Remember an event of libvirt's."""
        self._waiting.add_event(
            GuestEvent(
                at_s=self._to_the_millisecond(),
                kind=event.trigger.value,
                domain=event.guest,
                uuid=event.uuid,
                detail=event.detail,
            )
        )
        self._stirred.set()

    def take(self, report: PassReport, *, is_news: bool) -> None:
        """Remember a pass that was no dry run: the host as it left it, and the decision, if that was news."""
        at_s = self._to_the_millisecond()
        self._waiting.add_sample(sample_of(at_s, report.snapshot, report.after, report.decision.reason.rule))
        if is_news:
            self._waiting.decisions.append(Told(at_s=at_s, report=report.as_dict(with_thresholds=True)))
        self._stirred.set()

    def _to_the_millisecond(self) -> float:
        return round(self.now_s(), 3)

    async def keep_writing(self) -> None:
        """Write what there is, at most once in `write_s`, until `end` is called; then once more."""
        while not self._is_ending:
            await self._stirred.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), self._write_s)
            self._hurried.clear()
            if not self._is_ending:
                await self._write(is_last=False)
        await self._write(is_last=True)

    def end(self) -> None:
        """Have `keep_writing` write what is left, and end."""
        self._is_ending = True
        self._hurried.set()
        self._stirred.set()

    async def samples(self, since_s: float) -> tuple[Sample, ...]:
        """Return the samples from `since_s` on, also those not kept yet; raises StateUnusable."""
        return await self._read(
            lambda history: history.samples(since_s),
            lambda: [one for one in self._waiting.samples if one.at_s >= since_s],
        )

    async def events(self, since_s: float, most: int) -> tuple[GuestEvent, ...]:
        """Return the last `most` events (1 or more) from `since_s` on, also those not kept yet; as `samples`."""
        found = await self._read(
            lambda history: history.events(since_s, most),
            lambda: [one for one in self._waiting.events.values() if one.at_s >= since_s],
        )
        return found[-most:]

    async def decisions(self, most: int) -> tuple[Told, ...]:
        """Return the last `most` decisions (1 or more), also those not kept yet; raises StateUnusable."""
        found = await self._read(lambda history: history.decisions(most), lambda: self._waiting.decisions)
        return found[-most:]

    async def _read(
        self, kept: Callable[[History], tuple[Value, ...]], waiting: Callable[[], Iterable[Value]]
    ) -> tuple[Value, ...]:
        async with self._turn:  # while it is held, nothing is on its way to the disk
            history = self._history
            if history is None:
                return tuple(waiting())
            found = await self._calls.run("read the history", lambda: kept(history), self._disk_limit_s)
            return (*found, *waiting())

    async def _write(self, *, is_last: bool) -> None:
        async with self._turn:
            self._stirred.clear()
            history = self._history
            if history is None:
                return
            if self._calls.waiting is not None:  # a call that was given up is still out: memories wait
                self._stirred.set()
                return
            batch = self._waiting.take_out(is_last=is_last)
            if self._waiting.samples:
                self._stirred.set()
            if not self._is_new and not any(batch):
                return
            self._is_new = False
            try:
                aside = await self._calls.run("keep the history", lambda: history.keep(*batch), self._disk_limit_s)
            except Exception as error:  # noqa: BLE001  # whatever it is, what is remembered waits for another try
                self._failed(error)
                if self._calls.waiting is None:  # it has failed; one that was given up may still be done
                    self._waiting.put_back(batch)
                    if any(batch):
                        self._stirred.set()
            else:
                self._kept(aside)


def _prepend(waiting: deque[Value], older: list[Value]) -> None:
    newer = list(waiting)
    waiting.clear()
    waiting.extend(older + newer)
