"""The port LocalFacts: the fake and /proc agree on what a guest, a missing process and a missing file are."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.fakes import FakeFacts
from virtksm.guests.ports import GuestFacts
from virtksm.guests.process import GuestProcess, ProcessKsm
from virtksm.host.local_facts import ProcFacts, boottime_s
from virtksm.model.snapshot import Guest, MergedReading


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    facts: GuestFacts
    start: Callable[[str], Guest]


def fake_place() -> Place:
    rss_kib: dict[str, int] = {}
    of_guests: dict[str, GuestProcess] = {}
    living: set[str] = set()
    readings: dict[str, MergedReading] = {}

    def start(name: str) -> Guest:
        rss_kib[f"uuid of {name}"] = 20_000
        readings[f"uuid of {name}"] = MergedReading(taken_s=1.0, counted_kib=0, mapped_kib=0)
        of_guests[f"uuid of {name}"] = GuestProcess(
            arguments=("qemu", "-name", name), ksm=ProcessKsm(rmap_items=0, zero_pages=0, merging_pages=0)
        )
        guest = Guest(uuid=f"uuid of {name}", name=name, domain_id=len(rss_kib))
        living.add(f"process of {guest.key}")
        return guest

    facts = FakeFacts(rss_kib=rss_kib, of_guests=of_guests, living=living, readings=readings)
    return Place(facts=facts, start=start)


def proc_place(stack: ExitStack, folder: Path) -> Place:
    numbers = iter(range(1, 100))
    qemu = folder / "qemu-system-x86_64"
    qemu.symlink_to("/bin/sh")

    def start(name: str) -> Guest:
        uuid = str(uuid4())
        command = [str(qemu), "-c", "echo up; read line", "sh", "-name", name, "-uuid", uuid]
        process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        stack.callback(process.kill)
        assert process.stdout is not None
        # Popen returns while the kernel still executes it: /proc may have no command line yet.
        assert process.stdout.readline() == b"up\n"
        return Guest(uuid=uuid, name=name, domain_id=next(numbers))

    return Place(facts=ProcFacts(boottime_s), start=start)


# In turn with those that have a process in /proc that hangs its readers.
@pytest.fixture(params=["fake", pytest.param("proc", marks=pytest.mark.ksm)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield fake_place() if request.param == "fake" else proc_place(stack, tmp_path)


def test_every_guest_is_answered_in_order_and_one_without_a_process_is_unread_and_not_0(place: Place) -> None:
    missing = Guest(uuid=str(uuid4()), name="gone", domain_id=99)
    running = (place.start("one"), missing, place.start("two"))
    guests = place.facts.guests(running)
    assert [(guest.uuid, guest.name) for guest in guests] == [(guest.uuid, guest.name) for guest in running]
    assert [guest.rss_kib is None or guest.rss_kib > 0 for guest in guests] == [True] * 3
    assert [guest.rss_kib is None for guest in guests] == [False, True, False]
    assert [guest.shared_kib is None for guest in guests] == [False, True, False]
    assert [guest.mergeable_kib is None or guest.mergeable_kib > 0 for guest in guests] == [True] * 3
    one, nobody, two = place.facts.processes(running)
    assert nobody is None
    for process, name in ((one, "one"), (two, "two")):
        assert process is not None
        assert name in process.arguments
        assert process.ksm is not None
        assert (process.ksm.rmap_items, process.ksm.merging_pages) == (0, 0)
        assert process.ksm.zero_pages in (None, 0)  # none before Linux 6.6
    merged = dict(place.facts.merged(running))
    assert merged.keys() in (set(), {running[0].key, running[2].key})  # none before Linux 6.7
    assert {(reading.counted_kib, reading.mapped_kib) for reading in merged.values()} <= {(0, 0)}
    assert (place.facts.guests(()), place.facts.trouble) == ((), ())


def test_a_process_is_known_by_what_tells_it_from_any_other(place: Place) -> None:
    one, two = place.facts.identities((place.start("one"), place.start("two")))
    assert one is not None
    assert one != two
    assert [place.facts.lives(identity) for identity in (one, f"{one}0", "1/0", "")] == [True, False, False, False]


def test_the_host_tells_its_numbers(place: Place) -> None:
    memory = place.facts.host_memory()
    assert memory is not place.facts.host_memory(), "each reading is told by it"
    assert (place.facts.cpus() or 0) >= 1
    assert memory.total_kib > 512 * 1024
    assert 0 < memory.free_kib <= memory.free_kib + memory.buffers_kib + memory.cached_kib <= memory.total_kib
    assert memory.available_kib is not None
    assert 64 * 1024 < memory.available_kib < memory.total_kib
    usable_kib, available_kib = place.facts.node_memory(0) or (0, 0)
    assert 0 < available_kib <= usable_kib <= memory.total_kib
    assert place.facts.node_memory(4095) is None
    ksmd = place.facts.ksmd_cpu_seconds()
    assert ksmd is None or (ksmd >= 0 and ksmd == round(ksmd, 2))
    assert place.facts.ksm_counter("run") in (None, 0, 1, 2)
    counted = place.facts.vm_counters("cow_ksm", "thp_split_page")
    assert len(counted) == 2
    assert all(number is None or number >= 0 for number in counted)
    assert place.facts.page_kib() == 4
    assert place.facts.advisor_mode() in (None, "none", "scan-time")


def test_other_processes_that_have_merged_pages_are_no_guests(place: Place) -> None:
    running = (place.start("one"),)
    assert all(one.merging_pages > 0 and one.pid > 0 for one in place.facts.merging_processes(running))
    memory = place.facts.other_processes_memory(running)
    assert memory is not None
    assert (memory.processes > 0) == (memory.kib > 0)
    assert memory.unread >= 0
    profit_bytes = place.facts.general_profit_bytes()
    assert profit_bytes is None or isinstance(profit_bytes, int)
