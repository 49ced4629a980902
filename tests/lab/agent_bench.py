"""An agent over fakes: the parts of production, and everything around them."""

import asyncio
import io
import mmap
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.fakes import (
    BUSY,
    FakeClock,
    FakeFacts,
    FakeHistory,
    FakeHypervisor,
    FakeStore,
    FakeSwitch,
    TargetPolicy,
    fake_cycle,
)
from tests.lab.hang import HANG_S
from virtksm.agent.agent import Agent
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.configuration import Configuration, FreshConfig
from virtksm.agent.connection import AgentConnection, Opened
from virtksm.agent.dirty_rates import DirtyRates
from virtksm.agent.guest_switches import GuestSwitches
from virtksm.agent.guest_xml import GuestReader
from virtksm.agent.history import HistoryWriter
from virtksm.agent.listeners import Listeners
from virtksm.agent.log import Reporter
from virtksm.agent.merged_memory import MergedMemory
from virtksm.agent.passes import Passes
from virtksm.agent.requests import Requests
from virtksm.agent.trace_buffer import TraceBuffer
from virtksm.agent.zero_pages import ZeroPages
from virtksm.config.schema import Config
from virtksm.errors import ExitCode
from virtksm.host.libvirt_events import DomainEvent
from virtksm.host.systemd import Notifier
from virtksm.log_setup import configure
from virtksm.model.decision import Trigger
from virtksm.tuning.cycle import Cycle
from virtksm.tuning.ports import Switch
from virtksm.tuning.sense import GuestNotes

URI = "qemu:///system"


def unchanging(config: Config | None = None) -> Configuration:
    """Return a configuration that every reload finds the same."""
    fresh = FreshConfig(config=config or Config())
    return Configuration(fresh.config, lambda: fresh)


class FakeZeroPages(ZeroPages):
    """Takes no memory, and leaves this process its name."""

    def _take(self) -> None:
        self._held = mmap.mmap(-1, mmap.PAGESIZE)


def listeners_of(config: Config, reporter: Reporter, history_writer: HistoryWriter, notes: GuestNotes) -> Listeners:
    """Return all that hears of an agent's passes, without a connection; it notes what it learns in `notes`."""
    reader = GuestReader(lambda: None, unchanging(config), reporter, notes)
    switches = GuestSwitches(reader=reader, source=lambda: None)
    reader.learned = switches.see
    rates = DirtyRates(lambda: None, lambda: HANG_S, notes.dirty_kib_per_s, reporter.dirty_rates_unknown)
    merged = MergedMemory(notes.merged, reporter.rewriting_unknown)
    return Listeners(reporter, history_writer, TraceBuffer(), reader, switches, rates, merged, FakeZeroPages())


def requests_without_libvirt(switch: Switch, uri: str = URI) -> Requests:
    """Build what answers for an agent that has not begun: it has no connection, and asks for none."""
    reporter = Reporter(Notifier({}))
    agent = Agent(
        configuration=unchanging(),
        connection=AgentConnection(uri, BlockingCalls(), reporter.connect_failed),
        reporter=reporter,
        history_writer=HistoryWriter(),
        make_cycle=lambda *_: pytest.fail("there is no connection"),
    )
    return Requests(agent=agent, make_switch=lambda _uri, _config: switch, facts=None)


class FakeConnection(AgentConnection):
    """One that is there at once, to a fake, and stays so until it is told that it is lost."""

    def __init__(self, host: FakeHypervisor) -> None:
        super().__init__(URI, BlockingCalls(), lambda _error, _wait_s: None)
        self._fake: Any = host
        self.lost: asyncio.Future[str] | None = None
        self.config: Callable[[], Config] | None = None

    async def open(self, config: Callable[[], Config], heard: Callable[[DomainEvent], None]) -> Opened:
        self.lost = asyncio.get_running_loop().create_future()
        self.config = config
        self.host, self.lost_s = self._fake, None
        return self._fake, self.lost

    async def close(self, limit_s: float) -> None:
        self.host = None


