"""How fast guests' memory changes: each guest in turn, by measuring or by its disk reads, faults survived."""

import asyncio
import threading
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from tests.fakes import FakeHypervisor
from tests.lab.hang import HANG_S
from virtksm.agent.dirty_rates import (
    MAX_HANGING,
    MEASURE_S,
    PACE_S,
    RETRY_S,
    SAMPLED_KIB_PER_GIB,
    SWAPPED_KIB_PER_S,
    DirtyRates,
    min_turn_s,
    pace_s,
)
from virtksm.errors import LibvirtRefuses, LibvirtUnreachable, VirtksmError
from virtksm.model.snapshot import Guest
from virtksm.values import replace

GIB = 1024 * 1024
SHORT_S = 0.05


def guest(number: int, rss_kib: int = GIB) -> Guest:
    return Guest(uuid=f"uuid {number}", name=f"guest-{number}", domain_id=1, rss_kib=rss_kib)


class Bench:
    """Rates over a fake libvirt, with a clock of its own."""

    def __init__(self, *mib_per_s: int) -> None:
        self.now_s = 1000.0
        self.limit_s = HANG_S
        self.hypervisor = FakeHypervisor(
            dirty_mib_per_s={guest(number).uuid: rate for number, rate in enumerate(mib_per_s)},
            xml={guest(number).uuid: "" for number in range(len(mib_per_s))},
        )
        self.guests = [guest(number) for number in range(len(mib_per_s))]
        self.host: FakeHypervisor | None = self.hypervisor
        self.rates: dict[str, float] = {}
        self.failures: list[VirtksmError] = []
        self.dirty = DirtyRates(
            source=lambda: self.host,
            limit_s=lambda: self.limit_s,
            rates=self.rates,
            failing=self.failures.append,
            clock=lambda: self.now_s,
        )
        self.dirty.see(self.guests, is_wanted=True)

    async def step(self, passed_s: float = 0.0, *, times: int | None = None) -> None:
        """Let time pass, and ask for as many guests as there are; libvirt's measurements that are over by then are."""
        self.now_s += passed_s
        if passed_s > MEASURE_S:
            self.hypervisor.measuring.clear()
        for _ in self.guests[:times]:
            if self.is_due:
                await self.dirty.measure_when_due()
                self.now_s = max(self.now_s, self.dirty.next_s)

    def between_s(self, passed_s: float) -> float:
        """Tell how long after one such step each guest is asked in the next."""
        return passed_s + len(self.guests) * PACE_S

    async def pass_time(self, passed_s: float) -> None:
        """Let time pass, and ask for each guest when it is due; libvirt's measurements end by themselves."""
        end_s = self.now_s + passed_s
        while (due_s := min(map(self.dirty.due_s, self.dirty.turns.values()))) <= end_s:
            self.now_s = max(self.now_s, due_s)
            for turn in self.dirty.turns.values():
                if self.now_s >= turn.then_s + MEASURE_S:
                    self.hypervisor.measuring.pop(turn.now.uuid, None)
            await self.dirty.measure_when_due()
        self.now_s = end_s

    @property
    def is_due(self) -> bool:
        turns = [turn for key, turn in self.dirty.turns.items() if key not in self.dirty.calls.hanging]
        return any(self.now_s >= self.dirty.due_s(turn) for turn in turns)

    async def wait(self) -> None:
        """See that nothing is due, and end waiting as the agent does."""
        waiting = asyncio.ensure_future(self.dirty.measure_when_due())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_a_guest_that_cannot_merge_is_not_measured() -> None:
    bench = Bench(7, 7)
    bench.rates[bench.guests[0].key] = 7.0
    bench.dirty.see([replace(bench.guests[0], can_merge=False), bench.guests[1]], is_wanted=True)
    await bench.step()
    assert (list(bench.hypervisor.measuring), bench.rates) == ([bench.guests[1].uuid], {})


