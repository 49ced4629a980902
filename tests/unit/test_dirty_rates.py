"""Measuring how fast guests' memory changes: each guest in turn, less what it has grown by, faults survived."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.fakes import FakeHypervisor
from virtksm.agent.configuration import Configuration, FreshConfig
from virtksm.agent.dirty_rates import AT_ONCE, EVERY_S, MEASURE_S, RETRY_S, DirtyRates
from virtksm.config.schema import Config
from virtksm.errors import LibvirtRefuses, LibvirtTimeout, VirtksmError
from virtksm.model.snapshot import Guest
from virtksm.values import replace

GIB = 1024 * 1024


def guest(number: int, rss_kib: int = GIB) -> Guest:
    return Guest(uuid=f"uuid {number}", name=f"guest-{number}", domain_id=1, rss_kib=rss_kib)


class Bench:
    """Rates over a fake libvirt, with a clock of its own."""

    def __init__(self, *mib_per_s: int) -> None:
        self.now_s = 1000.0
        self.hypervisor = FakeHypervisor(
            dirty_mib_per_s={guest(number).uuid: rate for number, rate in enumerate(mib_per_s)}
        )
        self.guests = [guest(number) for number in range(len(mib_per_s))]
        self.host: FakeHypervisor | None = self.hypervisor
        self.rates: dict[str, float] = {}
        self.failures: list[VirtksmError] = []
        self.dirty = DirtyRates(
            source=lambda: self.host,
            configuration=Configuration(Config(), lambda: FreshConfig(config=Config())),
            rates=self.rates,
            failing=self.failures.append,
            clock=lambda: self.now_s,
        )
        self.dirty.see(self.guests, is_wanted=True)

    async def step(self, passed_s: float = 0.0) -> None:
        """Let time pass; libvirt's measurements that are over by then are."""
        self.now_s += passed_s
        if passed_s > MEASURE_S:
            self.hypervisor.measuring.clear()
        await self.dirty.measure_when_due()

    async def wait(self) -> None:
        """See that nothing is due, and end waiting as the agent does."""
        waiting = asyncio.ensure_future(self.step())
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})


def test_a_guest_that_cannot_merge_is_not_measured() -> None:
    async def scene() -> None:
        bench = Bench(7, 7)
        bench.rates[bench.guests[0].key] = 7.0
        bench.dirty.see([replace(bench.guests[0], can_merge=False), bench.guests[1]], is_wanted=True)
        await bench.step()
        assert (list(bench.hypervisor.measuring), bench.rates) == ([bench.guests[1].uuid], {})

    asyncio.run(scene())


def test_every_guest_is_measured_a_few_at_a_time_and_again_later() -> None:
    async def scene() -> None:
        bench = Bench(*[7] * (AT_ONCE + 2))
        await bench.step()
        assert list(bench.hypervisor.measuring.values()) == [MEASURE_S] * AT_ONCE
        await bench.step()
        assert len(bench.hypervisor.measuring) == AT_ONCE + 2
        assert bench.rates == {}
        await bench.step(MEASURE_S + 2)
        await bench.step()
        assert set(bench.rates.values()) == {7 * 1024}
        assert len(bench.rates) == AT_ONCE + 2
        assert not bench.hypervisor.measuring, "not again at once"
        await bench.step(EVERY_S)
        assert bench.hypervisor.measuring

    asyncio.run(scene())


def test_what_a_guest_has_grown_by_is_no_change_and_a_guest_that_has_gone_has_no_rate() -> None:
    async def scene() -> None:
        bench = Bench(10, 10)
        await bench.step()
        grown = replace(bench.guests[0], rss_kib=GIB + 6 * MEASURE_S * 1024)
        bench.dirty.see([grown, bench.guests[1]], is_wanted=True)
        await bench.step(MEASURE_S + 2)
        assert bench.rates == {grown.key: 4 * 1024, bench.guests[1].key: 10 * 1024}
        bench.dirty.see([bench.guests[1]], is_wanted=True)
        assert bench.rates.keys() == {bench.guests[1].key}

    asyncio.run(scene())