@dataclass
class Bench:
    """An agent and everything around it."""

    config: Config = field(default_factory=lambda: Config(coalesce_ms=0))
    hypervisor: FakeHypervisor = field(default_factory=FakeHypervisor)
    switch: FakeSwitch = field(default_factory=FakeSwitch)
    policy: TargetPolicy = field(default_factory=lambda: TargetPolicy(target=BUSY, next_pass_s=None))
    store: FakeStore = field(default_factory=FakeStore)
    facts: FakeFacts | None = field(default_factory=FakeFacts)
    clock: FakeClock = field(default_factory=FakeClock)
    history: FakeHistory | None = None
    connection: AgentConnection | None = None
    """None: one to `hypervisor`, which is there until it is lost (`lose`)."""
    notifier: Notifier = field(default_factory=lambda: Notifier({}))
    said: list[dict[str, Any]] = field(default_factory=list)
    disk_limit_s: float = HANG_S
    histories: int = 0
    code: ExitCode | None = None
    cycle_config: Config | None = None
    agent: Agent = field(init=False)
    requests: Requests = field(init=False)

    @property
    def passes(self) -> Passes:
        return self.agent.passes

    def take(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        self.said.append(dict(event))
        return ""

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.said if event["event"] == name]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the agent from its first pass on, and to its end."""
        configure("debug", "json", stream=io.StringIO(), renderers=[self.take])
        reporter = Reporter(self.notifier)

        def make_cycle(_host: object, config: Config, _memory: object) -> Cycle[int]:
            self.cycle_config = config
            return fake_cycle(
                hypervisor=self.hypervisor,
                local=self.facts,
                policy=self.policy,
                store=self.store,
                switch=self.switch,
                clock=self.clock,
                tenure=self.agent.tenure,
            )

        self.agent = Agent(
            configuration=Configuration(self.config, lambda: FreshConfig(config=self.config)),
            connection=self.connection or FakeConnection(self.hypervisor),
            reporter=reporter,
            make_cycle=make_cycle,
            make_history=None if self.history is None else self.make_history,
            history_writer=HistoryWriter(
                reporter.history_written, reporter.history_failed, write_s=0.001, disk_limit_s=self.disk_limit_s
            ),
            retry_s=0.001,
        )
        self.requests = Requests(agent=self.agent, make_switch=lambda _uri, _config: self.switch, facts=self.facts)
        agents = asyncio.create_task(self.agent.run())
        await self.until(lambda: self.events("pass_completed") != [])
        async with asyncio.timeout(HANG_S):
            yield
        self.agent.passes.stop()
        self.code = await asyncio.wait_for(agents, HANG_S)

    def make_history(self, _uri: str, _config: Config) -> FakeHistory:
        assert self.history is not None
        self.histories += 1
        return self.history

    async def lose(self) -> None:
        """Lose the connection, and wait until the agent knows: from then on it has none or the next."""
        before, connection = len(self.events("libvirt_disconnected")), self.agent.connection
        assert isinstance(connection, FakeConnection)
        await self.until(lambda: connection.lost is not None and not connection.lost.done())
        assert connection.lost is not None
        connection.lost.set_result("test")
        await self.until(lambda: len(self.events("libvirt_disconnected")) > before)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_S):
            while not condition():  # noqa: ASYNC110  # the world is fakes and a log, which set no event
                await asyncio.sleep(0.001)

    async def ask(self, op: str) -> dict[str, Any]:
        return await self.request({"op": op, "uri": URI})

    async def request(self, request: dict[str, object]) -> dict[str, Any]:
        return await self.requests.handle(request)

    async def pass_for(self, trigger: Trigger) -> dict[str, Any]:
        before = len(self.events("pass_completed"))

        def answered() -> list[dict[str, Any]]:
            return [one for one in self.events("pass_completed")[before:] if trigger.value in one["triggers"]]

        self.passes.offer(trigger)
        await self.until(lambda: answered() != [])
        return answered()[-1]

    async def looked(self) -> None:
        guests = self.agent.listeners.guests
        await self.until(lambda: guests.running is not None and not guests.due)