async def test_every_guest_is_measured_in_turn_and_again_later() -> None:
    bench = Bench(7, 8, 9)
    await bench.step(times=1)
    assert list(bench.hypervisor.measuring.values()) == [MEASURE_S]
    await bench.step(times=2)
    assert list(bench.hypervisor.measuring.values()) == [MEASURE_S] * 3
    assert bench.rates == {}
    await bench.wait()
    await bench.step(MEASURE_S + 2)
    assert list(bench.rates.values()) == [7 * 1024, 8 * 1024, 9 * 1024]
    assert len(bench.hypervisor.measuring) == 3, "again at once"
    await bench.wait()


def test_no_guest_holds_up_the_others_for_longer_than_a_failure_does_nor_where_nothing_is_sampled() -> None:
    bench, huge = Bench(1), Guest(uuid="u", name="vm", rss_kib=1024 * GIB)
    assert pace_s(huge, 0.5) == RETRY_S
    bench.dirty.see([huge], is_wanted=True, swapped_kib=1024 * GIB)
    assert bench.dirty.turn_every_s == RETRY_S
    bench.dirty.start_s = bench.now_s + 1
    assert bench.dirty.turn_every_s == min_turn_s(1)


async def test_of_many_guests_each_pauses_so_that_libvirt_is_asked_at_a_bounded_pace() -> None:
    bench = Bench(*[1] * 200)
    await bench.pass_time(200 * PACE_S - 1)
    assert len(bench.hypervisor.ever_measured) == 199
    assert len(bench.hypervisor.measuring) == MEASURE_S / PACE_S, "between their two samples at once"
    await bench.pass_time(MEASURE_S + 2)
    assert len(bench.rates) == 200


@pytest.mark.parametrize(
    ("rss_kib", "max_kib", "swapped_gib", "apart_s"),
    [
        (4 * GIB, None, 0.05, PACE_S),
        (64 * GIB, None, 0.0, 8.0),
        (GIB, 64 * GIB, 0.0, 8.0),
        (4 * GIB, None, 10.0, 4 * SAMPLED_KIB_PER_GIB * 0.2 / SWAPPED_KIB_PER_S),
    ],
)
async def test_after_a_large_guest_and_while_much_is_in_swap_the_next_one_waits(
    rss_kib: int, max_kib: int | None, swapped_gib: float, apart_s: float
) -> None:
    """What QEMU samples while it is in swap is read from there, in no order, and pushes other memory out."""
    bench = Bench(*[1] * 10)
    guests = [replace(one, rss_kib=rss_kib, max_kib=max_kib) for one in bench.guests]
    bench.dirty.see(guests, is_wanted=True, swapped_kib=int(swapped_gib * GIB))
    began_s, passed_s = [], 3 * 3600.0
    start = bench.hypervisor.start_dirty_rate

    def note(uuid: str, seconds: int) -> None:
        began_s.append(bench.now_s)
        start(uuid, seconds)

    bench.hypervisor.start_dirty_rate = note  # type: ignore[method-assign]  # a fake's
    await bench.pass_time(passed_s)
    assert min(later - earlier for earlier, later in pairwise(began_s)) == pytest.approx(apart_s)
    assert len(began_s) >= 0.9 * passed_s / max(apart_s, min_turn_s(10) / 10)


@pytest.mark.parametrize("guests", [3, 122, 200])
async def test_measurements_begin_apart_also_after_a_failure(guests: int) -> None:
    bench, began_s, fails_s = Bench(*[1] * guests), [], 1000.0 + 2.5 * min_turn_s(guests)

    @dataclass
    class Timed(FakeHypervisor):
        def start_dirty_rate(self, uuid: str, seconds: int) -> None:
            if len(bench.failures) == 0 and bench.now_s >= fails_s:
                raise LibvirtUnreachable("no answer")
            FakeHypervisor.start_dirty_rate(self, uuid, seconds)
            began_s.append(bench.now_s)

    bench.host = bench.hypervisor = Timed(**vars(bench.hypervisor))
    await bench.pass_time(RETRY_S + 6 * min_turn_s(guests))
    assert len(bench.failures) == 1
    assert len(began_s) > 4 * guests
    assert min(later - earlier for earlier, later in pairwise(began_s)) == PACE_S


