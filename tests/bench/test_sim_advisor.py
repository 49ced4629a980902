"""The simulated advisor answers as the kernel's did: what is expected here was read from a real one (Linux 6.18)."""

from __future__ import annotations

import pytest

from bench.sim.advisor import FIRST_PAGES, Advisor
from bench.sim.driver import KERNEL_DEFAULT, SwitchAdvisorOn, run_fixed
from bench.sim.host import SimHost
from bench.steps import Start
from demo.guests import PayloadGuest
from virtksm.errors import SettingsRefused

STORM = [(13.1, 2.68, 2170), (31.6, 10.27, 650), (82.5, 6.32, 920), (55.4, 5.06, 1020), (32.8, 1.2, 3400)]
"""8 guests of 1 GiB, switched on late: the full scan's seconds, ksmd's CPU seconds in it, the pages_to_scan after."""


def test_the_rates_of_a_real_storm_follow() -> None:
    advisor = Advisor(scan_s=8700, change_percent=30, cpu_seconds=693.9)
    pages, now_s, cpu_s = 4340, 0.0, 693.9
    for scan_s, used_s, after in STORM:
        advisor.begin_scan(now_s)
        now_s, cpu_s = now_s + scan_s, cpu_s + used_s
        pages = advisor.end_scan(now_s, cpu_s, pages)
        assert pages == after


def test_its_first_scan_is_charged_all_of_ksmds_cpu_time() -> None:
    empty = Advisor()
    empty.begin_scan(20_000.0)
    assert empty.end_scan(20_000.2, 1535.9, FIRST_PAGES) == 10


def test_a_scan_that_began_before_it_seems_to_have_taken_since_boot() -> None:
    assert Advisor().end_scan(20_000.0, 804.0, FIRST_PAGES) == 8750


def advised(guests: int, until_s: float) -> SimHost:
    host = SimHost(total_kib=2**24)
    starts = [
        Start(at_s=number + 1.0, guest=PayloadGuest(name=f"g{number}", memory_mib=400, own_mib=384, seed=number))
        for number in range(guests)
    ]
    run_fixed(host, KERNEL_DEFAULT, [SwitchAdvisorOn(at_s=0.0), *starts], until_s=until_s)
    return host


def test_it_keeps_within_its_bounds() -> None:
    pages = {advised(guests, until_s).ksmd.pages_to_scan for guests in (0, 1, 4) for until_s in (30.0, 60.0, 120.0)}
    assert FIRST_PAGES in pages
    assert len(pages) > 3
    assert max(pages) <= 30_000


def test_nobody_else_sets_its_pages() -> None:
    host = advised(0, 1.0)
    assert host.facts.advisor_mode() == "scan-time"
    with pytest.raises(SettingsRefused):
        host.set_parameters({"pages_to_scan": 100})
    host.set_parameters({"sleep_millisecs": 10})
    assert host.ksmd.sleep_millisecs == 10
