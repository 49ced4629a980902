"""Passes: when one is due, and one at a time. Triggers come from libvirt, the FIFO, signals, requests and the timer.

A trigger asks for its pass before the listeners hear of it. A pass runs beside the loop with a limit; one that fails is
reported and tried again later. An unforeseen exception costs the pass in which it came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from virtksm.agent.calls import BlockingCalls, wait_set
from virtksm.agent.coalesce import Coalescer
from virtksm.agent.log import Reporter
from virtksm.config.schema import Config
from virtksm.errors import LibvirtUnreachable, VirtksmError
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import PassReport
from virtksm.tuning.cycle import Cycle
from virtksm.values import replace

RETRY_S = 15.0
"""When to try again after a pass that failed for another reason than a lost connection."""
STUCK_S = 30.0
"""A pass that is due for so much longer than a call may take will never come: the pass loop is stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DonePass:
    """A pass that was no dry run, under its configuration. Times are CLOCK_MONOTONIC; `heard_s` its first trigger's."""

    report: PassReport
    config: Config
    heard_s: float | None
    ended_s: float


class Listener(Protocol):
    """A listener to events and passes, called in the loop: after a pass was asked for, and after it has ended."""

    def heard(self, event: DomainEvent) -> None:
        """Note an event, for which a pass is asked already."""

    def complete(self, report: PassReport, config: Config) -> PassReport:
        """Complete a pass's report by what the pass cannot know."""

    def passed(self, done: DonePass) -> None:
        """Note a pass that has ended."""


