"""The host agent: hears what happens to guests, and runs a pass for it.

One asyncio loop owns all state. Triggers come from libvirt's event thread, the poke FIFO, signals, the control socket
and the policy's timer and meet in the coalescer; the pass loop takes them out, one pass at a time. Whatever may block
(libvirt, a disk, the name service) runs beside the loop with a limit (`blocking`). A failed pass is reported once per
change and tried again later. This is an outermost layer: an exception that nobody thought of costs the pass, the
request or the step in which it came, and is logged with its traceback; the agent goes on, and `on_exit` happens. Only
a configuration that never was valid, or a second agent, ends the agent.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from virtksm import __version__
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.coalesce import Coalescer
from virtksm.agent.connection import Link
from virtksm.agent.guest_xml import GuestLook
from virtksm.agent.history import DISK_LIMIT_S, Diary, disk_hangs
from virtksm.agent.log import Reporter
from virtksm.agent.news import News
from virtksm.agent.recall import recall_decisions, recall_history
from virtksm.agent.status import Standing, look
from virtksm.agent.trace_buffer import Inputs
from virtksm.config.schema import Config
from virtksm.errors import ConfigError, ConfigFault, ExitCode, LibvirtUnreachable, VirtksmError
from virtksm.guests.ports import Descriptions
from virtksm.guests.xml import Seen, read_guests
from virtksm.history.samples import History
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Occasion, Trigger
from virtksm.model.report import PassRecord, RestoreRecord
from virtksm.model.snapshot import Guest
from virtksm.paths import host_key
from virtksm.tuning.cycle import Cycle, Memory
from virtksm.tuning.ports import LocalFacts, Switch
from virtksm.uri import is_alias
from virtksm.wiring import is_this_machine

RETRY_S = 15.0
"""When to try again after a pass that failed for another reason than a lost connection, or a step that crashed."""
CONFIG_LIMIT_S = 10.0
"""For reading the configuration, and asking the name service for its group."""
LOOK_S = 0.05
"""No further guest's XML is read in a look that has taken so long: a pass may be waiting for it."""
STUCK_S = 30.0
"""A pass that is due for so much longer than a call may take will never come: the pass loop is stuck."""
MOST_SHOWN = 60
"""Characters of a request that an answer repeats."""


