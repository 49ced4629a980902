"""The simulated advisor answers as the kernel's did: what is expected here was read from a real one (Linux 6.18)."""

from bench.sim.advisor import FIRST_PAGES, Advisor
from bench.sim.driver import run_advisor
from bench.sim.host import SimHost
from bench.steps import Start
from demo.guests import PayloadGuest

STORM = [(13.1, 2.68, 2170), (31.6, 10.27, 650), (82.5, 6.32, 920), (55.4, 5.06, 1020), (32.8, 1.2, 3400)]
"""8 guests of 1 GiB, switched on late: the full scan's seconds, ksmd's CPU seconds in it, the pages_to_scan after."""


def test_the_rates_of_a_real_storm_follow() -> None:
    advisor = Advisor(scan_s=8700, change_percent=30, cpu_seconds=693.9)
    pages, now_s, cpu_s = 4340, 0.0, 693.9
    for scan_s, used_s, after in STORM:
        advisor.began_s = now_s
        now_s, cpu_s = now_s + scan_s, cpu_s + used_s
        pages = advisor.end_scan(now_s, cpu_s, pages)
        assert pages == after


def test_its_first_full_scan_is_charged_all_of_ksmds_cpu_time_and_seems_to_have_taken_since_boot() -> None:
    assert Advisor(began_s=20_000.0).end_scan(20_000.2, 1535.9, FIRST_PAGES) == 10
    assert Advisor().end_scan(20_000.0, 804.0, FIRST_PAGES) == 8750


def advised(guests: int) -> set[int]:
    """Return each pages_to_scan of two minutes."""
    starts = [
        Start(at_s=number + 1.0, guest=PayloadGuest(name=f"g{number}", memory_mib=400, own_mib=384, seed=number))
        for number in range(guests)
    ]
    run = run_advisor(SimHost(total_kib=2**24), starts, until_s=120.0)
    return {sample.settings.pages_to_scan or 0 for sample in run.samples}


def test_it_sets_the_rate_after_each_full_scan_of_the_simulated_ksmd() -> None:
    assert advised(0) == {FIRST_PAGES}, "nothing is scanned"
    assert len(advised(1) | advised(4)) > 3
    assert max(advised(4)) <= 30_000
