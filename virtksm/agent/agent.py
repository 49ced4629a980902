"""The host agent: hears what happens to guests, and runs a pass for it.

One asyncio loop owns all state. Triggers come from libvirt's event thread, the poke FIFO, signals, the control socket
and the policy's timer and meet in the coalescer; the pass loop takes them out, one pass at a time. Every libvirt call
runs beside the loop with a limit (`blocking`). A failed pass is reported once per change and tried again later; only
a configuration that never was valid, or a second agent, ends the agent.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from virtksm import __version__
from virtksm.adapters.libvirt_events import DomainEvent
from virtksm.adapters.libvirt_host import LibvirtHost
from virtksm.agent.blocking import BlockingCalls
from virtksm.agent.coalesce import Coalescer
from virtksm.agent.diary import Diary
from virtksm.agent.guest_look import GuestLook
from virtksm.agent.inputs import Inputs
from virtksm.agent.link import Link
from virtksm.agent.recall import recall_decisions, recall_history
from virtksm.agent.reporting import Reporter
from virtksm.agent.status import Standing, look
from virtksm.assemble import is_this_machine
from virtksm.config.schema import Config
from virtksm.cycle import Cycle, Memory
from virtksm.describe import read_guests
from virtksm.errors import ConfigError, ExitCode, LibvirtUnreachable, VirtksmError
from virtksm.history import History
from virtksm.model import Guest, Occasion, Trigger
from virtksm.ports import LocalFacts, Switch
from virtksm.record import PassRecord, RestoreRecord
from virtksm.uri import is_alias

RETRY_S = 15.0
"""When to try again after a pass that failed for another reason than a lost connection."""
STUCK_S = 30.0
"""A pass that is due for so much longer than a call may take will never come: the pass loop is stuck."""
MOST_SHOWN = 60
"""Characters of a request that an answer repeats."""


@dataclass(slots=True)
class Request:
    """A control client's wish for a pass, and where its answer goes."""

    dry_run: bool
    answer: asyncio.Future[PassRecord]


