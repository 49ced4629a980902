"""Passes alone, without agent, loop or connection: when they have stopped coming, and what an event makes forget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes import FakeClock, FakeFacts, FakeHypervisor, FakeStore, FakeSwitch, TargetPolicy
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.log import Reporter
from virtksm.agent.passes import STUCK_S, DonePass, Passes
from virtksm.config.schema import Config
from virtksm.host.libvirt_events import DomainEvent
from virtksm.host.systemd import Notifier
from virtksm.model.decision import Trigger
from virtksm.model.report import PassRecord
from virtksm.model.snapshot import Guest, Settings
from virtksm.tuning.cycle import Cycle, Memory

LIMIT_S = Config().call_timeout_s + STUCK_S


class Nobody:
    """A listener to whom nothing matters."""

    def heard(self, event: DomainEvent) -> None:
        pass

    def complete(self, record: PassRecord, config: Config) -> PassRecord:
        return record

    def passed(self, done: DonePass) -> None:
        pass


@pytest.fixture
def passes() -> Passes:
    """Lend the passes of a connected agent, which were last seen awake at 100 s."""
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
    made = Passes(Config(), BlockingCalls(), Reporter(Notifier({})), Nobody())
    made.follow(Config(), cycle)
    made.awake_s = 100.0
    return made


def test_without_anything_due_it_is_never_stuck(passes: Passes) -> None:
    assert not passes.is_stuck(100.0 + 10 * LIMIT_S)


def test_a_trigger_that_no_pass_answers_makes_it_stuck(passes: Passes) -> None:
    passes.offer(Trigger.STARTED)
    assert not passes.is_stuck(100.0 + LIMIT_S)
    assert passes.is_stuck(100.5 + LIMIT_S)


def test_a_timer_that_no_pass_answers_makes_it_stuck(passes: Passes) -> None:
    passes.coalescer = replace(passes.coalescer, timer_s=700.0)
    assert not passes.is_stuck(700.0 + LIMIT_S)
    assert passes.is_stuck(700.5 + LIMIT_S)


def test_whoever_goes_round_is_not_stuck(passes: Passes) -> None:
    passes.offer(Trigger.STARTED)
    passes.awake_s = 200.0
    assert not passes.is_stuck(150.0 + LIMIT_S)


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


def test_waiting_for_libvirt_is_not_being_stuck(passes: Passes) -> None:
    passes.offer(Trigger.STARTED)
    passes.cycle = None
    assert not passes.is_stuck(100.0 + 10 * LIMIT_S)
