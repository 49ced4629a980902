"""The simulator against the real ksmd: counters after each full scan of the same memory, which are exact."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.sim.host import SimHost
from bench.sim.ksmd import Ksmd
from bench.sim.memory import Kind
from bench.sim.real_memory import COMMON, MergeableProcess
from bench.sim.visit import Rules
from demo.guests import PayloadGuest
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, find_ksmd, wait_until

pytestmark = [pytest.mark.real, pytest.mark.needs("pages_scanned", "pages_skipped")]

Counts = dict[str, int]
LONG_SLEEP_MS = 600_000


class RealKsmd:
    """The kernel's ksmd, which makes full scans one at a time."""

    def __init__(self, ksm: Ksm) -> None:
        self.ksm = ksm
        self._stat = find_ksmd() / "stat"

    def begin_at_a_full_scan(self) -> None:
        """Finish whatever scan is going on, and forget every page: the next full scan is the first of all."""
        self.ksm.write(run=2, pages_to_scan=0, sleep_millisecs=LONG_SLEEP_MS)
        time.sleep(0.1)
        self.ksm.write(run=1)

    def full_scan(self) -> None:
        """Make exactly one full scan from its beginning to its end, as one batch."""
        target = self.ksm.read("full_scans") + 1
        asleep_ms = self.ksm.read("sleep_millisecs")
        # A changed sleep wakes ksmd.
        self.ksm.write(pages_to_scan=2**31, sleep_millisecs=LONG_SLEEP_MS + (asleep_ms == LONG_SLEEP_MS))
        wait_until(lambda: self.ksm.read("full_scans") >= target, 2 * HANG_S, "a full scan")
        wait_until(self._is_asleep, 2 * HANG_S, "the batch's end, at which the last counters are updated")

    def _is_asleep(self) -> bool:
        # The third word of /proc/PID/stat; its name has no space.
        return self._stat.read_text(encoding="ascii").split()[2] == "S"


def known_pages_of_others(pids: set[int]) -> int:
    """Count the pages that ksmd knows of all processes but these (ksm_rmap_items in /proc/PID/ksm_stat)."""
    known = 0
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) not in pids:
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                found = re.search(r"ksm_rmap_items (\d+)", (entry / "ksm_stat").read_text(encoding="ascii"))
                known += int(found[1]) if found else 0  # kernel threads have none
    return known


def spec(name: str, *, seed: int) -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=64, common_mib=3, zero_mib=1, own_mib=2, seed=seed)


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
        for read, scan in ((self._read_real, self.real.full_scan), (self._read_sim, self._scan_sim)):
            before = read()
            scan()
            after = read()
            counts.append({name: after[name] - (before[name] if name in _EVENTS else 0) for name in after})
        return counts[0], counts[1]

    def agree(self) -> None:
        real, sim = self.full_scan()
        # Other processes' mergeable memory (guests of other tests) is counted, too: numbers may differ by as much.
        ours = {process.pid for process in self.processes.values()}
        self.others = max(self.others, known_pages_of_others(ours))
        assert {name: pytest.approx(count, abs=self.others) for name, count in sim.items()} == real

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


def test_what_happens_later_counts_alike(both: Both) -> None:
    """A newcomer, writes to one and to two twins, an end; each is followed for long enough to be skipped again."""
    for name in ("a", "b", "c"):
        both.start(spec(name, seed=ord(name)))
    for _ in range(7):
        both.agree()
    both.start(spec("late", seed=9))
    for _ in range(7):
        both.agree()
    both.write_common("a", 100, 400, 1)
    for _ in range(7):
        both.agree()
    both.write_common("a", 0, 300, 2)
    both.write_common("b", 0, 300, 2)
    for _ in range(12):
        both.agree()
    both.end("b")
    for _ in range(7):
        both.agree()
