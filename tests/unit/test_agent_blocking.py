"""The agent while something hangs that it needs (name service, disk, systemd): passes go on, requests are answered."""

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import pytest

from tests.fakes import FakeHistory, FakeHypervisor, FakeSwitch
from tests.lab.agent_bench import Bench, FakeConnection
from tests.lab.hang import HANG_S
from tests.lab.samples import guest
from virtksm.agent.configuration import FreshConfig
from virtksm.agent.main import feed_watchdog
from virtksm.config.schema import Config, keys_of
from virtksm.errors import ConfigError, ConfigFault, ExitCode
from virtksm.host.bounded import Waiting
from virtksm.host.libvirt_events import EventLoop
from virtksm.host.systemd import Notifier
from virtksm.model.decision import Trigger

SHORT_S = 0.02


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Lend what hanging calls wait for; it is set at the end."""
    event = threading.Event()
    yield event
    event.set()


@dataclass
class HangingSwitch(FakeSwitch):
    """A switch on a disk that hangs."""

    released: threading.Event = field(default_factory=threading.Event)

    def turn_off(self) -> None:
        self.released.wait(HANG_S)
        super().turn_off()


async def lives(bench: Bench) -> None:
    """Hold it to running passes, and to answering."""
    await bench.pass_for(Trigger.STARTED)
    assert (await bench.ask("retune"))["ok"] is True
    assert (await bench.ask("status"))["ok"] is True


def hanging_read(released: threading.Event) -> Callable[[], FreshConfig]:
    def read() -> FreshConfig:
        released.wait(HANG_S)
        return FreshConfig(config=Config(coalesce_ms=1))

    return read


async def test_a_name_service_that_hangs_costs_the_reload_alone(bench: Bench, released: threading.Event) -> None:
    async with bench.running():
        bench.agent.configuration.read = hanging_read(released)
        bench.agent.configuration.hung_up.set()  # as SIGHUP does
        await bench.until(lambda: bench.agent.configuration.calls.waiting is not None)
        await lives(bench)
    assert bench.code is ExitCode.DONE, "and it ends while the call is out"
    assert bench.events("config_reloaded") == []


async def test_a_reload_that_takes_too_long_keeps_the_old_configuration_and_says_why(
    bench: Bench, released: threading.Event
) -> None:
    async with bench.running():
        configuration = bench.agent.configuration
        before = configuration.in_force
        configuration.read, configuration.calls.limit_s = hanging_read(released), SHORT_S
        for _ in range(2):
            answer = await bench.ask("reload")
            assert (answer["ok"], answer["exit_code"]) == (False, 2)
            assert "the name service" in answer["error"]
            assert configuration.in_force is before
            assert not bench.agent.reporter.tally.config_is_read
        await lives(bench)
        released.set()
        await bench.until(lambda: bench.agent.configuration.calls.waiting is None)
        configuration.calls.limit_s = HANG_S
        assert (await bench.ask("reload"))["ok"] is True
        assert configuration.in_force.coalesce_ms == 1
        assert bench.agent.reporter.tally.config_is_read
    assert len(bench.events("config_rejected")) == 2


async def test_what_may_not_be_followed_leaves_everything_as_it_was(bench: Bench) -> None:
    fault = ConfigFault(file="status.sock", key="status_group", problem="cannot be given the socket", remedy="x")

    def refuse(_fresh: FreshConfig) -> None:
        raise ConfigError([fault])

    async with bench.running():
        configuration, passes = bench.agent.configuration, bench.passes
        before = configuration.in_force, passes.config, passes.cycle, passes.coalescer.window_s
        bench.config = Config(coalesce_ms=77)
        configuration.follow = refuse
        assert (await bench.ask("reload"))["ok"] is False
        assert (configuration.in_force, passes.config, passes.cycle, passes.coalescer.window_s) == before


async def test_after_a_reload_every_key_is_in_force_or_says_that_it_is_not_yet(bench: Bench) -> None:
    """Each part of the agent asks for the configuration where it needs it; keepalive is set once a connection."""
    async with bench.running():
        agent, followed = bench.agent, list[FreshConfig]()
        bench.config, agent.configuration.follow = Config(coalesce_ms=77, reconnect_max_ms=777), followed.append
        assert (await bench.ask("reload"))["ok"] is True
        connection = agent.connection
        assert isinstance(connection, FakeConnection)
        assert connection.config is not None
        assert [one.config for one in followed] == [bench.config]
        for in_force in (agent.configuration.in_force, agent.passes.config, bench.cycle_config, connection.config()):
            assert in_force is bench.config
        assert agent.passes.coalescer.window_s == 0.077
    late = [name for name, key in keys_of(Config).items() if "new connections" in key.meaning]
    assert late == ["keepalive_s"]


async def test_signals_that_come_while_it_reads_are_one_reload(bench: Bench, released: threading.Event) -> None:
    read = threading.Semaphore(0)

    def slow() -> FreshConfig:
        read.release()
        released.wait(HANG_S)
        return FreshConfig(config=bench.config)

    async with bench.running():
        bench.agent.configuration.read = slow
        bench.agent.configuration.hung_up.set()
        await bench.until(lambda: read.acquire(blocking=False))
        for _ in range(100):
            bench.agent.configuration.hung_up.set()
            await asyncio.sleep(0)
        released.set()
        await bench.until(lambda: len(bench.events("config_reloaded")) == 2)
        await lives(bench)
    assert len(bench.events("config_reloaded")) == 2, "the one that was under way, and one for all that came then"


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_disk_that_hangs_fails_the_switch_and_nothing_else(
    bench: Bench, released: threading.Event, *, comes_back: bool
) -> None:
    bench.switch = HangingSwitch(released=released)
    async with bench.running():
        bench.requests.switch_calls.limit_s = SHORT_S
        for _ in range(2):
            answer = await bench.ask("pause")
            assert answer["ok"] is False
            assert "the disk behind the state folder does not answer" in answer["remedy"]
            await lives(bench)
        if comes_back:
            released.set()
            bench.requests.switch_calls.limit_s = HANG_S
            await bench.until(lambda: bench.requests.switch_calls.waiting is None)
            assert (await bench.ask("pause"))["ok"] is True
    assert bench.code is ExitCode.DONE, "and it ends while the disk hangs"


async def test_the_history_of_a_host_is_opened_once_however_often_it_reconnects(bench: Bench) -> None:
    bench.history = FakeHistory()
    async with bench.running():
        for number in range(3):
            await bench.lose()
            await bench.until(lambda: len(bench.events("libvirt_connected")) == number + 2)  # noqa: B023  # waited for at once
        assert bench.histories == 1
        assert (await bench.ask("reload"))["ok"] is True
        assert bench.histories == 2, "a reload looks again"


@dataclass
class FaultyXml(FakeHypervisor):
    """Cannot read one guest's XML, and hangs with another's."""

    released: threading.Event = field(default_factory=threading.Event)

    def guest_xml(self, uuid: str) -> str:
        if uuid == "uuid of 1":
            raise RuntimeError("a bug")
        if uuid == "uuid of 9":
            self.released.wait(HANG_S)
        return "<domain/>"


async def test_a_bug_in_reading_a_guest_s_xml_costs_that_guest_and_one_that_hangs_no_pass(
    bench: Bench, released: threading.Event
) -> None:
    five = tuple(guest(str(number)) for number in range(5))
    bench.hypervisor = hypervisor = FaultyXml(running=five, released=released)
    bench.config = Config(coalesce_ms=0, private_guests=("*",))
    async with bench.running():
        await bench.looked()
        hypervisor.running += (guest("9"),)
        await lives(bench)
    assert bench.code is ExitCode.DONE, "and it ends while the XML hangs"
    (crash,) = bench.events("task_crashed")
    assert "the XML of '1' cannot be read: RuntimeError: a bug" in crash["error"]
    assert "in guest_xml" in crash["traceback"]
    exposed = [event["guest"] for event in bench.events("private_guest_exposed")]
    assert exposed == [str(number) for number in range(5)], "all are read; who could not be counts as able to merge"


async def test_a_list_that_passes_go_without_is_told_as_libvirt_s_silence(bench: Bench) -> None:
    async with bench.running():
        bench.hypervisor.late_list = Waiting("a list of the guests", time.monotonic() - 60)
        await lives(bench)
        libvirt = (await bench.ask("status"))["status"]["libvirt"]
        assert (libvirt["answers"], libvirt["waiting_for"]) == (False, "a list of the guests")


def fill(address: str) -> None:
    """Send until a manager that does not read takes no more; one sender's own buffer may be full before (systemd)."""
    taken = True
    while taken:
        taken = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
            while True:
                sender.sendto(b"X=1", socket.MSG_DONTWAIT, address)
                taken = True


