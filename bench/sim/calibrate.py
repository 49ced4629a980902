"""Measures what ksmd's work costs on this machine, for bench/sim/costs.py; run as root: python -m bench.sim.calibrate.

Each line is one full scan in which all pages fare alike, or all but pages whose cost is known: CPU seconds by ksmd's
schedstat over pages. SIZES says how the costs grow with the trees.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from bench.sim.real_kernel import RealKsmd, lent_ksmd
from bench.sim.real_memory import OWN, MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadGuest

SIZES_MIB = (64, 512, 2048)


def process(name: str, *, common: int = 0, zero: int = 0, own: int = 0, seed: int = 0) -> MergeableProcess:
    """Start a process with so many MiB of each kind."""
    memory_mib = common + zero + own + 16
    return MergeableProcess(
        PayloadGuest(name=name, memory_mib=memory_mib, common_mib=common, zero_mib=zero, own_mib=own, seed=seed)
    )


class Meter:
    """Prints what a full scan cost."""

    def __init__(self, ksmd: RealKsmd) -> None:
        self._ksmd = ksmd

    def scan(self, what: str, pages: int, *, known_s: float = 0.0) -> float:
        """Make a full scan; return the CPU seconds a page, less those known."""
        before_s = self._ksmd.cpu_seconds()
        now = self._ksmd.full_scan()
        each_s = (now.cpu_seconds - before_s - known_s) / pages
        print(
            f"  {what:<34}{each_s * 1e6:8.3f} us a page   shared {now.pages_shared} sharing {now.pages_sharing} "
            f"unshared {now.pages_unshared} volatile {now.pages_volatile}",
            flush=True,
        )
        return each_s


def measure_own(ksmd: RealKsmd, mib: int) -> None:
    """First visits, searches of the unstable tree, changed and skipped pages."""
    meter, pages = Meter(ksmd), mib * PAGES_PER_MIB
    print(f"{mib} MiB of own pages")
    ksmd.ksm.write(smart_scan=1)
    ksmd.begin_at_a_full_scan()
    with process("own", own=mib) as memory:
        meter.scan("first", pages)
        meter.scan("insert", pages)
        meter.scan("insert", pages)
        meter.scan("insert", pages)
        meter.scan("skip", pages)
        meter.scan("insert", pages)
        memory.write(OWN, 0, pages, 1)
        ksmd.ksm.write(smart_scan=0)
        meter.scan("changed", pages)
        before_s = ksmd.cpu_seconds()
    ksmd.forget_ended()
    print(f"  {'forget':<34}{(ksmd.cpu_seconds() - before_s) / pages * 1e6:8.3f} us a page")


def measure_common(ksmd: RealKsmd, mib: int) -> None:
    """Pairs, joins, merged pages, and searches of a stable tree."""
    meter, pages = Meter(ksmd), mib * PAGES_PER_MIB
    print(f"{mib} MiB of common pages in each process")
    ksmd.ksm.write(smart_scan=0)
    ksmd.begin_at_a_full_scan()
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(process(name, common=mib))
        meter.scan("first, of both", 2 * pages)
        meter.scan("insert and pair, of both", 2 * pages)
        merged_s = meter.scan("merged", 2 * pages)
        stack.enter_context(process("c", common=mib))
        meter.scan("first", pages, known_s=merged_s * 2 * pages)
        meter.scan("join", pages, known_s=merged_s * 2 * pages)
        merged_s = meter.scan("merged", 3 * pages)
        stack.enter_context(process("d", own=mib, seed=9))
        meter.scan("first", pages, known_s=merged_s * 3 * pages)
        meter.scan("insert, both trees full", pages, known_s=merged_s * 3 * pages)
        meter.scan("insert, both trees full", pages, known_s=merged_s * 3 * pages)
        stack.enter_context(process("e", zero=mib))
        meter.scan("first of zero, insert of own", pages, known_s=merged_s * 3 * pages)
        meter.scan("join of zero, insert of own", pages, known_s=merged_s * 3 * pages)


def main() -> None:
    """Measure, holding the lock once for each size."""
    sizes = [int(word) for word in sys.argv[1:]] or SIZES_MIB
    for mib in sizes:
        with lent_ksmd() as ksmd:
            measure_own(ksmd, mib)
        with lent_ksmd() as ksmd:
            measure_common(ksmd, mib)
    with lent_ksmd() as ksmd, process("small", own=1):
        ksmd.ksm.write(smart_scan=0)
        scans = 200
        meter_s = ksmd.cpu_seconds()
        for _ in range(scans):
            ksmd.full_scan()
        print(f"a full scan of 1 MiB, and waking: {(ksmd.cpu_seconds() - meter_s) / scans * 1e6:.1f} us")
        ksmd.ksm.write(pages_to_scan=0, sleep_millisecs=4)
        meter_s = ksmd.cpu_seconds()
        ksmd.rest(4.0)
        print(f"parked with sleep 4: {(ksmd.cpu_seconds() - meter_s) / 4.0 * 1e6:.1f} us a second")


if __name__ == "__main__":
    main()
