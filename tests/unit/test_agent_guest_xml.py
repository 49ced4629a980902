"""The look at guests' XML: a few at a time, each once a run, vanished ones struck off, faults told and survived."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import FakeHypervisor
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.configuration import Configuration, FreshConfig
from virtksm.agent.guest_xml import READ_AT_ONCE, GuestReader, GuestXmlCache
from virtksm.agent.log import Reporter
from virtksm.config.schema import Config
from virtksm.errors import LibvirtUnreachable, SensingFailed
from virtksm.guests.xml import read_guests
from virtksm.host.systemd import Notifier
from virtksm.model.snapshot import Guest

PLAIN = "<domain/>"
APART = "<domain><memoryBacking><nosharepages/></memoryBacking></domain>"


def guest(number: int, domain_id: int = 1) -> Guest:
    return Guest(uuid=f"uuid {number}", name=f"guest-{number}", domain_id=domain_id)


def look_at_all(look: GuestXmlCache, hypervisor: FakeHypervisor) -> list[int]:
    """Read until nothing is due; return how many were read at a time."""
    sizes = []
    while look.is_due:
        guests = look.next_guests()
        sizes.append(len(guests))
        look.learn(read_guests(hypervisor, guests)[0])
    return sizes


def test_many_guests_are_read_a_few_at_a_time_and_each_once() -> None:
    guests = [guest(number) for number in range(2 * READ_AT_ONCE + 3)]
    hypervisor = FakeHypervisor(xml={one.uuid: PLAIN for one in guests})
    look = GuestXmlCache()
    look.see(guests, again=False)
    assert look_at_all(look, hypervisor) == [READ_AT_ONCE, READ_AT_ONCE, 3]
    look.see(guests, again=False)
    assert not look.is_due
    assert len(look.exposed(guests, ["*"])) == len(guests)


def test_a_new_run_is_read_again_and_so_is_all_when_asked_or_after_a_reconnect() -> None:
    hypervisor = FakeHypervisor(xml={guest(1).uuid: PLAIN})
    look = GuestXmlCache()
    look.see([guest(1)], again=False)
    look_at_all(look, hypervisor)
    look.see([guest(1, domain_id=2)], again=False)
    assert look.is_due
    look_at_all(look, hypervisor)
    hypervisor.xml[guest(1).uuid] = APART
    look.see([guest(1, domain_id=2)], again=True)
    assert look.exposed([guest(1, domain_id=2)], ["*"]) == ("guest-1",), "known until it is read again"
    look_at_all(look, hypervisor)
    assert look.exposed([guest(1, domain_id=2)], ["*"]) == ()
    assert (look.is_due, look.is_complete) == (False, True)
    look.forget()
    assert (look.is_due, look.is_complete) == (False, False), "nothing is known of the new connection's guests"
    look.see([guest(1, domain_id=2)], again=False)
    assert (look.is_due, look.is_complete) == (True, False)


def test_after_a_look_that_failed_as_a_whole_the_others_come_first_and_each_alone() -> None:
    guests = [guest(number) for number in range(READ_AT_ONCE + 2)]
    hypervisor = FakeHypervisor(xml={one.uuid: PLAIN for one in guests})
    look = GuestXmlCache()
    look.see(guests, again=False)
    look.postpone(look.next_guests())
    assert look.next_guests() == (guests[READ_AT_ONCE],)
    assert look_at_all(look, hypervisor) == [1] * len(guests)
    look.see(guests, again=True)
    assert look_at_all(look, hypervisor) == [READ_AT_ONCE, 2], "once all were read, it goes on as before"


def test_what_is_due_stays_due_through_passes_until_it_is_read_or_gone() -> None:
    look = GuestXmlCache()
    look.see([guest(1), guest(2)], again=True)
    look.see([guest(1)], again=False)
    assert look.next_guests() == (guest(1),)


def test_a_guest_that_vanishes_is_no_error_and_is_not_asked_for_again() -> None:
    look = GuestXmlCache()
    look.see([guest(1), guest(2)], again=False)
    seen, failures = read_guests(FakeHypervisor(xml={guest(2).uuid: PLAIN}), look.next_guests())
    look.learn(seen)
    assert failures == []
    assert not look.is_due
    assert look.exposed([guest(1), guest(2)], ["*"]) == ("guest-2",)


def test_one_that_was_struck_off_while_it_was_read_is_not_learned() -> None:
    look = GuestXmlCache()
    look.see([guest(1)], again=False)
    seen, _ = read_guests(FakeHypervisor(xml={guest(1).uuid: PLAIN}), look.next_guests())
    look.see([], again=False)
    look.learn(seen)
    assert look.exposed([guest(1)], ["*"]) == ()


@pytest.mark.parametrize("fault", ["nonsense", SensingFailed("access denied")])
def test_what_cannot_be_read_is_told_and_counts_as_able_to_merge(fault: str | SensingFailed) -> None:
    class Faulty(FakeHypervisor):
        def guest_xml(self, uuid: str) -> str:
            if isinstance(fault, SensingFailed):
                raise fault
            return fault

    look = GuestXmlCache()
    look.see([guest(1), guest(2)], again=False)
    seen, failures = read_guests(Faulty(), look.next_guests())
    look.learn(seen)
    assert len(failures) == 2
    assert look.exposed([guest(1), guest(2)], ["*-1"]) == ("guest-1",)


def test_a_lost_connection_ends_the_look() -> None:
    class Lost(FakeHypervisor):
        def guest_xml(self, uuid: str) -> str:
            raise LibvirtUnreachable("gone")

    with pytest.raises(LibvirtUnreachable):
        read_guests(Lost(), [guest(1)])


def test_the_reader_reads_what_passes_have_seen_and_forgets_what_another_connection_tells() -> None:
    hypervisor = FakeHypervisor(xml={guest(number).uuid: PLAIN for number in range(READ_AT_ONCE + 1)})
    source: list[FakeHypervisor | None] = [hypervisor]
    configuration = Configuration(Config(), lambda: FreshConfig(config=Config()))
    running = tuple(guest(number) for number in range(READ_AT_ONCE + 1))

    async def story() -> None:
        reader = GuestReader(lambda: source[-1], configuration, BlockingCalls(), Reporter(Notifier({})))
        waiting = asyncio.create_task(reader.read_when_due())
        await asyncio.sleep(0)
        reader.see(running, again=False)
        await waiting
        await reader.read_when_due()
        assert len(reader.exposed(running, ["*"])) == READ_AT_ONCE
        reading = asyncio.create_task(reader.read_when_due())
        await asyncio.sleep(0)
        source.append(FakeHypervisor())
        reader.forget()
        reader.see(running, again=False)
        await reading
        assert reader.exposed(running, ["*"]) == (), "what the lost connection told is not learned"
        reader.forget()
        reader.stop()
        await reader.read_when_due()

    asyncio.run(story())


def test_after_a_reading_that_failed_the_reader_waits_for_the_next_pass() -> None:
    class Lost(FakeHypervisor):
        def guest_xml(self, uuid: str) -> str:
            raise LibvirtUnreachable("gone")

    configuration = Configuration(Config(), lambda: FreshConfig(config=Config()))
    running = (guest(1), guest(2))

    async def story() -> None:
        reader = GuestReader(Lost, configuration, BlockingCalls(), Reporter(Notifier({})))
        reader.see(running, again=False)
        reading = asyncio.create_task(reader.read_when_due())
        async with asyncio.timeout(30):
            while len(reader.cache.next_guests()) > 1:  # noqa: ASYNC110  # it has failed when each is due alone
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert not reading.done()
        reader.see(running, again=False)
        await reading

    asyncio.run(story())