def drain(manager: socket.socket) -> None:
    while has_mail(manager):
        manager.recv(1000)


def has_mail(manager: socket.socket) -> bool:
    return bool(select.select([manager], [], [], 0)[0])


def test_a_systemd_that_is_too_busy_delays_nothing_and_hears_of_it_later(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    fill(manager.getsockname())
    notifier.send(READY="1", STATUS="connecting")
    notifier.send(STATUS="connected")
    drain(manager)
    notifier.send(WATCHDOG="1")
    assert manager.recv(1000) == b"READY=1\nSTATUS=connected\nWATCHDOG=1"
    notifier.send(STATUS="well")
    assert manager.recv(1000) == b"STATUS=well"


async def test_beside_a_systemd_that_hangs_it_lives_and_ends_and_a_routine_pass_sends_no_status(
    bench: Bench, manager: socket.socket
) -> None:
    bench.notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    bench.policy.is_routine = True
    fill(manager.getsockname())
    async with bench.running():
        await lives(bench)
        drain(manager)
        await bench.pass_for(Trigger.TIMER)  # which sends what found no room before
        drain(manager)
        for _ in range(20):
            await bench.pass_for(Trigger.TIMER)
            assert not has_mail(manager)
        bench.policy.is_routine = False
        await bench.pass_for(Trigger.TIMER)
        assert b"STATUS=" in manager.recv(1000)
        fill(manager.getsockname())
    assert bench.code is ExitCode.DONE


class DeafLoop:
    """libvirt's event loop, as the watchdog asks for it: deaf until it is well, and it raises its faults first."""

    def __init__(self, *faults: Exception) -> None:
        self.asked = 0
        self.is_well = False
        self.faults = list(faults)

    def check(self) -> bool:
        self.asked += 1
        if self.faults:
            raise self.faults.pop()
        return self.is_well


async def test_an_event_loop_that_does_not_run_is_told_and_starves_the_watchdog(
    bench: Bench, manager: socket.socket
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000"})
    events = DeafLoop()
    async with bench.running():
        reporter = bench.agent.reporter
        feeding = asyncio.create_task(feed_watchdog(notifier, bench.passes, reporter, cast("EventLoop", events)))
        await bench.until(lambda: events.asked > 3)
        assert not has_mail(manager)
        events.is_well = True
        assert await asyncio.to_thread(manager.recv, 1000) == b"WATCHDOG=1"
        feeding.cancel()
    assert len(bench.events("event_loop_stopped")) == 1


async def test_what_nobody_thought_of_costs_the_watchdog_one_feeding(bench: Bench, manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000"})
    events = DeafLoop(RuntimeError("a bug"))
    events.is_well = True
    async with bench.running():
        reporter = bench.agent.reporter
        feeding = asyncio.create_task(feed_watchdog(notifier, bench.passes, reporter, cast("EventLoop", events)))
        await bench.until(lambda: has_mail(manager) or feeding.done())
        assert not feeding.done()
        feeding.cancel()
    assert [event["task"] for event in bench.events("task_crashed")] == ["watchdog"]
