"""Reading guests' XML: a few at a time, each once a run, vanished ones struck off, faults told and survived."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.fakes import FakeHypervisor
from tests.lab.agent_bench import unchanging
from tests.lab.hang import HANG_S
from virtksm.agent.guest_xml import READ_AT_ONCE, GuestReader
from virtksm.agent.log import Reporter
from virtksm.config.schema import Config
from virtksm.errors import LibvirtUnreachable, SensingFailed
from virtksm.guests.xml import NAMESPACE
from virtksm.host.systemd import Notifier
from virtksm.model.snapshot import Guest, Traits

PLAIN = "<domain/>"
APART = "<domain><memoryBacking><nosharepages/></memoryBacking></domain>"


def guests(count: int, domain_id: int = 1) -> tuple[Guest, ...]:
    return tuple(Guest(uuid=f"u{number}", name=f"guest-{number}", domain_id=domain_id) for number in range(count))


@dataclass
class Libvirt(FakeHypervisor):
    """Gives PLAIN for each guest that has no XML of its own, or the fault planted there."""

    faults: dict[str, Exception] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    has_read: Callable[[], object] = lambda: None

    def guest_xml(self, uuid: str) -> str:
        self.read.append(uuid)
        if uuid in self.faults:
            raise self.faults[uuid]
        text = super().guest_xml(uuid)
        self.has_read()
        return text


@pytest.fixture
def libvirt() -> Libvirt:
    """Lend a libvirt that knows 20 guests."""
    return Libvirt(xml={one.uuid: PLAIN for one in guests(20)})


@pytest.fixture
def reader(libvirt: Libvirt) -> GuestReader:
    return GuestReader(lambda: libvirt, unchanging(), Reporter(Notifier({})))


async def read_all(reader: GuestReader) -> list[int]:
    """Read until nothing is due; return how many were left each time."""
    left = []
    while reader.due:
        await reader.read_when_due()
        left.append(len(reader.due))
    return left


async def test_many_guests_are_read_a_few_at_a_time_each_once_a_run_and_all_when_asked(
    reader: GuestReader, libvirt: Libvirt
) -> None:
    many = guests(2 * READ_AT_ONCE + 3)
    reader.see(many, again=False)
    assert await read_all(reader) == [READ_AT_ONCE + 3, 3, 0]
    reader.see(many, again=False)
    assert not reader.due
    assert len(reader.exposed(many, ["*"])) == len(many)
    (first,) = guests(1, domain_id=2)
    reader.see((first,), again=False)
    assert reader.due, "a new run"
    await read_all(reader)
    libvirt.xml[first.uuid] = APART
    reader.see((first,), again=True)
    reader.see((first,), again=False)
    assert reader.exposed((first,), ["*"]) == ("guest-0",), "known, and due, until it is read again"
    await read_all(reader)
    assert reader.exposed((first,), ["*"]) == ()
    reader.reread("another")
    assert not reader.due
    reader.reread(first.uuid)
    assert [*reader.due] == [first.key], "a memory device has come or gone"


@pytest.mark.parametrize("how", ["event", "request"])
async def test_what_is_asked_for_while_it_is_being_read_is_read_once_more(
    reader: GuestReader, libvirt: Libvirt, how: str
) -> None:
    (one,) = running = guests(1)
    libvirt.xml[one.uuid] = APART
    reader.see(running, again=False)
    loop = asyncio.get_running_loop()
    asks = {"event": partial(reader.reread, one.uuid), "request": partial(reader.see, running, again=True)}

    def change() -> None:
        libvirt.xml[one.uuid], libvirt.has_read = PLAIN, lambda: None
        loop.call_soon_threadsafe(asks[how])  # it is heard before the call has returned

    libvirt.has_read = change
    await reader.read_when_due()
    assert [*reader.due] == [one.key]
    assert reader.exposed(running, ["*"]) == (), "until then it counts as it was read"
    assert await read_all(reader) == [0]
    assert reader.exposed(running, ["*"]) == (one.name,)


async def test_groups_that_can_merge_with_one_another_are_counted_once_all_xml_is_read(
    reader: GuestReader, libvirt: Libvirt
) -> None:
    many = guests(READ_AT_ONCE + 1)
    for one, group in zip(many, "abaaaaaaa", strict=True):
        libvirt.xml[one.uuid] = (
            f"<domain><metadata><v:guest xmlns:v='{NAMESPACE}' group='{group}'/></metadata></domain>"
        )
    counts: list[int | None] = []
    reader.learned = reader.name_exposed
    reader.see(many, again=False)
    await reader.read_when_due()
    counts.append(reader.reporter.tally.mixed_groups)
    await read_all(reader)
    counts.append(reader.reporter.tally.mixed_groups)
    reader.notes.unmerged.add(many[1].key)
    reader.name_exposed()
    counts.append(reader.reporter.tally.mixed_groups)
    reader.notes.unmerged.clear()
    libvirt.xml[many[1].uuid] = APART
    reader.see(many, again=True)
    await read_all(reader)
    counts.append(reader.reporter.tally.mixed_groups)
    assert counts == [None, 2, 0, 0]


async def test_a_guest_that_vanishes_is_no_error_and_what_cannot_be_read_counts_as_able_to_merge(
    reader: GuestReader, libvirt: Libvirt
) -> None:
    del libvirt.xml["u0"]
    libvirt.xml["u1"] = "nonsense"
    libvirt.faults["u2"] = SensingFailed("access denied")
    reader.see(guests(4), again=False)
    assert await read_all(reader) == [0]
    assert reader.exposed(guests(4), ["*-[0-2]"]) == ("guest-1", "guest-2")


async def test_guests_that_their_xml_keeps_from_merging_are_known_for_as_long_as_they_run_and_their_xml_says_so(
    reader: GuestReader, libvirt: Libvirt
) -> None:
    apart, encrypted, _plain = many = guests(3)
    libvirt.xml |= {apart.uuid: APART, encrypted.uuid: "<domain><launchSecurity type='tdx'/></domain>"}
    reader.see(many, again=False)
    assert reader.notes.traits == {}, "not known yet"
    await read_all(reader)
    both = {apart.key, encrypted.key}
    assert reader.notes.traits == dict.fromkeys(both, Traits(can_merge=False))
    reader.forget()
    assert reader.notes.traits == dict.fromkeys(both, Traits(can_merge=False)), "the same runs over another connection"
    removed: list[str] = []

    class Watched(dict[str, Traits]):
        def pop(self, key: str, default: Any = None) -> Any:  # noqa: ANN401  # as the dictionary's own
            removed.append(key)
            return super().pop(key, default)

    reader.notes.traits = Watched(reader.notes.traits)
    reader.see(many, again=True)
    await read_all(reader)
    assert both.isdisjoint(removed), "a pass may read it meanwhile"
    libvirt.faults[apart.uuid] = SensingFailed("access denied")
    libvirt.xml[encrypted.uuid] = PLAIN
    reader.see(many, again=True)
    await read_all(reader)
    assert reader.notes.traits == {apart.key: Traits(can_merge=False)}, "what cannot be read leaves it as it was"
    reader.see(guests(3, domain_id=2), again=False)
    assert reader.notes.traits == {}, "another run"


async def test_guests_of_one_image_are_known_for_as_long_as_they_run(reader: GuestReader, libvirt: Libvirt) -> None:
    one, two, other = many = guests(3)
    cloned = "<domain><os><kernel>/boot/vmlinuz</kernel></os></domain>"
    libvirt.xml |= {one.uuid: cloned, two.uuid: cloned}
    reader.see(many, again=False)
    await read_all(reader)
    assert reader.notes.traits[one.key].image == reader.notes.traits[two.key].image is not None
    assert other.key not in reader.notes.traits
    reader.forget()
    reader.see((two,), again=False)
    assert reader.notes.traits.keys() == {two.key}, "the same runs over another connection"


async def test_the_numa_nodes_that_guests_are_bound_to_are_known_as_long(reader: GuestReader, libvirt: Libvirt) -> None:
    bound, _plain = many = guests(2)
    numatune = "<numatune><memory mode='strict' nodeset='1'/></numatune>"
    libvirt.xml[bound.uuid] = f"<domain>{numatune}</domain>"
    reader.see(many, again=False)
    await read_all(reader)
    assert reader.notes.traits == {bound.key: Traits(bound_to=((1,),))}
    libvirt.faults[bound.uuid] = SensingFailed("access denied")
    reader.see(many, again=True)
    await read_all(reader)
    assert reader.notes.traits == {bound.key: Traits(bound_to=((1,),))}
    reader.see(guests(2, domain_id=2), again=False)
    assert reader.notes.traits == {}


async def test_what_a_lost_connection_tells_and_a_guest_that_ended_meanwhile_are_not_learned(
    reader: GuestReader,
) -> None:
    waiting = asyncio.create_task(reader.read_when_due())
    await asyncio.sleep(0)
    reader.see(guests(1), again=False)
    await waiting
    for is_lost in (False, True):
        reader.see(guests(1), again=False)
        reading = asyncio.create_task(reader.read_when_due())
        await asyncio.sleep(0)
        if is_lost:
            reader.source = Libvirt
        else:
            reader.see((), again=False)
        await reading
        assert reader.exposed(guests(1), ["*"]) == ()
    reader.forget()
    assert (reader.running, reader.due) == (None, {}), "nothing is known of the new connection's guests"


async def test_a_call_that_never_returns_is_the_lost_connection_s_alone(reader: GuestReader, libvirt: Libvirt) -> None:
    never = threading.Event()
    libvirt.has_read = lambda: never.wait(HANG_S)
    reader.configuration.in_force = Config(call_timeout_s=0)
    reader.see(guests(1), again=False)
    reading = asyncio.create_task(reader.read_when_due())
    async with asyncio.timeout(HANG_S):
        while reader.at_once > 1:  # noqa: ASYNC110  # it has failed when each is due alone
            await asyncio.sleep(0.001)
    reader.configuration.in_force = Config()
    another = Libvirt(xml={"u0": APART})
    reader.source = lambda: another
    reader.forget()
    reader.see(guests(1), again=False)
    await reading
    await asyncio.wait_for(read_all(reader), HANG_S)
    never.set()
    assert reader.notes.traits == {guests(1)[0].key: Traits(can_merge=False)}


async def test_after_a_reading_that_failed_it_waits_for_the_next_pass_and_reads_the_others_first_each_alone(
    reader: GuestReader, libvirt: Libvirt
) -> None:
    many = guests(READ_AT_ONCE + 2)
    libvirt.faults["u0"] = LibvirtUnreachable("gone")
    reader.see(many, again=False)
    reading = asyncio.create_task(reader.read_when_due())
    async with asyncio.timeout(HANG_S):
        while reader.at_once > 1:  # noqa: ASYNC110  # it has failed when each is due alone
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert not reading.done()
    reader.see(many, again=False)
    await reading
    libvirt.faults.clear()
    libvirt.read.clear()
    assert await read_all(reader) == list(range(len(many) - 1, -1, -1))
    assert libvirt.read[0] == f"u{READ_AT_ONCE}"
    reader.see(many, again=True)
    assert await read_all(reader) == [2, 0], "once all were read, it goes on as before"
