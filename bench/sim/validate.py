"""Compares the simulator with the real ksmd: the same memory, the same settings, two curves, and how far they differ.

Run by hand, as root: `python -m bench.sim.validate`. Processes with real mergeable memory are scanned flat out, at
5000 pages every 20 ms, and flat out while common pages are rewritten. Printed are the time to 90 % of what merges in
the end, ksmd's CPU time until then, the time and the skipped pages of the first full scans, and pages_sharing while
rewriting. Exact counts, scan by scan, are the tests' (tests/bench/test_sim_kernel.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.sim.driver import FLAT_OUT
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.real_kernel import RealKsmd, lent_ksmd
from bench.sim.real_memory import COMMON, MergeableProcess
from demo.guests import PayloadGuest
from tests.lab.ksm import Ksm
from virtksm.model.snapshot import Settings

EVERY_S = 0.02
SCANS = 18
MAX_S = 60.0
REWRITE_S = 45.0
ADVISOR_SLEEP_MS = 20
HALF_A_CORE = Settings(pages_to_scan=5000, sleep_millisecs=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A moment; everything counts from the run's beginning."""

    t_s: float
    pages_sharing: int
    full_scans: int
    pages_skipped: int
    cpu_seconds: float


Curve = list[Point]


def guests(count: int = 4, *, common: int = 256, zero: int = 32, own: int = 96) -> list[PayloadGuest]:
    """Return guests whose pages do not change."""
    return [
        PayloadGuest(
            name=f"g{number}",
            memory_mib=common + zero + own + 16,
            common_mib=common,
            zero_mib=zero,
            own_mib=own,
            seed=number,
        )
        for number in range(count)
    ]


def measure(
    specs: Sequence[PayloadGuest], settings: Settings | None, *, rewrite_per_s: int, is_over: Callable[[Point], bool]
) -> Curve:
    """Run the real ksmd, by its advisor if there are no settings."""
    with lent_ksmd() as ksmd, ExitStack() as stack:
        processes = [stack.enter_context(MergeableProcess(spec)) for spec in specs]
        ksmd.begin_at_a_full_scan()
        for process in processes if rewrite_per_s else ():
            process.rewrite(COMMON, rewrite_per_s)
        return _watch_real(ksmd, settings, is_over)


def _watch_real(ksmd: RealKsmd, settings: Settings | None, is_over: Callable[[Point], bool]) -> Curve:
    first = ksmd.read()
    if settings is None:
        ksmd.ksm.write(advisor_mode="scan-time", sleep_millisecs=ADVISOR_SLEEP_MS)
    else:
        ksmd.ksm.write(**dict(settings.items()))
    curve: Curve = []
    while not curve or not is_over(curve[-1]):
        now = ksmd.read()
        curve.append(
            Point(
                t_s=now.t_s - first.t_s,
                pages_sharing=now.pages_sharing,
                full_scans=now.full_scans - first.full_scans,
                pages_skipped=now.pages_skipped - first.pages_skipped,
                cpu_seconds=now.cpu_seconds - first.cpu_seconds,
            )
        )
        time.sleep(EVERY_S)
    return curve


def simulate(
    specs: Sequence[PayloadGuest], settings: Settings | None, *, rewrite_per_s: int, is_over: Callable[[Point], bool]
) -> Curve:
    """Run the simulator; the advisor wants to know how long the machine has been up, and what its ksmd has used."""
    ksmd = Ksmd(now_s=time.monotonic(), cpu_seconds=RealKsmd(Ksm()).cpu_seconds())
    sim = SimHost(total_kib=2**25, fill_mib_per_s=1e9, ksmd=ksmd, now_s=ksmd.now_s)
    booted_s = sim.now_s
    sim.set_parameters({"pages_to_scan": 0, "sleep_millisecs": 600_000})
    for spec in specs:
        common = sim.start(spec).regions[0]
        sim.advance(0.01)
        common.set_rewriting(sim.ksmd.trees, rewrite_per_s, booted_s + 0.1)
    sim.advance(booted_s + 0.1 - sim.now_s)
    if settings is None:
        sim.ksmd.switch_advisor_on()
        sim.set_parameters({"sleep_millisecs": ADVISOR_SLEEP_MS})
    else:
        sim.set_parameters(dict(settings.items()))
    begin_s, begin_cpu_seconds = sim.now_s, sim.ksmd.cpu_seconds
    curve: Curve = []
    while not curve or not is_over(curve[-1]):
        curve.append(
            Point(
                t_s=sim.now_s - begin_s,
                pages_sharing=sim.ksmd.trees.pages_sharing,
                full_scans=sim.ksmd.full_scans,
                pages_skipped=sim.ksmd.pages_skipped,
                cpu_seconds=sim.ksmd.cpu_seconds - begin_cpu_seconds,
            )
        )
        sim.advance(EVERY_S)
    return curve