class Passes:
    """The pass loop; to be used from one asyncio loop. Without a `cycle` there is no connection, and no pass."""

    def __init__(
        self, config: Config, calls: BlockingCalls, reporter: Reporter, listener: Listener, *, retry_s: float = RETRY_S
    ) -> None:
        self.config = config
        self.calls = calls
        self.cycle: Cycle[Any] | None = None
        self.coalescer = Coalescer(window_s=config.coalesce_ms / 1000)
        self.requests: list[asyncio.Future[PassReport]] = []
        """The answers to those who have asked for the next pass."""
        self.last: DonePass | None = None
        self.awake_s = 0.0
        """When the loop last ran."""
        self._reporter = reporter
        self._listener = listener
        self.retry_s = retry_s
        self._wake = asyncio.Event()
        self.stopping = asyncio.Event()

    def follow(self, config: Config, cycle: Cycle[Any] | None) -> None:
        """Run later passes with this configuration, and with the cycle that was made from it."""
        self.config, self.cycle = config, cycle
        self.coalescer = replace(self.coalescer, window_s=config.coalesce_ms / 1000)

    def heard(self, event: DomainEvent) -> None:
        """Take an event from libvirt: ask for a pass, then call the listeners."""
        self.offer(event.trigger, heard_s=event.heard_s)  # first: no listener may delay the pass
        try:
            if event.trigger is Trigger.MEMORY_DEVICE and self.cycle is not None:
                self.cycle.hypervisor.forget_max(event.uuid)
            self._listener.heard(event)
        except Exception as error:  # noqa: BLE001  # the outermost layer of libvirt's events
            self._reporter.task_crashed("hearing an event", error)

    def offer(self, trigger: Trigger, *, heard_s: float | None = None) -> None:
        self.coalescer = self.coalescer.offer(trigger, time.monotonic() if heard_s is None else heard_s)
        self._wake.set()

    def look_again(self) -> None:
        """Have one more pass, as what is known of the guests has changed; one that runs may not have seen it."""
        self.offer(Trigger.GUESTS)

    async def ask(self, trigger: Trigger, *, dry_run: bool = False) -> PassReport:
        """Ask for a pass and return its report; raises VirtksmError if the pass fails, or none is possible."""
        if self.cycle is None:
            raise LibvirtUnreachable(self._reporter.why_unlinked())
        if self.stopping.is_set():
            raise VirtksmError("the agent is stopping")
        if dry_run:  # which is between passes, and none
            config, work = self.config, partial(self.cycle.run, Triggers(kinds=frozenset({trigger})), dry_run=True)
            return self._listener.complete(await self.calls.run("pass", work, config.call_timeout_s), config)
        answer: asyncio.Future[PassReport] = asyncio.get_running_loop().create_future()
        self.requests.append(answer)
        self.offer(trigger)
        return await answer

    def disconnect(self, error: VirtksmError) -> None:
        """Run no pass until there is another cycle, and answer all waiting requests by `error`."""
        self.cycle = None
        self.fail_requests(error)

    def fail_requests(self, error: VirtksmError) -> None:
        requests, self.requests = self.requests, []
        _fail(requests, error)

    def stop(self) -> None:
        """Begin no further pass; one that has begun is finished."""
        self.stopping.set()
        self._wake.set()

    def next_s(self, now_s: float) -> float | None:
        """Return when the next pass is due; None without a connection, or if nothing asks for one."""
        return None if self.cycle is None else self.coalescer.next_s(now_s)

    def is_stuck(self, now_s: float) -> bool:
        """Tell whether due passes have stopped coming; no fault of libvirt explains that, as its calls have a limit."""
        due_s = self.awake_s if self.coalescer.pending else self.coalescer.timer_s
        if self.cycle is None or due_s is None:
            return False
        return now_s > max(due_s, self.awake_s) + self.config.call_timeout_s + STUCK_S

    async def run_when_due(self) -> None:
        """Wait until a pass is due, and run it."""
        await self._wait_until_due()
        cycle, config = self.cycle, self.config  # both before a reload, or both after it
        if self.stopping.is_set() or cycle is None:
            return
        now_s = time.monotonic()
        due_s = self.coalescer.due_s(now_s)
        if due_s is not None and due_s <= now_s:
            heard_s = self.coalescer.heard_s
            triggers, self.coalescer = self.coalescer.take(now_s)
            await self._run(cycle, config, triggers, heard_s)

    async def _wait_until_due(self) -> None:
        """Sleep until a trigger is due, the timer ends, or the agent stops."""
        while not self.stopping.is_set():
            self._wake.clear()
            self.awake_s = now_s = time.monotonic()
            next_s = None
            if self.cycle is not None:
                self.coalescer = self.coalescer.ring(now_s)
                next_s = self.coalescer.next_s(now_s)
            if next_s is not None and next_s <= now_s:
                return
            await wait_set(self._wake, None if next_s is None else next_s - now_s)

    async def _run(self, cycle: Cycle[Any], config: Config, triggers: Triggers, heard_s: float | None) -> None:
        answered, self.requests = self.requests, []
        failure = VirtksmError("internal error", remedy="see the agent's log")
        try:
            report = await self.calls.run("pass", partial(cycle.run, triggers), config.call_timeout_s)
            report = self._listener.complete(report, config)
            self.last = done = DonePass(report=report, config=config, heard_s=heard_s, ended_s=time.monotonic())
            next_s = report.decision.next_pass_s
            self._set_timer(None if next_s is None else done.ended_s + next_s)
            self._listener.passed(done)
            for answer in answered:
                if not answer.done():
                    answer.set_result(report)
        except VirtksmError as error:
            failure = error
            self._reporter.pass_failed(error, triggers)
        except Exception as error:  # noqa: BLE001  # the outermost layer: it costs this pass alone
            self._reporter.pass_crashed(error, triggers)
        else:
            return
        finally:
            _fail(answered, failure)
        self._set_timer(time.monotonic() + self.retry_s)  # after a lost connection, connecting brings its own pass

    def _set_timer(self, timer_s: float | None) -> None:
        self.coalescer = replace(self.coalescer, timer_s=timer_s)


def _fail(answers: Iterable[asyncio.Future[PassReport]], error: VirtksmError) -> None:
    """Answer those without an answer by an error."""
    for answer in answers:
        if not answer.done():
            answer.set_exception(error)
