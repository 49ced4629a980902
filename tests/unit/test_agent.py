"""The agent's own judgement of itself, without a loop: when passes have stopped coming."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes import FakeClock, FakeFacts, FakeHypervisor, FakeStore, FakeSwitch, TargetPolicy
from virtksm.agent.agent import STUCK_S, Agent, FreshConfig
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.connection import Link
from virtksm.agent.log import Reporter
from virtksm.config.schema import Config
from virtksm.host.libvirt_events import DomainEvent
from virtksm.host.systemd import Notifier
from virtksm.model.decision import Trigger
from virtksm.model.snapshot import Guest, Settings
from virtksm.tuning.cycle import Cycle, Memory

LIMIT_S = Config().call_timeout_s + STUCK_S


@pytest.fixture
def agent() -> Agent:
    """Lend a connected agent that has last been awake at 100 s."""
    calls, reporter = BlockingCalls(), Reporter(Notifier({}))
    cycle = Cycle(
        hypervisor=FakeHypervisor(),
        local=FakeFacts(),
        policy=TargetPolicy(target=Settings(pages_to_scan=400, sleep_millisecs=10)),
        store=FakeStore(),
        switch=FakeSwitch(),
        clock=FakeClock(),
        on_conflict="reassert",
        memory=Memory(),
    )
    made = Agent(
        uri="qemu:///system",
        config=Config(),
        link=Link(calls, reporter.connect_failed),
        calls=calls,
        reporter=reporter,
        make_cycle=lambda _host, _config, _memory: cycle,
        make_switch=lambda _uri, _config: FakeSwitch(),
        read_config=lambda: FreshConfig(config=Config()),
    )
    made.cycle, made.awake_s = cycle, 100.0
    return made


def test_without_anything_due_it_is_never_stuck(agent: Agent) -> None:
    assert not agent.is_stuck(100.0 + 10 * LIMIT_S)


def test_a_trigger_that_no_pass_answers_makes_it_stuck(agent: Agent) -> None:
    agent.offer(Trigger.STARTED)
    assert not agent.is_stuck(100.0 + LIMIT_S)
    assert agent.is_stuck(100.5 + LIMIT_S)


def test_a_timer_that_no_pass_answers_makes_it_stuck(agent: Agent) -> None:
    agent.next_pass_s = 700.0
    assert not agent.is_stuck(700.0 + LIMIT_S)
    assert agent.is_stuck(700.5 + LIMIT_S)


def test_whoever_goes_round_is_not_stuck(agent: Agent) -> None:
    agent.offer(Trigger.STARTED)
    agent.awake_s = 200.0
    assert not agent.is_stuck(150.0 + LIMIT_S)


def test_a_guest_that_is_given_a_memory_device_is_asked_again_what_it_may_grow_to(agent: Agent) -> None:
    assert agent.cycle is not None
    hypervisor = agent.cycle.hypervisor
    assert isinstance(hypervisor, FakeHypervisor)
    hypervisor.running = (Guest(uuid="u", name="vm", max_kib=64), Guest(uuid="v", name="other", max_kib=64))

    def maxima() -> list[int | None]:
        return [guest.max_kib for guest in hypervisor.running_guests(with_max=True)]

    assert maxima() == [64, 64]
    hypervisor.running = tuple(replace(one, max_kib=192) for one in hypervisor.running)
    agent.hear(DomainEvent(trigger=Trigger.BALLOON, guest="other", uuid="v", detail="", heard_s=0.0))
    agent.hear(DomainEvent(trigger=Trigger.MEMORY_DEVICE, guest="vm", uuid="u", detail="dimm0", heard_s=0.0))
    assert maxima() == [192, 64]


def test_waiting_for_libvirt_is_not_being_stuck(agent: Agent) -> None:
    agent.offer(Trigger.STARTED)
    agent.cycle = None
    assert not agent.is_stuck(100.0 + 10 * LIMIT_S)
