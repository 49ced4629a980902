"""Passes alone, without an agent or a connection: for what, to whom they are told, when they are stuck."""

import asyncio
from dataclasses import dataclass, field

import pytest

from tests.fakes import FakeHypervisor, fake_cycle
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.log import Reporter
from virtksm.agent.passes import STUCK_S, DonePass, Passes
from virtksm.config.schema import Config
from virtksm.errors import LibvirtUnreachable, SensingFailed, VirtksmError
from virtksm.host.libvirt_events import DomainEvent
from virtksm.host.systemd import Notifier
from virtksm.model.decision import Trigger
from virtksm.model.report import PassReport
from virtksm.model.snapshot import Guest
from virtksm.values import replace

LIMIT_S = Config().call_timeout_s + STUCK_S


@dataclass
class FakeListener:
    """Notes passes, and whether an event's was asked for when it was told of the event, of which it may be afraid."""

    passes: Passes | None = None
    was_pending: list[bool] = field(default_factory=list)
    done: list[DonePass] = field(default_factory=list)
    crashes: bool = False

    def heard(self, event: DomainEvent) -> None:
        assert self.passes is not None
        self.was_pending.append(event.trigger in self.passes.coalescer.pending)
        if self.crashes:
            raise RuntimeError("a bug")

    def complete(self, report: PassReport, config: Config) -> PassReport:
        return replace(report, exposed=config.private_guests)

    def passed(self, done: DonePass) -> None:
        self.done.append(done)
        if self.crashes:
            raise RuntimeError("a bug")


@pytest.fixture
def listener() -> FakeListener:
    return FakeListener()


@pytest.fixture
def passes(listener: FakeListener) -> Passes:
    """Lend the passes of a connected agent, which were last seen awake at 100 s."""
    made = Passes(Config(), BlockingCalls(), Reporter(Notifier({})), listener)
    listener.passes = made
    made.follow(Config(), fake_cycle())
    made.awake_s = 100.0
    return made


def test_a_trigger_or_a_timer_that_no_pass_answers_makes_it_stuck(passes: Passes) -> None:
    assert not passes.is_stuck(100.0 + 10 * LIMIT_S), "nothing is due"
    passes.coalescer = replace(passes.coalescer, timer_s=700.0)
    assert (passes.is_stuck(700.0 + LIMIT_S), passes.is_stuck(700.5 + LIMIT_S)) == (False, True)
    passes.offer(Trigger.STARTED)
    assert (passes.is_stuck(100.0 + LIMIT_S), passes.is_stuck(100.5 + LIMIT_S)) == (False, True)
    passes.awake_s = 200.0
    assert not passes.is_stuck(150.0 + LIMIT_S), "its loop goes round"
    passes.cycle = None
    assert not passes.is_stuck(100.0 + 10 * LIMIT_S), "it waits for libvirt"


def test_a_guest_that_is_given_a_memory_device_is_asked_again_what_it_may_grow_to(passes: Passes) -> None:
    assert passes.cycle is not None
    hypervisor = passes.cycle.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    hypervisor.running = (Guest(uuid="u", name="vm", max_kib=64), Guest(uuid="v", name="other", max_kib=64))

    def maxima() -> list[int | None]:
        return [guest.max_kib for guest in hypervisor.running_guests(with_max=True)]

    assert maxima() == [64, 64]
    hypervisor.running = tuple(replace(one, max_kib=192) for one in hypervisor.running)
    passes.heard(DomainEvent(trigger=Trigger.BALLOON, guest="other", uuid="v", detail="", heard_s=0.0))
    passes.heard(DomainEvent(trigger=Trigger.MEMORY_DEVICE, guest="vm", uuid="u", detail="dimm0", heard_s=0.0))
    assert maxima() == [192, 64]


STARTED = DomainEvent(trigger=Trigger.STARTED, guest="vm", uuid="u", detail="booted", heard_s=0.0)
OPEN = Config(private_guests=("vm",))


@pytest.mark.parametrize("crashes", [False, True])
def test_a_pass_is_asked_for_before_anybody_is_told_of_its_event(
    passes: Passes, listener: FakeListener, *, crashes: bool
) -> None:
    """A log or a history that is slow delays no pass, and one that fails costs none."""
    listener.crashes = crashes
    passes.heard(STARTED)
    assert listener.was_pending == [True]
    asyncio.run(passes.run_when_due())
    (done,) = listener.done
    assert (done.report.triggers.names, done.heard_s) == (["started"], 0.0)