@dataclass(slots=True)
class Agent:
    """The agent's state. `make_cycle` builds a pass's parts over a new connection from the current configuration.

    `make_switch` gives the switch of the host behind a URI, also while there is no connection.
    """

    uri: str
    config: Config
    link: Link
    calls: BlockingCalls
    reporter: Reporter
    make_cycle: Callable[[LibvirtHost, Config, Memory], Cycle[Any]]
    make_switch: Callable[[str, Config], Switch]
    reload_config: Callable[[], Config]
    make_history: Callable[[str, Config], History] | None = None
    """Gives the history of the host behind a URI; without it, memories end with the agent."""
    diary: Diary = field(default_factory=Diary)
    facts: LocalFacts | None = None
    """This machine's own, for people who ask how things stand; passes have theirs."""
    coalescer: Coalescer = field(init=False)
    memory: Memory = field(default_factory=Memory)
    cycle: Cycle[Any] | None = None
    requests: list[Request] = field(default_factory=list)
    look: GuestLook = field(default_factory=GuestLook)
    inputs: Inputs = field(default_factory=Inputs)
    running: tuple[Guest, ...] = ()
    heard_s: float | None = None
    next_pass_s: float | None = None
    awake_s: float = 0.0
    """When the pass loop was last seen to go round."""
    lost_s: float | None = field(default_factory=time.monotonic)
    """Since when there is no connection to libvirt."""
    last: PassRecord | None = None
    last_s: float | None = None
    """When the last pass ended."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.coalescer = Coalescer(window_s=self.config.coalesce_ms / 1000)

    async def run(self) -> ExitCode:
        """Run until told to stop; then end as `on_exit` says."""
        self._open_diary(self.uri)
        linking = asyncio.create_task(self._keep_linked())
        passing = asyncio.create_task(self._keep_passing())
        looking = asyncio.create_task(self._keep_looking())
        writing = asyncio.create_task(self.diary.keep_writing())
        ended = asyncio.create_task(self.stopping.wait())
        await asyncio.wait({linking, passing, looking, writing, ended}, return_when=asyncio.FIRST_COMPLETED)
        linking.cancel()
        self.stopping.set()
        self.wake.set()
        self.seen.set()
        await asyncio.wait({passing, linking, looking})  # a pass that has begun is finished first
        for task in (passing, linking, looking):
            if not task.cancelled():
                task.result()  # neither ends by itself: whatever stopped it is a bug, and is raised
        code = await self._leave()
        self.diary.end()  # last, so that KSM's settings do not wait for a disk
        await writing
        return code

    def offer(self, trigger: Trigger, *, heard_s: float | None = None) -> None:
        """Ask for a pass."""
        self.coalescer = self.coalescer.offer(trigger)
        if self.heard_s is None:
            self.heard_s = time.monotonic() if heard_s is None else heard_s
        self.wake.set()

    def hear(self, event: DomainEvent) -> None:
        """Take a libvirt event, handed over from its thread."""
        self.reporter.event(event)
        self.diary.hear(event)
        self.offer(event.trigger, heard_s=event.heard_s)

    def stop(self) -> None:
        self.stopping.set()

    def is_stuck(self, now_s: float) -> bool:
        """Tell whether due passes have stopped coming; no fault of libvirt explains that, as its calls have a limit."""
        due_s = self.awake_s if self.coalescer.pending else self.next_pass_s
        if self.cycle is None or due_s is None:
            return False
        return now_s > max(due_s, self.awake_s) + self.config.call_timeout_s + STUCK_S

    def install_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGUSR1, self.offer, Trigger.SIGNAL)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    def reload(self) -> ConfigError | None:
        """Read the configuration again; an invalid one is reported and the old one kept. A pass follows either way."""
        try:
            self.config = self.reload_config()
        except ConfigError as error:
            self.reporter.config_rejected(error)
            self.offer(Trigger.SIGNAL)
            return error
        self.reporter.config_reloaded()
        self.coalescer = Coalescer(
            window_s=self.config.coalesce_ms / 1000,
            pending=self.coalescer.pending,
            began_s=self.coalescer.began_s,
        )
        if self.link.host is not None:
            self.cycle = self.make_cycle(self.link.host, self.config, self.memory)
        self._open_diary(self._known_uri)
        self.offer(Trigger.RELOAD)
        return None

    async def handle(self, request: Mapping[str, object]) -> dict[str, object]:
        """Answer one control request."""
        match request.get("op"):
            case "retune":
                dry_run = request.get("dry_run") is True
                return self._other_host(request) or await self._answered_pass(Trigger.RETUNE, dry_run=dry_run)
            case "off":
                return self._other_host(request) or await self._switched(Trigger.OFF)
            case "on":
                return self._other_host(request) or await self._switched(Trigger.ON)
            case "reload":
                return self._reloaded()
            case "status":
                told = {"ok": True, "status": self.standing().as_dict(datetime.now(UTC))}
                return self._other_host(request) or told
            case "history":
                return await self._recalled(recall_history, request)
            case "decisions":
                return await self._recalled(recall_decisions, request)
            case "inputs":
                answered = self.inputs.answer(request, now_s=time.monotonic(), now=datetime.now(UTC))
                return {"ok": True, "inputs": answered}
            case str(other):
                return _failure(f"unknown op {other[:MOST_SHOWN]!r}", ExitCode.USAGE)
            case _:
                return _failure("op is missing, or no text", ExitCode.USAGE)

    def _reloaded(self) -> dict[str, object]:
        """Read the configuration again, and tell what is in force, or the faults."""
        faults = self.reload()
        if faults is not None:
            return _failure(str(faults), faults.exit_code)
        return {"ok": True, "policy": self.config.policy}

    async def _recalled(
        self,
        recall: Callable[[Diary, Mapping[str, object]], Awaitable[dict[str, object]]],
        request: Mapping[str, object],
    ) -> dict[str, object]:
        if (other := self._other_host(request)) is not None:
            return other
        try:
            return await recall(self.diary, request)
        except VirtksmError as error:
            return _failure(str(error), error.exit_code)

    @property
    def _known_uri(self) -> str:
        """The connection's own URI, or what it is to be opened by while there is none."""
        return self.uri if self.link.host is None else self.link.host.uri

    def _open_diary(self, uri: str) -> None:
        if self.make_history is not None and not is_alias(uri):
            self.diary.keep_in(self.make_history(uri, self.config))

    def standing(self) -> Standing:
        """Return what is known at this moment; asks libvirt nothing."""
        now_s = time.monotonic()
        is_here = not is_alias(self._known_uri) and is_this_machine(self._known_uri, self.config)
        return Standing(
            version=__version__,
            uri=self._known_uri,
            policy=self.config.policy,
            now_s=now_s,
            lost_s=self.lost_s,
            waiting=self.calls.waiting,
            error=self.reporter.trouble,
            last=self.last,
            last_s=self.last_s,
            next_s=self._due_s(now_s),
            now=look(self.facts if is_here else None, self.last),
        )

    def _due_s(self, now_s: float) -> float | None:
        """Return when the next pass is due; None without a connection, or if nothing asks for one."""
        waits = [] if self.cycle is None else [self.coalescer.due_s(now_s), self.next_pass_s]
        return min((at_s for at_s in waits if at_s is not None), default=None)

    def _other_uri(self, request: Mapping[str, object]) -> dict[str, object] | None:
        canonical = self.link.host.uri if self.link.host is not None else None
        if request.get("uri") not in (self.uri, canonical):
            return {"ok": False, "other_uri": canonical or self.uri}
        return None

    def _other_host(self, request: Mapping[str, object]) -> dict[str, object] | None:
        """Return the answer to a request that means another host; one that names none means this one."""
        return self._other_uri(request) if "uri" in request else None

    async def _switched(self, trigger: Trigger) -> dict[str, object]:
        """Turn the switch, whether libvirt answers or not, and then run a pass."""
        uri = self._known_uri
        if is_alias(uri):
            return _failure(self.reporter.why_unlinked(), ExitCode.UNREACHABLE)
        switch = self.make_switch(uri, self.config)
        try:
            await asyncio.to_thread(switch.turn_off if trigger is Trigger.OFF else switch.turn_on)
        except VirtksmError as error:
            return _failure(str(error), error.exit_code)
        self.reporter.switched(trigger)
        answer = await self._answered_pass(trigger)
        if not answer["ok"]:
            answer["error"] = f"switched {trigger.value}, but no pass was possible yet: {answer['error']}"
        return answer

    async def _answered_pass(self, trigger: Trigger, *, dry_run: bool = False) -> dict[str, object]:
        if self.link.host is None:
            return _failure(self.reporter.why_unlinked(), ExitCode.UNREACHABLE)
        wish = Request(dry_run=dry_run, answer=asyncio.get_running_loop().create_future())
        self.requests.append(wish)
        if wish.dry_run:
            self.wake.set()
        else:
            self.offer(trigger)
        try:
            record = await wish.answer
        except VirtksmError as error:
            return _failure(str(error), error.exit_code)
        return {"ok": True, "pass": record.as_dict()}

    async def _keep_linked(self) -> None:
        """Hold a connection: open it, and after its end open another, for ever."""
        while True:
            host, lost = await self.link.open(self.uri, self.config, self.hear)
            self.cycle = self.make_cycle(host, self.config, self.memory)
            self.lost_s = None
            self.look.forget()
            self._open_diary(host.uri)
            self.reporter.connected(host.uri, is_local=self.cycle.local is not None)
            self.offer(Trigger.CONNECTED)
            reason = await lost
            self.cycle, self.lost_s = None, time.monotonic()
            self.reporter.disconnected(reason)
            self._give_up_wishes(LibvirtUnreachable(f"libvirt disconnected: {reason}"))
            await self.link.close(self.config.call_timeout_s)

    async def _keep_passing(self) -> None:
        while not self.stopping.is_set():
            await self._wait_until_due()
            cycle, config = self.cycle, self.config  # both before a reload, or both after it
            if self.stopping.is_set() or cycle is None:
                continue
            for wish in [wish for wish in self.requests if wish.dry_run]:
                await self._pass(cycle, config, Occasion(triggers=frozenset({Trigger.RETUNE})), [wish], None)
            now_s = time.monotonic()
            due_s = self.coalescer.due_s(now_s)
            if due_s is not None and due_s <= now_s:
                occasion, self.coalescer = self.coalescer.take(now_s)
                heard_s, self.heard_s = self.heard_s, None
                wishes = [wish for wish in self.requests if not wish.dry_run]
                await self._pass(cycle, config, occasion, wishes, heard_s)
        self._give_up_wishes(VirtksmError("the agent is stopping"))

    async def _keep_looking(self) -> None:
        """Read the XML of guests that passes have seen, a few at a time, between passes."""
        while not self.stopping.is_set():
            host = self.link.host
            if host is None or not self.look.is_due:
                await self._wait_seen()
                continue
            try:
                seen, failures = await self.calls.run(
                    "look at guests", partial(read_guests, host, self.look.next_guests()), self.config.call_timeout_s
                )
            except VirtksmError as error:
                self.reporter.look_failed(error)
                await self._wait_seen()  # the next pass tells whether libvirt answers again
                continue
            for failure in failures:
                self.reporter.look_failed(failure)
            if host is self.link.host:
                self.look.learn(seen)
                self._name_exposed()

    async def _wait_seen(self) -> None:
        """Sleep until a pass has seen guests, or the agent stops."""
        self.seen.clear()
        if not self.stopping.is_set():
            await self.seen.wait()

    def _name_exposed(self) -> None:
        if self.look.is_complete:  # or those not yet read would be named again
            self.reporter.guests_exposed(self.look.exposed(self.running, self.config.private_guests))

    async def _wait_until_due(self) -> None:
        """Sleep until a trigger is due, the timer ends, a dry run is wished for, or the agent stops."""
        while not self.stopping.is_set():
            self.wake.clear()
            self.awake_s = now_s = time.monotonic()
            due_s = self._due_s(now_s)
            if self.cycle is not None and any(wish.dry_run for wish in self.requests):
                return
            if due_s is not None and due_s <= now_s:
                if self.next_pass_s is not None and self.next_pass_s <= now_s:
                    self.next_pass_s = None
                    self.offer(Trigger.TIMER)
                return
            try:
                await asyncio.wait_for(self.wake.wait(), None if due_s is None else due_s - now_s)
            except TimeoutError:
                continue

    async def _pass(
        self, cycle: Cycle[Any], config: Config, occasion: Occasion, wishes: list[Request], heard_s: float | None
    ) -> None:
        self.awake_s = time.monotonic()
        self.requests = [wish for wish in self.requests if wish not in wishes]
        dry_run = any(wish.dry_run for wish in wishes)
        try:
            record = await self.calls.run(
                "pass", lambda: cycle.run(occasion, dry_run=dry_run), self.config.call_timeout_s
            )
        except VirtksmError as error:
            self._fail(error, occasion, wishes)
            return
        record = replace(record, exposed=self.look.exposed(record.snapshot.guests, self.config.private_guests))
        if not dry_run:
            ended_s = time.monotonic()
            self.last, self.last_s = record, ended_s
            self.inputs.keep(record, config, now_s=ended_s, at_s=time.time())
            if record.decision.next_pass_s is None:
                self.next_pass_s = None
            else:
                self.next_pass_s = ended_s + record.decision.next_pass_s
            self.reporter.passed(record, heard_s, ended_s)
            self.diary.take(record)
            self.running = record.snapshot.guests
            self.look.see(self.running, afresh=occasion.is_explicit)
            self._name_exposed()
            self.seen.set()
        for wish in wishes:
            if not wish.answer.done():
                wish.answer.set_result(record)

    def _give_up_wishes(self, error: VirtksmError) -> None:
        wishes, self.requests = self.requests, []
        for wish in wishes:
            if not wish.answer.done():
                wish.answer.set_exception(error)

    def _fail(self, error: VirtksmError, occasion: Occasion, wishes: list[Request]) -> None:
        """Report a failed pass and come back later; after a lost connection, connecting brings a pass of its own."""
        self.reporter.pass_failed(error, occasion)
        self.next_pass_s = time.monotonic() + RETRY_S
        for wish in wishes:
            if not wish.answer.done():
                wish.answer.set_exception(error)

    async def _leave(self) -> ExitCode:
        """Do what `on_exit` says, and close the connection."""
        self.reporter.stopping()
        code = ExitCode.DONE
        cycle = self.cycle
        has_nothing_to_leave = cycle is None and not self.memory.tenure_began
        if self.config.on_exit != "leave" and not has_nothing_to_leave:
            try:
                if cycle is None:
                    raise LibvirtUnreachable("not connected to libvirt", remedy="run `virtksm restore` once it answers")
                work: Callable[[], RestoreRecord] = cycle.restore if self.config.on_exit == "restore" else cycle.park
                record = await self.calls.run(self.config.on_exit, work, self.config.call_timeout_s)
                self.reporter.left(self.config.on_exit, record)
                code = ExitCode.REFUSED if record.refusals else code
            except VirtksmError as error:
                self.reporter.leaving_failed(error)
                code = ExitCode(error.exit_code)
        await self.link.close(self.config.call_timeout_s)
        return code


def _failure(message: str, code: ExitCode) -> dict[str, object]:
    return {"ok": False, "error": message, "exit_code": int(code)}