def test_nothing_is_measured_while_the_policy_does_not_act_nor_without_a_connection() -> None:
    async def scene() -> None:
        bench = Bench(1)
        bench.dirty.see(bench.guests, is_wanted=False)
        await bench.wait()
        assert not bench.hypervisor.measuring
        bench = Bench(1)
        bench.host = None
        await bench.wait()
        assert not bench.hypervisor.measuring

    asyncio.run(scene())


def test_guests_that_ended_or_that_somebody_else_measures_are_left_out_and_tried_again() -> None:
    async def scene() -> None:
        bench = Bench(1, 2, 3)
        del bench.hypervisor.dirty_mib_per_s[bench.guests[0].uuid]
        bench.hypervisor.measuring[bench.guests[1].uuid] = 5
        await bench.step()
        assert set(bench.dirty.measured) == {bench.guests[2].key}
        await bench.step(MEASURE_S + 2)
        assert bench.rates == {bench.guests[2].key: 3 * 1024}
        await bench.step(EVERY_S)
        assert bench.guests[1].key in bench.dirty.measured

    asyncio.run(scene())


def test_after_a_failure_nothing_is_known_and_it_is_tried_again_later_or_over_the_next_connection() -> None:
    class Gone(FakeHypervisor):
        def start_dirty_rate(self, uuid: str, seconds: int) -> None:
            raise LibvirtTimeout("no answer")

    async def scene() -> None:
        bench = Bench(1)
        await bench.step()
        await bench.step(MEASURE_S + 2)
        assert bench.rates
        bench.host = Gone()
        await bench.step(EVERY_S)
        assert (bench.rates, [str(error) for error in bench.failures]) == ({}, ["no answer"])
        bench.host = bench.hypervisor
        bench.dirty.forget()
        bench.dirty.see(bench.guests, is_wanted=True)
        await bench.step()
        assert bench.hypervisor.measuring
        bench.host = Gone()
        await bench.step(EVERY_S)
        await bench.step(EVERY_S)
        bench.host = bench.hypervisor
        await bench.step(RETRY_S)
        assert bench.hypervisor.measuring

    asyncio.run(scene())


@pytest.mark.parametrize("cause", ["not begun", "no result"])
def test_a_guest_that_cannot_be_measured_any_more_has_no_rate(cause: str) -> None:
    async def scene() -> None:
        bench = Bench(5, 6)
        first, second = bench.guests
        await bench.step()
        await bench.step(MEASURE_S + 2)
        assert bench.rates.keys() == {first.key, second.key}
        if cause == "not begun":
            bench.hypervisor.measuring[first.uuid] = 5  # by somebody else
            await bench.step(EVERY_S - MEASURE_S)
        else:
            await bench.step(EVERY_S)
            del bench.hypervisor.dirty_mib_per_s[first.uuid]
            await bench.step(MEASURE_S + 2)
        assert bench.rates.keys() == {second.key}

    asyncio.run(scene())


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_lost_connection_answers_late_is_nothing_to_the_next(*, fails: bool) -> None:
    class Slow(FakeHypervisor):
        def start_dirty_rate(self, uuid: str, seconds: int) -> None:
            answered.wait()
            if fails:
                raise LibvirtTimeout("no answer")

    answered = threading.Event()

    async def scene() -> None:
        bench = Bench(1)
        bench.host = Slow()
        waiting = asyncio.ensure_future(bench.step())
        await asyncio.sleep(0)
        bench.host = bench.hypervisor
        bench.dirty.forget()
        answered.set()
        await waiting
        assert bench.failures == []
        assert bench.dirty.measured == {}
        bench.dirty.see(bench.guests, is_wanted=True)
        await bench.step(EVERY_S)
        assert bench.hypervisor.measuring

    asyncio.run(scene())


def test_a_refusal_is_asked_for_once_and_tried_again_later() -> None:
    class Refusing(FakeHypervisor):
        asked = 0

        def start_dirty_rate(self, uuid: str, seconds: int) -> None:
            self.asked += 1
            raise LibvirtRefuses("access denied")

    async def scene() -> None:
        bench = Bench(1, 2)
        bench.host = refusing = Refusing()
        for times in (1, 2):
            await bench.step(RETRY_S)
            assert (refusing.asked, len(bench.failures)) == (times, times), "the log tells each cause once"

    asyncio.run(scene())