@dataclass(slots=True)
class Request:
    """A control client's wish for a pass, and where its answer goes."""

    dry_run: bool
    answer: asyncio.Future[PassRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshConfig:
    """A configuration that was read just now, with the number of its `status_group`, None without one."""

    config: Config
    status_gid: int | None = None


def config_hangs(message: str) -> ConfigError:
    """Return the error for a configuration that cannot be read in time."""
    remedy = "its disk, or the name service (nsswitch.conf: SSSD, LDAP), does not answer: see its log"
    return ConfigError([ConfigFault(file="the configuration", key="", problem=message, remedy=remedy)])


@dataclass(slots=True)
class Agent:
    """The agent's state. `make_cycle` builds a pass's parts over a new connection from the current configuration.

    `make_switch` gives the switch of the host behind a URI, also while there is no connection. `read_config` blocks and
    raises ConfigError; `follow_config` has all but the agent's own do as a new configuration says, or raises
    ConfigError and changes nothing.
    """

    uri: str
    config: Config
    link: Link
    calls: BlockingCalls
    reporter: Reporter
    make_cycle: Callable[[LibvirtHost, Config, Memory], Cycle[Any]]
    make_switch: Callable[[str, Config], Switch]
    read_config: Callable[[], FreshConfig]
    follow_config: Callable[[FreshConfig], None] = lambda _fresh: None
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
    news: News = field(default_factory=News)
    config_calls: BlockingCalls = field(default_factory=lambda: BlockingCalls(config_hangs))
    switch_calls: BlockingCalls = field(default_factory=lambda: BlockingCalls(disk_hangs))
    reloading: asyncio.Lock = field(default_factory=asyncio.Lock)
    config_limit_s: float = CONFIG_LIMIT_S
    disk_limit_s: float = DISK_LIMIT_S
    look_s: float = LOOK_S
    retry_s: float = RETRY_S
    history_key: str | None = None
    """Whose history the diary keeps."""
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
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """A SIGHUP has come that no reload has answered yet."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.coalescer = Coalescer(window_s=self.config.coalesce_ms / 1000)

    async def run(self) -> ExitCode:
        """Run until told to stop; then end as `on_exit` says."""
        self._open_diary(self.uri)
        linking, reloading = self._start("linking", self._hold_link), self._start("reloading", self._reload_when_told)
        passing, looking = self._start("passing", self._pass_when_due), self._start("looking", self._look_when_due)
        writing = self._start("writing", self.diary.keep_writing)
        await self.stopping.wait()
        linking.cancel()
        reloading.cancel()
        self.wake.set()
        self.seen.set()
        await asyncio.wait({passing, linking, looking, reloading})  # a pass that has begun is finished first
        self._give_up_wishes(VirtksmError("the agent is stopping"))
        code = await self._leave()
        self.diary.end()  # last, so that KSM's settings do not wait for a disk
        await writing
        return code

    def _start(self, name: str, step: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Take a step again and again, in a task of its own, until the agent stops; no exception ends it."""

        async def keep() -> None:
            while not self.stopping.is_set():
                try:
                    await step()
                except Exception as error:  # noqa: BLE001  # the outermost layer
                    self.reporter.task_crashed(name, error)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.stopping.wait(), self.retry_s)

        return asyncio.create_task(keep(), name=name)

    def offer(self, trigger: Trigger, *, heard_s: float | None = None) -> None:
        """Ask for a pass."""
        self.coalescer = self.coalescer.offer(trigger)
        if self.heard_s is None:
            self.heard_s = time.monotonic() if heard_s is None else heard_s
        self.wake.set()

    def hear(self, event: DomainEvent) -> None:
        """Take a libvirt event, handed over from its thread."""
        self.offer(event.trigger, heard_s=event.heard_s)  # first: nothing that is only told may delay the pass
        try:
            if event.trigger is Trigger.MEMORY_DEVICE and self.cycle is not None:
                self.cycle.hypervisor.forget_max(event.uuid)
            self.reporter.event(event)
            self.diary.hear(event)
        except Exception as error:  # noqa: BLE001  # the outermost layer of libvirt's events
            self.reporter.task_crashed("hearing an event", error)

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
        loop.add_signal_handler(signal.SIGHUP, self.hung_up.set)

    async def _reload_when_told(self) -> None:
        await self.hung_up.wait()
        self.hung_up.clear()
        await self.reload()

    async def reload(self) -> ConfigError | None:
        """Read the configuration again; an invalid one is reported and the old one kept. A pass follows either way."""
        async with self.reloading:
            self.reporter.tally.config_is_read = False  # until it is
            try:
                read = self.config_calls.run("reading it", self.read_config, self.config_limit_s)
                self._put_in_force(await read)
            except ConfigError as error:
                self.reporter.config_rejected(error)
                self.offer(Trigger.SIGNAL)
                return error
            self.reporter.config_reloaded()
            self.offer(Trigger.RELOAD)
            return None

    def _put_in_force(self, fresh: FreshConfig) -> None:
        """Do as a configuration says from now on, in everything or, where it raises, in nothing."""
        host = self.link.host
        cycle = None if host is None else self.make_cycle(host, fresh.config, self.memory)
        self.follow_config(fresh)
        self.config, self.cycle = fresh.config, cycle
        self.coalescer = replace(self.coalescer, window_s=self.config.coalesce_ms / 1000)
        self.history_key = None  # a reload looks at the file again: somebody may have mended it
        self._open_diary(self._known_uri)

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
                return await self._reloaded()
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

    async def _reloaded(self) -> dict[str, object]:
        """Read the configuration again, and tell what is in force, or the faults."""
        faults = await self.reload()
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
        """Keep what is remembered of the host behind `uri` from now on, if that is another one than so far."""
        if self.make_history is None or is_alias(uri):
            return
        key = host_key(uri, local=is_this_machine(uri, self.config))
        if key == self.history_key:
            return
        try:
            self.diary.keep_in(self.make_history(uri, self.config))
            self.history_key = key
        except Exception as error:  # noqa: BLE001  # without SQLite, say: the agent goes on without a history
            self.reporter.task_crashed("opening the history", error)

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
            turn = switch.turn_off if trigger is Trigger.OFF else switch.turn_on
            await self.switch_calls.run(f"switch {trigger.value}", turn, self.disk_limit_s)
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
        if self.stopping.is_set():
            return _failure("the agent is stopping", ExitCode.FAILED)
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

    async def _hold_link(self) -> None:
        """Open a connection, and hold it until it is lost."""
        host, lost = await self.link.open(self.uri, lambda: self.config, self.hear)
        try:
            self._take_up(host)
            reason = await lost
        except Exception:
            await self._let_go("internal error")
            raise
        await self._let_go(reason)

    def _take_up(self, host: LibvirtHost) -> None:
        self.cycle = self.make_cycle(host, self.config, self.memory)
        self.lost_s = None
        self.look.forget()
        self._open_diary(host.uri)
        self.reporter.connected(host.uri, is_local=self.cycle.local is not None)
        self.offer(Trigger.CONNECTED)

    async def _let_go(self, reason: str) -> None:
        self.cycle, self.lost_s = None, time.monotonic()
        self.reporter.disconnected(reason)
        self._give_up_wishes(LibvirtUnreachable(f"libvirt disconnected: {reason}"))
        await self.link.close(self.config.call_timeout_s)

    async def _pass_when_due(self) -> None:
        """Wait until a pass is due, and run it, after the dry runs that are wished for."""
        await self._wait_until_due()
        cycle, config = self.cycle, self.config  # both before a reload, or both after it
        if self.stopping.is_set() or cycle is None:
            return
        for wish in [wish for wish in self.requests if wish.dry_run]:
            await self._pass(cycle, config, Occasion(triggers=frozenset({Trigger.RETUNE})), [wish], None)
        now_s = time.monotonic()
        due_s = self.coalescer.due_s(now_s)
        if due_s is not None and due_s <= now_s:
            occasion, self.coalescer = self.coalescer.take(now_s)
            heard_s, self.heard_s = self.heard_s, None
            wishes = [wish for wish in self.requests if not wish.dry_run]
            await self._pass(cycle, config, occasion, wishes, heard_s)

    async def _look_when_due(self) -> None:
        """Read the XML of guests that passes have seen, a few at a time, between passes."""
        host = self.link.host
        if host is None or not self.look.is_due:
            await self._wait_seen()
            return
        guests = self.look.next_guests()
        try:
            seen, failures = await self.calls.run(
                "look at guests", partial(_read_a_while, host, guests, self.look_s), self.config.call_timeout_s
            )
        except VirtksmError as error:
            self.look.postpone(guests)  # or whichever of them it is would keep the others from being read
            self.reporter.look_failed(error)
            await self._wait_seen()  # the next pass tells whether libvirt answers again
            return
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
        failure = VirtksmError("internal error", remedy="see the agent's log")
        try:
            record = await self.calls.run(
                "pass", lambda: cycle.run(occasion, dry_run=dry_run), self.config.call_timeout_s
            )
            record = replace(record, exposed=self.look.exposed(record.snapshot.guests, self.config.private_guests))
            if not dry_run:
                self._take_note(record, config, occasion, heard_s)
            _answer(wishes, record)
        except VirtksmError as error:
            failure = error
            if not dry_run:
                self.reporter.pass_failed(error, occasion)
        except Exception as error:  # noqa: BLE001  # the outermost layer: it costs this pass alone
            self.reporter.pass_crashed(error, occasion, dry_run=dry_run)
        else:
            return
        finally:
            _disappoint(wishes, failure)
        if not dry_run:  # after a lost connection, connecting brings a pass of its own
            self.next_pass_s = time.monotonic() + self.retry_s

    def _take_note(self, record: PassRecord, config: Config, occasion: Occasion, heard_s: float | None) -> None:
        """Keep and tell what a pass has done that was no dry run."""
        ended_s = time.monotonic()
        self.last, self.last_s = record, ended_s
        next_s = record.decision.next_pass_s
        self.next_pass_s = None if next_s is None else ended_s + next_s
        self.inputs.keep(record, config, now_s=ended_s, at_s=time.time())
        is_news = self.news.is_news(record, ended_s)
        self.reporter.passed(record, heard_s, ended_s, is_news=is_news)
        self.diary.take(record, is_news=is_news)
        self.running = record.snapshot.guests
        self.look.see(self.running, afresh=occasion.is_explicit)
        self._name_exposed()
        self.seen.set()

    def _give_up_wishes(self, error: VirtksmError) -> None:
        wishes, self.requests = self.requests, []
        _disappoint(wishes, error)

    async def _leave(self) -> ExitCode:
        """Do what `on_exit` says, and close the connection; whatever goes wrong, the rest of it is done."""
        self.reporter.stopping()
        code = ExitCode.DONE
        try:
            code = await self._do_on_exit()
        except VirtksmError as error:
            self.reporter.leaving_failed(error)
            code = ExitCode(error.exit_code)
        except Exception as error:  # noqa: BLE001  # the outermost layer
            self.reporter.task_crashed("leaving", error)
            code = ExitCode.FAILED
        try:
            await self.link.close(self.config.call_timeout_s)
        except Exception as error:  # noqa: BLE001  # likewise
            self.reporter.task_crashed("closing the connection", error)
        return code

    async def _do_on_exit(self) -> ExitCode:
        cycle, on_exit = self.cycle, self.config.on_exit
        has_nothing_to_leave = cycle is None and not self.memory.tenure_began
        if on_exit == "leave" or has_nothing_to_leave:
            return ExitCode.DONE
        if cycle is None:
            raise LibvirtUnreachable("not connected to libvirt", remedy="run `virtksm restore` once it answers")
        work: Callable[[], RestoreRecord] = cycle.restore if on_exit == "restore" else cycle.park
        record = await self.calls.run(on_exit, work, self.config.call_timeout_s)
        self.reporter.left(on_exit, record)
        return record.exit_code


def _read_a_while(source: Descriptions, guests: tuple[Guest, ...], look_s: float) -> Seen:
    """Read guests' XML, no further one once `look_s` is over. Blocks."""
    end_s = time.monotonic() + look_s
    return read_guests(source, guests, is_over=lambda: time.monotonic() >= end_s)


def _answer(wishes: list[Request], record: PassRecord) -> None:
    for wish in wishes:
        if not wish.answer.done():
            wish.answer.set_result(record)


def _disappoint(wishes: list[Request], error: VirtksmError) -> None:
    """Answer what has no answer yet by an error."""
    for wish in wishes:
        if not wish.answer.done():
            wish.answer.set_exception(error)


def _failure(message: str, code: ExitCode) -> dict[str, object]:
    return {"ok": False, "error": message, "exit_code": int(code)}