async def test_a_pass_answers_who_asked_for_it_under_the_configuration_in_force(
    passes: Passes, listener: FakeListener
) -> None:
    passes.follow(OPEN, passes.cycle)
    dry, wet = asyncio.create_task(passes.ask(Trigger.RETUNE, dry_run=True)), passes.ask(Trigger.RETUNE)
    both = asyncio.gather(dry, wet)
    await asyncio.sleep(0)
    await passes.run_when_due()
    assert [report.outcome.value for report in await both] == ["dry_run", "applied"]
    assert [(done.config, done.report.exposed) for done in listener.done] == [(OPEN, ("vm",))], "a dry run is none"


async def test_who_asks_while_there_is_no_connection_or_it_stops_is_refused_and_who_waits_is_answered(
    passes: Passes,
) -> None:
    waiting = asyncio.create_task(passes.ask(Trigger.RETUNE))
    await asyncio.sleep(0)
    cycle = passes.cycle
    passes.disconnect(LibvirtUnreachable("libvirt disconnected: test"))
    with pytest.raises(LibvirtUnreachable, match="disconnected: test"):
        await waiting
    with pytest.raises(LibvirtUnreachable, match="the agent is not connected"):
        await passes.ask(Trigger.RETUNE)
    passes.follow(Config(), cycle)
    passes.stop()
    with pytest.raises(VirtksmError, match="the agent is stopping"):
        await passes.ask(Trigger.RETUNE)
    await passes.run_when_due()
    assert passes.last is None, "no further pass begins"


async def test_a_timer_that_ends_while_there_is_no_connection_rings_with_the_next_one(
    passes: Passes, listener: FakeListener
) -> None:
    cycle = passes.cycle
    passes.disconnect(LibvirtUnreachable("test"))
    passes.coalescer = replace(passes.coalescer, timer_s=0.0)
    waiting = asyncio.create_task(passes.run_when_due())
    await asyncio.sleep(0)
    assert not passes.coalescer.pending, "or the pass would seem to have come late"
    passes.follow(Config(), cycle)
    passes.offer(Trigger.CONNECTED)
    await waiting
    assert [done.report.triggers.names for done in listener.done] == [["connected", "timer"]]


async def test_a_pass_that_fails_is_tried_again_later_and_a_dry_run_moves_no_timer(passes: Passes) -> None:
    assert passes.cycle is not None
    hypervisor = passes.cycle.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    hypervisor.reading_fails = SensingFailed("test")
    for dry_run in (True, False):
        asking = asyncio.create_task(passes.ask(Trigger.RETUNE, dry_run=dry_run))
        await asyncio.sleep(0)
        if not dry_run:
            await passes.run_when_due()
        with pytest.raises(SensingFailed):
            await asking
        assert (passes.coalescer.timer_s is None) is dry_run
    assert passes.coalescer.timer_s is not None
    assert passes.coalescer.timer_s > passes.awake_s, "after the failed pass began"


async def test_a_list_of_guests_that_came_late_has_a_pass_at_once(passes: Passes) -> None:
    running = asyncio.create_task(passes.run_when_due())
    await asyncio.sleep(0)
    passes.look_again()
    await running
    assert passes.last is not None
    assert passes.last.report.triggers.names == ["guests"]


async def test_what_asks_for_one_more_pass_while_one_runs_gets_it(passes: Passes, listener: FakeListener) -> None:
    """A list of the guests that comes then, or is found to be too old then, is for the next pass."""
    assert passes.cycle is not None
    hypervisor = passes.cycle.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    loop = asyncio.get_running_loop()

    def look_again(_name: str, _value: int) -> None:
        loop.call_soon_threadsafe(passes.look_again)

    hypervisor.before_write = look_again
    passes.follow(Config(coalesce_ms=0), passes.cycle)
    passes.offer(Trigger.STARTED)
    await passes.run_when_due()
    assert passes.next_s(0.0) == 0.0, "at once, whatever the policy's timer"
    await passes.run_when_due()
    assert [done.report.triggers.names for done in listener.done] == [["started"], ["guests"]]