async def test_what_a_guest_has_grown_by_is_no_change_and_a_guest_that_has_gone_has_no_rate() -> None:
    bench = Bench(10, 10)
    passed_s = bench.between_s(MEASURE_S + 2)
    await bench.step()
    grown = replace(bench.guests[0], rss_kib=GIB + 6 * int(passed_s) * 1024)
    bench.dirty.see([grown, bench.guests[1]], is_wanted=True)
    await bench.step(MEASURE_S + 2)
    assert bench.rates == {grown.key: 4 * 1024, bench.guests[1].key: 10 * 1024}
    bench.dirty.see([bench.guests[1]], is_wanted=True)
    assert bench.rates.keys() == {bench.guests[1].key}


async def test_nothing_is_measured_while_the_policy_does_not_act_nor_without_a_connection() -> None:
    bench = Bench(1)
    bench.dirty.see(bench.guests, is_wanted=False)
    await bench.wait()
    assert not bench.hypervisor.measuring
    bench = Bench(1)
    bench.host = None
    await bench.wait()
    assert not bench.hypervisor.measuring


async def test_guests_that_ended_or_that_somebody_else_measures_are_left_out_and_tried_again() -> None:
    bench = Bench(1, 2, 3)
    del bench.hypervisor.dirty_mib_per_s[bench.guests[0].uuid]
    bench.hypervisor.measuring[bench.guests[1].uuid] = 5
    await bench.step()
    assert {key for key, turn in bench.dirty.turns.items() if turn.is_measuring} == {bench.guests[2].key}
    await bench.step(MEASURE_S + 2)
    assert bench.rates == {bench.guests[2].key: 3 * 1024}
    await bench.step(min_turn_s(3))
    assert bench.guests[1].uuid in bench.hypervisor.measuring
    bench.hypervisor.xml.clear()
    await bench.step(min_turn_s(3))
    assert bench.rates == {}
    assert not bench.is_due, "before a pass has seen that they ended"


async def test_after_a_failure_nothing_is_known_and_it_is_tried_again_later_or_over_the_next_connection() -> None:
    class Gone(FakeHypervisor):
        def start_dirty_rate(self, uuid: str, seconds: int) -> None:
            raise LibvirtUnreachable("no answer")

    bench = Bench(1)
    await bench.step()
    await bench.step(MEASURE_S + 2)
    assert bench.rates
    bench.host = Gone(xml=bench.hypervisor.xml)
    await bench.step(min_turn_s(3))
    assert (bench.rates, [str(error) for error in bench.failures]) == ({}, ["no answer"])
    bench.host = bench.hypervisor
    bench.dirty.forget()
    bench.dirty.see(bench.guests, is_wanted=True)
    await bench.step()
    assert bench.hypervisor.measuring
    bench.host = Gone(xml=bench.hypervisor.xml)
    await bench.step(min_turn_s(3))
    await bench.step(min_turn_s(3))
    bench.host = bench.hypervisor
    await bench.step(RETRY_S)
    assert bench.hypervisor.measuring


@pytest.mark.parametrize("cause", ["not over", "no result"])
async def test_a_guest_that_cannot_be_measured_any_more_has_no_rate(cause: str) -> None:
    bench = Bench(5, 6)
    first, second = bench.guests
    await bench.step()
    await bench.step(MEASURE_S + 2)
    assert bench.rates.keys() == {first.key, second.key}
    if cause == "not over":
        await bench.step(MEASURE_S - 1)
        del bench.hypervisor.measuring[second.uuid]
        await bench.step(2)
    else:
        del bench.hypervisor.dirty_mib_per_s[first.uuid]
        await bench.step(MEASURE_S + 2)
    assert bench.rates.keys() == {second.key}


