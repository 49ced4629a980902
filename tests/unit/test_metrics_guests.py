"""Savings by guest: read beside the loop, seldom, bounded in number, and adding up to what the kernel says."""

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import LOCAL_HOST, FakeFacts
from tests.lab.hang import HANG_S
from virtksm.agent.metrics.guests import GuestLedger, GuestSavings
from virtksm.guests.process import GuestProcess, ProcessKsm
from virtksm.model.snapshot import Guest, KsmState, Settings, Snapshot, Source
from virtksm.values import replace

PAGE = 4096
ONE, TWO, HIDDEN = (Guest(uuid=f"u{number}", name=f"guest{number}", rss_kib=4096) for number in (1, 2, 3))
SNAPSHOT = Snapshot(
    taken_s=1.0,
    source=Source.LOCAL,
    host=LOCAL_HOST,
    ksm=KsmState(settings=Settings(pages_to_scan=0, sleep_millisecs=10_000)),
    guests=(ONE, TWO, HIDDEN),
)


def facts() -> FakeFacts:
    """Two guests of 300 and 100 merging pages, 10 zero pages, one that may not be read, and 100 pages of others."""
    return FakeFacts(
        of_guests={
            "u1": GuestProcess(arguments=(), ksm=ProcessKsm(merging_pages=300, zero_pages=10, rmap_items=500)),
            "u2": GuestProcess(arguments=(), ksm=ProcessKsm(merging_pages=100, zero_pages=0, rmap_items=500)),
            "u3": GuestProcess(arguments=(), ksm=None),
        },
        counters={"pages_shared": 250, "pages_sharing": 250, "ksm_zero_pages": 10},
        profit_bytes=-5,
    )


def savings_of(told: FakeFacts, max_shown: int = 2) -> GuestSavings | None:
    return asyncio.run(GuestLedger(told).read(SNAPSHOT, max_shown))


def test_the_shares_and_what_is_left_add_up_to_what_the_host_saves() -> None:
    found = GuestSavings(
        shown={("guest1", "u1"): (150 + 10) * PAGE}, other_bytes=50 * PAGE, unattributed_bytes=50 * PAGE, unaccounted=1
    )
    assert savings_of(facts(), 1) == found
    blind = GuestSavings(shown={}, other_bytes=0, unattributed_bytes=260 * PAGE, unaccounted=3)
    assert savings_of(replace(facts(), of_guests={})) == blind, "without rights"
    assert savings_of(replace(facts(), counters={"pages_shared": None})) is None, "without KSM"


def test_what_huge_pages_gave_back_is_its_guests() -> None:
    guests = (replace(ONE, freed_kib=40), TWO, replace(HIDDEN, freed_kib=8))
    found = asyncio.run(GuestLedger(facts()).read(replace(SNAPSHOT, guests=guests), 1))
    assert found == GuestSavings(
        shown={("guest1", "u1"): (150 + 10 + 10) * PAGE},
        other_bytes=50 * PAGE,
        unattributed_bytes=(50 + 2) * PAGE,
        unaccounted=1,
    )


@dataclass
class SlowFacts(FakeFacts):
    """Facts that come when the test lets them."""

    may_answer: threading.Event = field(default_factory=threading.Event)
    looks: int = 0

    def processes(self, running: tuple[Guest, ...]) -> tuple[GuestProcess | None, ...]:
        self.looks += 1
        self.may_answer.wait(HANG_S)
        return super().processes(running)


def slow() -> SlowFacts:
    known = facts()
    return SlowFacts(of_guests=known.of_guests, counters=known.counters, profit_bytes=known.profit_bytes)


async def test_who_asks_again_soon_gets_the_same_look() -> None:
    told = slow()
    told.may_answer.set()
    ledger = GuestLedger(told)
    first, second = await asyncio.gather(ledger.read(SNAPSHOT, 2), ledger.read(SNAPSHOT, 2))
    assert first is second is not None
    assert told.looks == 1


async def test_a_look_that_hangs_is_left_alone_and_one_thread_waits_for_it() -> None:
    told = slow()
    ledger = GuestLedger(told, limit_s=0.05)
    assert await ledger.read(SNAPSHOT, 2) is None
    assert await ledger.read(SNAPSHOT, 2) is None
    assert ledger.profit_bytes(SNAPSHOT) == -5, "no process is looked at for it"
    gave_back = replace(SNAPSHOT, ksm=replace(SNAPSHOT.ksm, freed_kib=4))
    assert ledger.profit_bytes(gave_back) == 4096 - 5
    assert told.looks == 1
    told.may_answer.set()


@pytest.mark.parametrize("last", [None, replace(SNAPSHOT, source=Source.LIBVIRT)])
def test_another_hosts_guests_are_not_looked_for_here(last: Snapshot | None) -> None:
    told = slow()
    ledger = GuestLedger(told)
    assert asyncio.run(ledger.read(last, 2)) is None
    assert ledger.profit_bytes(last) is None
    assert told.looks == 0


def test_those_on_which_most_is_saved_are_shown_and_stay_shown_until_far_more_is_saved_on_another() -> None:
    ledger = GuestLedger(facts())

    def shown(*saved: tuple[Guest, int]) -> list[str]:
        return sorted(name for name, _ in ledger.choose(list(saved), 0, len(saved), 2).shown)

    assert shown((TWO, 0), (HIDDEN, 0)) == ["guest2", "guest3"], "the first that were started"
    assert shown((ONE, 0), (TWO, 0), (HIDDEN, 0)) == ["guest2", "guest3"]
    assert shown((ONE, 10), (TWO, 20), (HIDDEN, 4)) == ["guest1", "guest2"]
    assert shown((ONE, 10), (TWO, 20), (HIDDEN, 20)) == ["guest1", "guest2"]
    assert shown((ONE, 10), (TWO, 20), (HIDDEN, 21)) == ["guest2", "guest3"]
    assert shown((ONE, 10), (HIDDEN, 21)) == ["guest1", "guest3"]


saved_lists = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 1 << 40)), max_size=20, unique_by=lambda one: one[0]
).map(lambda ones: [(Guest(uuid=f"u{number}", name=f"g{number}"), count) for number, count in ones])


@given(st.lists(st.tuples(saved_lists, st.integers(0, 10)), max_size=5))
def test_never_more_than_wanted_are_shown_and_nothing_is_lost(
    readings: list[tuple[list[tuple[Guest, int]], int]],
) -> None:
    ledger = GuestLedger(facts())
    for saved, max_shown in readings:
        found = ledger.choose(saved, 1 << 60, len(saved), max_shown)
        assert len(found.shown) == min(max_shown, len(saved))
        assert sum(found.shown.values()) + found.other_bytes + found.unattributed_bytes == 1 << 60
