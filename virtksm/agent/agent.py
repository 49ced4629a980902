"""The agent's life cycle: it starts its parts, reads its configuration again, and leaves KSM as `on_exit` says.

One asyncio loop owns all state. Calls that may block (libvirt, a disk, the name service) run beside the loop with a
limit (`calls`). This is an outermost layer: an unforeseen exception costs the step in which it came, and is logged
with its traceback; the agent goes on, and `on_exit` happens. Only a configuration that never was valid, or a second
agent, ends the agent.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from typing import Any

from virtksm.agent.calls import wait_set
from virtksm.agent.configuration import Configuration, FreshConfig
from virtksm.agent.connection import AgentConnection
from virtksm.agent.dirty_rates import DirtyRates
from virtksm.agent.guest_switches import GuestSwitches, ThisHost
from virtksm.agent.guest_xml import GuestReader
from virtksm.agent.history import HistoryWriter
from virtksm.agent.listeners import Listeners
from virtksm.agent.log import Reporter
from virtksm.agent.merged_memory import MergedMemory
from virtksm.agent.passes import RETRY_S, Passes
from virtksm.agent.trace_buffer import TraceBuffer
from virtksm.config.schema import Config
from virtksm.errors import ConfigError, ExitCode, LibvirtUnreachable, VirtksmError
from virtksm.history.samples import History
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.host.libvirt_monitor import LibvirtMonitor
from virtksm.model.decision import Trigger
from virtksm.model.report import RestoreReport
from virtksm.tuning.cycle import Cycle, Tenure
from virtksm.uri import is_alias
from virtksm.wiring import key_of


@dataclass(slots=True, kw_only=True)
class Agent:
    """The parts and what they have in common: passes and the connection share one queue of libvirt calls.

    `make_cycle` builds a pass's parts over a new connection from the current configuration. `make_history` gives the
    history of the host behind a URI; without it, the history ends with the agent. `make_here` gives what switching
    guests needs of this machine; without it, and elsewhere, none is switched.
    """

    configuration: Configuration
    connection: AgentConnection
    reporter: Reporter
    history_writer: HistoryWriter
    make_cycle: Callable[[LibvirtHost, Config, Tenure], Cycle[Any]]
    make_history: Callable[[str, Config], History] | None = None
    make_here: Callable[[str, Config], ThisHost | None] = lambda _uri, _config: None
    tenure: Tenure = field(default_factory=Tenure)
    history_key: str | None = None
    """The host whose history is written."""
    retry_s: InitVar[float] = RETRY_S
    listeners: Listeners = field(init=False)
    passes: Passes = field(init=False)

    def __post_init__(self, retry_s: float) -> None:
        calls = self.connection.calls
        notes = self.tenure.notes
        guests = GuestReader(lambda: self.connection.host, self.configuration, self.reporter, notes)
        switches = GuestSwitches(
            reader=guests,
            source=lambda: None if self.connection.host is None else LibvirtMonitor(self.connection.host),
            switched=self.history_writer.note,
        )
        guests.learned = switches.see
        rates = DirtyRates(
            source=lambda: self.connection.host,
            limit_s=lambda: self.configuration.in_force.call_timeout_s,
            rates=notes.dirty_kib_per_s,
            failing=self.reporter.dirty_rates_unknown,
        )
        merged = MergedMemory(notes.merged, self.reporter.rewriting_unknown)
        self.listeners = Listeners(self.reporter, self.history_writer, TraceBuffer(), guests, switches, rates, merged)
        config = self.configuration.in_force
        self.passes = Passes(config, calls, self.reporter, self.listeners, retry_s=retry_s)
        switches.changed = self.passes.look_again

    async def run(self) -> ExitCode:
        """Run until the passes are stopped; then end as `on_exit` says."""
        self._open_history()
        beside_passes = [
            self._start("connection", self._hold_connection),
            self._start("reload", self._reload),
            self._start("guest XML", self.listeners.guests.read_when_due),
            self._start("guests' switches", self.listeners.switches.switch_when_due),
            self._start("merged memory", self.listeners.merged.read_when_wanted),
            self._start("dirty rates", self.listeners.dirty_rates.measure_when_due),
        ]
        passes = self._start("passes", self.passes.run_when_due)
        history = self._start("history", self.history_writer.keep_writing)
        await self.passes.stopping.wait()
        for task in beside_passes:
            task.cancel()
        # A pass that has begun is finished first; a guest that is being asked for anything is not waited for.
        await asyncio.wait({passes, *beside_passes})
        self.passes.fail_requests(VirtksmError("the agent is stopping"))
        code = await self._leave()
        self.history_writer.end()  # last, so that KSM's settings do not wait for a disk
        await history
        return code

    def _start(self, name: str, step: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Take a step again and again, in a task of its own, until the agent stops; no exception ends it."""

        async def repeat() -> None:
            while not self.passes.stopping.is_set():
                try:
                    await step()
                except Exception as error:  # noqa: BLE001  # the outermost layer
                    self.reporter.task_crashed(name, error)
                    await wait_set(self.passes.stopping, self.passes.retry_s)

        return asyncio.create_task(repeat(), name=name)

    def install_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_signal_handler(signal.SIGTERM, self.passes.stop)
        loop.add_signal_handler(signal.SIGINT, self.passes.stop)
        loop.add_signal_handler(signal.SIGUSR1, self.passes.offer, Trigger.SIGNAL)
        loop.add_signal_handler(signal.SIGHUP, self.configuration.hung_up.set)

    async def _reload(self) -> None:
        await self.configuration.hung_up.wait()
        self.configuration.hung_up.clear()
        await self.reload()

    async def reload(self) -> ConfigError | None:
        """Read the configuration again; an invalid one is reported and the old one kept. A pass follows either way."""
        async with self.configuration.lock:
            self.reporter.tally.config_is_read = False  # until it is
            try:
                before, cycle = self.configuration.in_force, self.passes.cycle
                self._put_in_force(await self.configuration.calls.run("reading it", self.configuration.read))
            except ConfigError as error:
                self.reporter.config_rejected(error)
                self.passes.offer(Trigger.SIGNAL)
                return error
            if self.configuration.in_force.only_observes and not before.only_observes:
                await self._leave_settings(before, cycle)
            self.reporter.config_reloaded()
            self.passes.offer(Trigger.RELOAD)
            return None

    def _put_in_force(self, fresh: FreshConfig) -> None:
        """Follow a configuration from now on: all of it or, where this raises, nothing of it."""
        host = self.connection.host
        cycle = None if host is None else self.make_cycle(host, fresh.config, self.tenure)
        self.configuration.follow(fresh)
        self.configuration.in_force = fresh.config
        self.passes.follow(fresh.config, cycle)
        self._switch_here(None if host is None else self.make_here(host.uri, fresh.config))
        self.history_key = None  # a reload opens the file again: it may have been repaired
        self._open_history()

    def _open_history(self) -> None:
        """Write the history of the host that is known now, if the host has changed."""
        uri, config = self.connection.known_uri, self.configuration.in_force
        if self.make_history is None or is_alias(uri):
            return
        key = key_of(uri, config)
        if key == self.history_key:
            return
        try:
            self.history_writer.write_to(self.make_history(uri, config))
            self.history_key = key
        except Exception as error:  # noqa: BLE001  # without SQLite, say: the agent goes on without a history
            self.reporter.task_crashed("opening the history", error)

    async def _hold_connection(self) -> None:
        host, lost = await self.connection.open(lambda: self.configuration.in_force, self.passes.heard)
        try:
            self._use_connection(host)
            reason = await lost
        except Exception:
            await self._drop_connection("internal error")
            raise
        await self._drop_connection(reason)

    def _use_connection(self, host: LibvirtHost) -> None:
        config = self.configuration.in_force
        cycle = self.make_cycle(host, config, self.tenure)
        loop = asyncio.get_running_loop()

        def look_again() -> None:
            with suppress(RuntimeError):  # the loop is closed: the agent has ended
                loop.call_soon_threadsafe(self.passes.look_again)

        host.came_late = look_again
        self.passes.follow(config, cycle)
        self.listeners.guests.forget()
        self.listeners.dirty_rates.forget()
        self._switch_here(self.make_here(host.uri, config))
        self._open_history()
        self.reporter.connected(host.uri, self.connection.unheard, is_local=cycle.local is not None)
        self.passes.offer(Trigger.CONNECTED)

    def _switch_here(self, here: ThisHost | None) -> None:
        """Switch guests of this machine, and read them, or none where the connection leads to another."""
        self.listeners.switches.connect(here)
        self.listeners.merged.connect(None if here is None else here.make_facts())

    async def _drop_connection(self, reason: str) -> None:
        self.reporter.disconnected(reason)
        self.passes.disconnect(LibvirtUnreachable(f"libvirt disconnected: {reason}"))
        await self.connection.close(self.configuration.in_force.call_timeout_s)

    async def _leave(self) -> ExitCode:
        """Do what `on_exit` says, and close the connection, also where one of the two fails."""
        self.reporter.stopping()
        code = await self._leave_settings(self.configuration.in_force, self.passes.cycle)
        try:
            await self.connection.close(self.configuration.in_force.call_timeout_s)
        except Exception as error:  # noqa: BLE001  # likewise
            self.reporter.task_crashed("closing the connection", error)
        return code

    async def _leave_settings(self, config: Config, cycle: Cycle[Any] | None) -> ExitCode:
        """Do what a configuration's `on_exit` says, and report how that failed."""
        has_nothing_to_leave = config.only_observes or (cycle is None and not self.tenure.has_begun)
        if config.on_exit == "leave" or has_nothing_to_leave:
            return ExitCode.DONE
        if cycle is None:
            remedy = "run `virtksm restore` once it answers"
            self.reporter.leaving_failed(LibvirtUnreachable("not connected to libvirt", remedy=remedy))
            return ExitCode.UNREACHABLE
        try:
            work: Callable[[], RestoreReport] = cycle.restore if config.on_exit == "restore" else cycle.idle
            report = await self.passes.calls.run(config.on_exit, work, config.call_timeout_s)
            self.reporter.left(config.on_exit, report)
        except VirtksmError as error:
            self.reporter.leaving_failed(error)
            return ExitCode(error.exit_code)
        except Exception as error:  # noqa: BLE001  # the outermost layer
            self.reporter.task_crashed("leaving", error)
            return ExitCode.FAILED
        return report.exit_code