def reached(curve: Curve, pages_sharing: float) -> Point:
    """Return the first moment at which so many pages were saved."""
    return next(point for point in curve if point.pages_sharing >= pages_sharing)


def scan_ends(curve: Curve) -> list[Point]:
    """Return the first moment after each full scan."""
    return [next(point for point in curve if point.full_scans >= scan) for scan in range(1, SCANS + 1)]


def tell(what: str, real: float, simulated: float, unit: str = "") -> None:
    """Print a pair, and the error in percent of the real one."""
    error = f"{(simulated - real) / real * 100:+6.1f} %" if real else "     -"
    print(f"  {what:<34}{real:12.3f}{simulated:12.3f} {unit:<6}{error}", flush=True)


def compare_static(name: str, settings: Settings | None) -> None:
    """Compare merging, and the full scans that follow."""

    def is_over(point: Point) -> bool:
        return point.full_scans > SCANS or point.t_s > MAX_S

    print(f"{name}: 4 processes of 384 MiB (256 common, 32 zero)          real   simulated       error")
    real = measure(guests(), settings, rewrite_per_s=0, is_over=is_over)
    sim = simulate(guests(), settings, rewrite_per_s=0, is_over=is_over)
    tell("pages_sharing in the end", real[-1].pages_sharing, sim[-1].pages_sharing)
    real_90, sim_90 = (reached(curve, 0.9 * curve[-1].pages_sharing) for curve in (real, sim))
    tell("time to 90 % of them", real_90.t_s, sim_90.t_s, "s")
    tell("ksmd's CPU time until then", real_90.cpu_seconds, sim_90.cpu_seconds, "s")
    real_ends, sim_ends = scan_ends(real), scan_ends(sim)
    for which in (real_ends, sim_ends):
        which.insert(0, Point(t_s=0.0, pages_sharing=0, full_scans=0, pages_skipped=0, cpu_seconds=0.0))
    tell(f"time of {SCANS} full scans", real_ends[-1].t_s, sim_ends[-1].t_s, "s")
    tell("ksmd's CPU time in them", real_ends[-1].cpu_seconds, sim_ends[-1].cpu_seconds, "s")
    tell("pages_skipped in them", real_ends[-1].pages_skipped, sim_ends[-1].pages_skipped)
    print("  full scan: ms real / simulated, pages skipped real / simulated")
    for scan in range(1, SCANS + 1):
        times_ms, skipped = [], []
        for ends in (real_ends, sim_ends):
            times_ms.append((ends[scan].t_s - ends[scan - 1].t_s) * 1000)
            skipped.append(ends[scan].pages_skipped - ends[scan - 1].pages_skipped)
        print(f"  {scan:>6}{times_ms[0]:10.0f}{times_ms[1]:8.0f}{skipped[0]:10}{skipped[1]:8}")


def compare_rewriting() -> None:
    """Compare flat-out scanning of two processes that rewrite their common pages in step."""

    def is_over(point: Point) -> bool:
        return point.t_s > REWRITE_S

    per_s = 2000
    specs = guests(2, common=200, zero=0, own=200)
    print(f"rewriting {per_s} common pages a second: 2 processes of 400 MiB      real   simulated       error")
    real = measure(specs, FLAT_OUT, rewrite_per_s=per_s, is_over=is_over)
    sim = simulate(specs, FLAT_OUT, rewrite_per_s=per_s, is_over=is_over)
    for begin_s in range(0, int(REWRITE_S), 5):
        means = []
        for curve in (real, sim):
            sharing = [point.pages_sharing for point in curve if begin_s <= point.t_s < begin_s + 5]
            means.append(sum(sharing) / len(sharing))
        tell(f"pages_sharing, {begin_s} to {begin_s + 5} s", means[0], means[1])
    tell("full scans", real[-1].full_scans, sim[-1].full_scans)
    tell("pages_skipped", real[-1].pages_skipped, sim[-1].pages_skipped)


def main() -> None:
    """Compare what is named on the command line, else all."""
    comparisons: dict[str, Callable[[], None]] = {
        "flat": lambda: compare_static("flat out", FLAT_OUT),
        "half": lambda: compare_static("5000 pages every 20 ms", HALF_A_CORE),
        "advisor": lambda: compare_static("by the advisor", None),
        "rewriting": compare_rewriting,
    }
    for name in sys.argv[1:] or comparisons:
        comparisons[name]()


if __name__ == "__main__":
    main()