@pytest.mark.parametrize("fails", [True, False])
async def test_what_a_lost_connection_answers_late_is_nothing_to_the_next(*, fails: bool) -> None:
    class Slow(FakeHypervisor):
        def start_dirty_rate(self, uuid: str, seconds: int) -> None:
            answered.wait()
            if fails:
                raise LibvirtUnreachable("no answer")

    answered = threading.Event()
    bench = Bench(1)
    bench.host = Slow(xml=bench.hypervisor.xml)
    waiting = asyncio.ensure_future(bench.step())
    await asyncio.sleep(0)
    bench.host = bench.hypervisor
    bench.dirty.forget()
    answered.set()
    await waiting
    assert bench.failures == []
    assert bench.dirty.turns == {}
    bench.dirty.see(bench.guests, is_wanted=True)
    await bench.step(min_turn_s(3))
    assert bench.hypervisor.measuring


@dataclass
class Refusing(FakeHypervisor):
    """libvirt under the fine-grained rules: statistics may be read, and nothing measured."""

    asked: int = 0

    def start_dirty_rate(self, uuid: str, seconds: int) -> None:
        self.asked += 1
        raise LibvirtRefuses("access denied")


async def test_a_refusal_is_asked_for_once_and_tried_again_later() -> None:
    bench = Bench(1, 2)
    bench.host = refusing = Refusing(xml=bench.hypervisor.xml)
    for times in (1, 2):
        await bench.step(RETRY_S)
        assert (refusing.asked, len(bench.failures)) == (times, times), "the log tells each cause once"


@pytest.mark.parametrize("refuses", ["all guests", "one guest"])
async def test_a_guest_that_is_not_measured_changes_as_fast_as_it_reads_from_disk(refuses: str) -> None:
    bench = Bench(1, 1, 1)
    fast, slow, diskless = bench.guests
    if refuses == "all guests":
        bench.host = bench.hypervisor = Refusing(xml=bench.hypervisor.xml)
    else:
        for one in bench.guests:
            bench.hypervisor.measuring[one.uuid] = 5  # by somebody else, or QEMU cannot
    reads = bench.hypervisor.read_bytes
    reads.update({fast.uuid: 5 << 30, slow.uuid: 5 << 30})
    await bench.step()
    assert bench.rates == {}
    reads[fast.uuid] += 120 << 20
    reads[slow.uuid] += 1 << 19  # less than all of its memory in a day, which is assumed
    grown = replace(fast, rss_kib=GIB + 30 * 1024)
    bench.dirty.see([grown, slow, diskless], is_wanted=True)
    bench.now_s += min_turn_s(3)
    await bench.step()
    assert bench.rates == {fast.key: pytest.approx((120 - 30) * 1024 / bench.between_s(min_turn_s(3)))}
    reads[fast.uuid] = 0  # its disk was replaced
    bench.now_s += min_turn_s(3)
    await bench.step()
    assert bench.rates == {}


async def test_a_guest_that_libvirt_measures_as_0_changes_as_fast_as_it_reads_below_1_mib_a_second() -> None:
    bench = Bench(0, 0, 0, 0, 3)
    slow, fast, growing, diskless, busy = bench.guests
    reads, passed_s = bench.hypervisor.read_bytes, bench.between_s(MEASURE_S + 1.5)
    reads.update(dict.fromkeys((slow.uuid, fast.uuid, growing.uuid, busy.uuid), 5 << 30))
    await bench.step()
    for one, kib_per_s in ((slow, 600), (fast, 7000), (growing, 600), (busy, 7000)):
        reads[one.uuid] += kib_per_s * 1024 * int(passed_s)
    grown = replace(growing, rss_kib=GIB + 400 * int(passed_s))
    bench.dirty.see([slow, fast, grown, diskless, busy], is_wanted=True)
    await bench.step(MEASURE_S + 1.5)
    assert bench.rates == {slow.key: 600, fast.key: 1024, growing.key: 200, diskless.key: 0, busy.key: 3 * 1024}
    await bench.step(MEASURE_S + 2)
    assert bench.rates[slow.key] == 0, "what it read before counts no more"


