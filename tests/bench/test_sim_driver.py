"""Scenarios on the simulator: the product's cycle runs on it as on the real ports, and savings come out."""

import pytest

from bench.sim.driver import FLAT_OUT, Event, run_fixed, run_policy
from bench.sim.host import SimHost
from bench.steps import Start, Stop
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.fakes import TargetPolicy
from virtksm.model.report import Outcome
from virtksm.model.snapshot import IDLE

GIB_KIB = 1024 * 1024


def storm(guests: int = 8, every_s: float = 5.0) -> list[Start]:
    return [
        Start(
            at_s=number * every_s,
            guest=PayloadGuest(
                name=f"g{number}", memory_mib=1024, common_mib=512, zero_mib=102, own_mib=400, seed=number
            ),
        )
        for number in range(guests)
    ]


def test_passes_come_at_once_then_once_a_window_and_when_the_policy_wants() -> None:
    policy = TargetPolicy(target=IDLE, next_pass_s=60.0)
    scenario: list[Event] = [*storm(guests=3, every_s=0.1), Stop(at_s=30.0, name="g0")]
    run = run_policy(SimHost(total_kib=16 * GIB_KIB), policy, scenario, until_s=100.0)
    assert [(round(t_s, 3), report.triggers.names) for t_s, report in run.passes] == [
        (0.0, ["connected", "started"]),
        (0.25, ["started"]),
        (30.0, ["stopped"]),
        (90.0, ["timer"]),
    ]
    assert [report.outcome for _, report in run.passes] == [Outcome.APPLIED, *[Outcome.UNCHANGED] * 3]


def test_flat_out_merges_all_and_memory_is_what_guests_hold_less_what_is_saved() -> None:
    host = SimHost(total_kib=16 * GIB_KIB)
    run = run_fixed(host, FLAT_OUT, storm(guests=2, every_s=0.0), until_s=60.0)
    held_kib = 2 * (1014 * 1024 + host.guest_overhead_kib)
    assert sum(guest.rss_kib or 0 for guest in host.measured_guests()) == held_kib
    last = run.samples[-1]
    zeros = 2 * 102 * PAGES_PER_MIB
    assert last.saved_pages == 512 * PAGES_PER_MIB + zeros - zeros // 256
    assert last.ksmd_cpu_seconds == pytest.approx(60.0, rel=0.01)
    assert host.host_memory().free_kib == 16 * GIB_KIB - host.own_kib - held_kib + 4 * last.saved_pages


def test_smart_scan_loses_pages_that_are_rewritten_for_ever() -> None:
    """Measured on the real kernel, too: twins come to be skipped in different scans."""
    scenario = [
        Start(
            at_s=0.0,
            guest=PayloadGuest(
                name=name, memory_mib=500, common_mib=200, own_mib=200, seed=ord(name), rewrite_common_per_s=2000
            ),
        )
        for name in ("a", "b")
    ]
    run = run_fixed(SimHost(total_kib=16 * GIB_KIB), FLAT_OUT, scenario, until_s=60.0)
    highest = max(sample.saved_pages for sample in run.samples)
    assert highest > 180 * PAGES_PER_MIB
    assert run.samples[-1].saved_pages < highest / 2
