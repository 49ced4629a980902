"""The simulator against the real ksmd: counters after each full scan of the same memory, which are exact.

Time is compared by bench/sim/validate.py, by hand: tests judge no speed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from bench.sim.advisor import FIRST_PAGES, Advisor
from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.memory import Kind
from bench.sim.real_kernel import RealKsmd, known_pages_of_others
from bench.sim.real_memory import COMMON, MergeableProcess
from bench.sim.visit import Rules
from demo.guests import PayloadGuest
from tests.lab.ksm import Ksm

pytestmark = pytest.mark.real

Counts = dict[str, int]


def spec(name: str, *, common: int = 3, zero: int = 1, own: int = 2, seed: int = 0) -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=64, common_mib=common, zero_mib=zero, own_mib=own, seed=seed)


@dataclass
class Both:
    """The same guests on the kernel and in the simulator."""

    real: RealKsmd
    stack: ExitStack
    sim: SimHost
    processes: dict[str, MergeableProcess]
    others: int = 0

    def start(self, guest: PayloadGuest) -> None:
        self.processes[guest.name] = self.stack.enter_context(MergeableProcess(guest))
        self.sim.start(guest)
        self.sim.advance(0.001)

    def write_common(self, name: str, low: int, high: int, version: int) -> None:
        self.processes[name].write(COMMON, low, high, version)
        region = next(one for one in self.sim.guests_by_name[name].regions if one.kind is Kind.COMMON)
        region.write(self.sim.ksmd.trees, low, high, version)

    def end(self, name: str) -> None:
        self.processes.pop(name).end()
        self.sim.stop(name)

    def full_scan(self) -> tuple[Counts, Counts]:
        """Make one full scan of each; return the kernel's counts and the simulator's, those of events as changes."""
        counts = []
        for read, scan in ((self._read_real, self._scan_real), (self._read_sim, self._scan_sim)):
            before = read()
            scan()
            after = read()
            counts.append({name: after[name] - (before[name] if name in _EVENTS else 0) for name in after})
        return counts[0], counts[1]

    def agree(self) -> None:
        real, sim = self.full_scan()
        # Whoever else has mergeable memory (guests of other tests) is counted, too: then numbers may differ by as much.
        ours = {process.pid for process in self.processes.values()}
        self.others = max(self.others, known_pages_of_others(ours))
        assert {name: pytest.approx(count, abs=self.others) for name, count in sim.items()} == real

    def _scan_real(self) -> None:
        self.real.full_scan()

    def _scan_sim(self) -> None:
        target = self.sim.ksmd.full_scans + 1
        while self.sim.ksmd.full_scans < target:
            self.sim.advance(1.0)

    def _read_real(self) -> Counts:
        return {name: self.real.ksm.read(name) for name in _COUNTS}

    def _read_sim(self) -> Counts:
        counters = {name: self.sim.facts.ksm_counter(name) for name in _COUNTS}
        return {name: count for name, count in counters.items() if count is not None}


_EVENTS = ("pages_scanned", "pages_skipped")
_COUNTS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", *_EVENTS)


@pytest.fixture
def both(ksm: Ksm) -> Iterator[Both]:
    release = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
    ksmd = Ksmd(rules=Rules(checksum_first=release >= (6, 11)), pages_to_scan=2**31, sleep_millisecs=10_000)
    sim = SimHost(total_kib=2**24, ksmd=ksmd, fill_mib_per_s=1e9)
    with ExitStack() as stack:
        real = RealKsmd(ksm)
        real.begin_at_a_full_scan()
        yield Both(real, stack, sim, {})


def test_static_memory_merges_and_is_skipped_alike_for_25_full_scans(both: Both) -> None:
    for name in ("a", "b"):
        both.start(spec(name, seed=ord(name)))
    for _ in range(25):
        both.agree()


def scenario_newcomer(both: Both) -> None:
    both.start(spec("late", seed=9))


def scenario_write(both: Both) -> None:
    both.write_common("a", 100, 400, 1)


def scenario_twin_writes(both: Both) -> None:
    both.write_common("a", 0, 300, 2)
    both.write_common("b", 0, 300, 2)


def scenario_end(both: Both) -> None:
    both.end("b")


@pytest.mark.parametrize(
    "happen", [scenario_newcomer, scenario_write, scenario_twin_writes, scenario_end], ids=lambda it: it.__name__[9:]
)
def test_what_happens_later_counts_alike(both: Both, happen: Callable[[Both], None]) -> None:
    for name in ("a", "b", "c"):
        both.start(spec(name, seed=ord(name)))
    for _ in range(7):
        both.agree()
    happen(both)
    for _ in range(12):
        both.agree()


ADVISED_SCANS = 12
SLACK_S = 0.05
"""How much later than a full scan's end the next one may begin (a sleep), or its CPU time may show (a tick)."""


@dataclass(frozen=True)
class ScanEnd:
    """A full scan was seen to have ended: between two looks, of which these are the later's and the earlier's."""

    from_s: float
    until_s: float
    from_cpu_s: float
    until_cpu_s: float
    pages_to_scan: int


def test_the_advisor_sets_the_pages_that_the_simulated_one_would(both: Both) -> None:
    both.start(spec("a", common=16, own=16, seed=1))
    both.real.ksm.write(advisor_mode="scan-time", sleep_millisecs=20)
    ends = watch_scan_ends(both.real, ADVISED_SCANS)
    assert len({end.pages_to_scan for end in ends}) > 1
    # The kernel counts whole seconds, milliseconds and percents, and we know its times within some ms alone.
    possible, pages_to_scan, begun = [Advisor()], FIRST_PAGES, (0.0, ends[0].until_s)
    for end in ends:
        times = {(began_s, ended_s) for began_s in begun for ended_s in (end.from_s, end.until_s)}
        used_ms = range(int(end.from_cpu_s * 1000), int((end.until_cpu_s + SLACK_S) * 1000) + 1)
        found = []
        for before in possible:
            for (began_s, ended_s), cpu_ms in ((one, ms) for one in times for ms in used_ms):
                advisor = replace(before)
                advisor.begin_scan(began_s)
                if advisor.end_scan(ended_s, cpu_ms / 1000, pages_to_scan) == end.pages_to_scan:
                    found.append(advisor)
        assert found, f"{pages_to_scan} pages became {end.pages_to_scan}, which follows from nothing possible: {end}"
        possible = list({(one.scan_s, one.change_percent, one.cpu_seconds): one for one in found}.values())
        pages_to_scan, begun = end.pages_to_scan, (end.from_s, end.until_s + SLACK_S)


def watch_scan_ends(real: RealKsmd, count: int) -> list[ScanEnd]:
    ends: list[ScanEnd] = []
    before = real.read()
    deadline_s = before.t_s + 60.0
    while len(ends) < count:
        assert before.t_s < deadline_s, f"only {len(ends)} full scans in a minute"
        time.sleep(0.002)
        now = real.read()
        if now.full_scans != before.full_scans:
            assert now.full_scans == before.full_scans + 1, "two full scans between two looks"
            pages_to_scan = real.ksm.read("pages_to_scan")
            ends.append(ScanEnd(before.t_s, now.t_s, before.cpu_seconds, now.cpu_seconds, pages_to_scan))
        before = now
    return ends
