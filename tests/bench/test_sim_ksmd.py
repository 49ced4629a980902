"""The simulated ksmd, case by case as mm/ksm.c has it; test_sim_kernel.py compares with the kernel."""

import pytest

from bench.sim.costs import KsmdCosts, wakes_at_s
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.visit import Rules
from demo.guests import PAGES_PER_MIB, PayloadGuest
from virtksm.model.snapshot import IDLE

ONE_MIB = PAGES_PER_MIB
FULL_SCAN_S = 10.3
AT_ONCE_MIB_PER_S = 1e9


def host(**rules: bool) -> SimHost:
    """A host whose ksmd makes one full scan every ten seconds, and whose guests are filled at once."""
    ksmd = Ksmd(rules=Rules(**rules), pages_to_scan=10**9, sleep_millisecs=10_000)
    return SimHost(total_kib=16 * 1024 * 1024, ksmd=ksmd, fill_mib_per_s=AT_ONCE_MIB_PER_S)


def guest(name: str, *, common: int = 0, zero: int = 0, own: int = 0) -> PayloadGuest:
    seed = sum(map(ord, name))
    return PayloadGuest(name=name, memory_mib=1024, common_mib=common, zero_mib=zero, own_mib=own, seed=seed)


def full_scan(sim: SimHost) -> None:
    before = sim.ksmd.full_scans
    while sim.ksmd.full_scans == before:
        sim.advance(FULL_SCAN_S / 4)


def counters(sim: SimHost) -> tuple[int, int, int, int]:
    trees = sim.ksmd.trees
    return trees.pages_shared, trees.pages_sharing, trees.pages_unshared, trees.pages_volatile


@pytest.mark.parametrize(("checksum_first", "merged_at"), [(True, 2), (False, 1)])
def test_a_newcomer_joins_merged_pages_at_its_second_visit_and_before_linux_6_11_at_its_first(
    checksum_first: bool, merged_at: int
) -> None:
    sim = host(checksum_first=checksum_first)
    for name in ("a", "b"):
        sim.start(guest(name, common=1))
    full_scan(sim)
    full_scan(sim)
    sim.start(guest("late", common=1))
    for visit in (1, 2):
        full_scan(sim)
        assert counters(sim)[1] == ONE_MIB * (2 if visit >= merged_at else 1)


def test_a_guest_that_ends_shows_in_the_counters_when_ksmd_has_done_with_the_current_one() -> None:
    sim = host()
    for name in ("a", "b"):
        sim.start(guest(name, common=1))
    full_scan(sim)
    full_scan(sim)
    sim.set_parameters({"pages_to_scan": 0})
    sim.stop("b")
    sim.advance(60.0)
    assert sim.saved_pages == 0
    assert counters(sim) == (ONE_MIB, ONE_MIB, 0, 0)
    sim.set_parameters({"pages_to_scan": 10**6, "sleep_millisecs": 20})
    sim.advance(1.0)
    assert counters(sim) == (ONE_MIB, 0, 0, 0)


def test_a_batch_ends_with_the_full_scan() -> None:
    sim = host()
    sim.start(guest("a", own=1))
    sim.set_parameters({"pages_to_scan": 2 * ONE_MIB - 1, "sleep_millisecs": 1000})
    sim.advance(1.5)
    assert sim.ksmd.pages_scanned == ONE_MIB


def test_a_changed_sleep_wakes_idling_costs_nothing_and_pages_0_with_sleep_0_spins() -> None:
    sim = host()
    sim.start(guest("a", own=1))
    full_scan(sim)
    scanned = sim.ksmd.pages_scanned
    sim.set_parameters({"pages_to_scan": 10, "sleep_millisecs": 10_000})
    sim.advance(1.0)
    assert sim.ksmd.pages_scanned == scanned
    sim.set_parameters({"sleep_millisecs": 9_000})
    sim.advance(1.0)
    assert sim.ksmd.pages_scanned == scanned + 10
    sim.set_parameters(dict(IDLE.items()))
    cpu_seconds = sim.ksmd.cpu_seconds
    sim.advance(3600.0)
    assert (sim.ksmd.pages_scanned, sim.ksmd.cpu_seconds - cpu_seconds < 0.04) == (scanned + 10, True)
    sim.set_parameters({"pages_to_scan": 0, "sleep_millisecs": 0})
    cpu_seconds = sim.ksmd.cpu_seconds
    sim.advance(10.0)
    assert sim.ksmd.cpu_seconds - cpu_seconds == pytest.approx(10.0, rel=0.001)


def test_sleep_ends_on_the_timer_wheel() -> None:
    for sleep_millisecs, wakes_s in ((1, 0.008), (20, 0.024), (252, 0.256), (1000, 1.024), (10_000, 10.24)):
        assert wakes_at_s(0.0, sleep_millisecs) == pytest.approx(wakes_s)


def test_how_time_is_cut_makes_no_difference() -> None:
    def play(step_s: float) -> tuple[int, int, int]:
        sim = SimHost(total_kib=16 * 1024 * 1024, ksmd=Ksmd(pages_to_scan=700, sleep_millisecs=20))
        sim.start(guest("a", common=20, own=30))
        sim.start(guest("b", common=20, zero=10, own=3))
        while sim.now_s < 17.0 - step_s / 2:
            sim.advance(step_s)
        return sim.saved_pages, sim.ksmd.full_scans, sim.ksmd.pages_scanned // 7000

    assert play(0.0101) == play(1.7) == play(17.0)


def test_a_whole_batch_takes_its_work_and_its_sleep() -> None:
    costs = KsmdCosts(first_s=10e-6, wake_s=0.0, full_scan_s=0.0)
    sim = SimHost(
        total_kib=16 * 1024 * 1024,
        ksmd=Ksmd(costs=costs, pages_to_scan=1000, sleep_millisecs=20),
        fill_mib_per_s=AT_ONCE_MIB_PER_S,
    )
    sim.start(guest("a", own=1000))
    sim.advance(1.0)
    # 10 ms of work end in the third jiffy; 5 jiffies and what is left of that one are slept: a batch every 32 ms.
    assert sim.ksmd.pages_scanned == pytest.approx(1.0 / 0.032 * 1000, rel=0.05)