async def test_what_a_guest_reads_while_it_is_not_measured_is_not_counted() -> None:
    bench = Bench(*[0] * 200)
    first, reads = bench.guests[0], bench.hypervisor.read_bytes
    reads[first.uuid] = 0
    await bench.pass_time(MEASURE_S + 1)
    assert bench.rates == {first.key: 0}
    reads[first.uuid] += 1 << 30
    await bench.pass_time(200 * PACE_S - MEASURE_S - 1)
    assert bench.rates[first.key] == 0
    reads[first.uuid] += (MEASURE_S + 1) * 100 * 1024
    await bench.pass_time(MEASURE_S + 1)
    assert bench.rates[first.key] == 100


@dataclass
class Hanging(FakeHypervisor):
    """libvirt, where the monitors of some guests answer no call until they are `released`."""

    stuck: frozenset[str] = frozenset()
    released: threading.Event = field(default_factory=threading.Event)

    def start_dirty_rate(self, uuid: str, seconds: int) -> None:
        if uuid in self.stuck:
            self.released.wait()
        FakeHypervisor.start_dirty_rate(self, uuid, seconds)


async def test_a_guest_whose_monitor_hangs_costs_only_itself_its_rate() -> None:
    bench = Bench(1, 2, 3)
    first, second, third = bench.guests
    host = Hanging(**vars(bench.hypervisor), stuck=frozenset({second.uuid}))
    bench.host = bench.hypervisor = host
    for bench.limit_s in (HANG_S, SHORT_S, HANG_S):  # short for the one that hangs
        await bench.step(times=1)
    assert [second.name in str(error) for error in bench.failures] == [True]
    await bench.step(MEASURE_S + 2)
    assert bench.rates.keys() == {first.key, third.key}
    await bench.step(RETRY_S)
    assert len(bench.failures) == 1, "not asked while its call has not returned"
    (thread,) = (one for one in threading.enumerate() if second.name in one.name)
    host.stuck = frozenset()
    host.released.set()
    thread.join()
    await asyncio.sleep(0)
    await bench.step(RETRY_S)
    await bench.step(MEASURE_S + 2)
    assert bench.rates[second.key] == 2 * 1024


async def test_where_many_guests_hang_libvirt_does_and_is_asked_again_later() -> None:
    bench = Bench(*range(MAX_HANGING + 3))
    bench.limit_s = SHORT_S
    host = Hanging(xml=bench.hypervisor.xml, stuck=frozenset(one.uuid for one in bench.guests))
    bench.host = bench.hypervisor = host
    await bench.step()
    assert len(bench.failures) == MAX_HANGING + 1
    await bench.wait()
    host.released.set()


async def test_calls_that_never_return_are_those_of_the_lost_connection_alone() -> None:
    bench = Bench(*range(MAX_HANGING + 3))
    bench.limit_s = SHORT_S
    host = Hanging(xml=bench.hypervisor.xml, stuck=frozenset(one.uuid for one in bench.guests))
    working, bench.host = bench.hypervisor, host
    bench.hypervisor = host
    await bench.step()
    assert len(bench.failures) == MAX_HANGING + 1
    bench.host = bench.hypervisor = working
    bench.limit_s = HANG_S
    bench.dirty.forget()
    bench.dirty.see(bench.guests, is_wanted=True)
    await bench.step()
    await bench.step(MEASURE_S + 2)
    assert bench.rates.keys() == {one.key for one in bench.guests}
    host.released.set()
