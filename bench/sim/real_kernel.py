"""The real ksmd for comparisons: its counters and CPU time, full scans one at a time, and the lock around it all.

Everything happens within `lent_ksmd`, which holds the machine's lock, begins afresh and restores what it found.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.ksm import Ksm, lent_ksm, wait_until

LONG_SLEEP_MS = 600_000
SCAN_TIMEOUT_S = 120.0
ALL_PAGES = 2**31
COUNTERS = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "pages_scanned",
    "pages_skipped",
    "full_scans",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """KSM's counters at a time, and the CPU seconds of ksmd since boot."""

    t_s: float
    cpu_seconds: float
    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    pages_scanned: int
    pages_skipped: int
    full_scans: int


class RealKsmd:
    """The kernel's KSM, lent."""

    def __init__(self, ksm: Ksm) -> None:
        self.ksm = ksm
        proc = Path(f"/proc/{find_ksmd()}")
        self._schedstat, self._stat = proc / "schedstat", proc / "stat"

    def read(self) -> Reading:
        """Read all counters."""
        return Reading(
            t_s=time.monotonic(),
            cpu_seconds=self.cpu_seconds(),
            **{name: self.ksm.read(name) for name in COUNTERS},
        )

    def cpu_seconds(self) -> float:
        """Read ksmd's CPU time, to the nanosecond (the first word of /proc/PID/schedstat)."""
        return int(self._schedstat.read_text(encoding="ascii").split()[0]) / 1e9

    def pause(self) -> None:
        """Scan nothing."""
        self.ksm.write(pages_to_scan=0, sleep_millisecs=LONG_SLEEP_MS)
        time.sleep(0.1)

    def full_scan(self) -> Reading:
        """Make exactly one full scan from its beginning to its end, as one batch, and return what is then."""
        target = self.ksm.read("full_scans") + 1
        self.ksm.write(pages_to_scan=ALL_PAGES)
        self._wake()
        wait_until(lambda: self.ksm.read("full_scans") >= target, SCAN_TIMEOUT_S, "a full scan")
        wait_until(self._is_asleep, SCAN_TIMEOUT_S, "the batch's end, at which the last counters are updated")
        return self.read()

    def begin_at_a_full_scan(self) -> None:
        """Finish whatever scan is going on, and forget every page: the next full scan is the first of all."""
        self.ksm.write(run=2)
        self.pause()
        self.ksm.write(run=1)

    def forget_ended(self) -> None:
        """Let ksmd forget the pages of processes that have ended, by scanning one page or what there is."""
        self.ksm.write(pages_to_scan=1)
        self._wake()
        self.rest(0.5)
        self.pause()

    def rest(self, seconds: float) -> None:
        """Let ksmd go on as it is set."""
        time.sleep(seconds)

    def _is_asleep(self) -> bool:
        """Tell whether ksmd waits for its sleep's end (the third word of /proc/PID/stat; its name has no space)."""
        return self._stat.read_text(encoding="ascii").split()[2] == "S"

    def _wake(self) -> None:
        asleep_ms = self.ksm.read("sleep_millisecs")
        self.ksm.write(sleep_millisecs=LONG_SLEEP_MS + (asleep_ms == LONG_SLEEP_MS))


def find_ksmd() -> int:
    """Find the thread's process id; raises LookupError."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text(encoding="utf-8", errors="replace") == "ksmd\n":
                    return int(entry.name)
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
    raise LookupError("no thread named ksmd")


def known_pages_of_others(pids: set[int]) -> int:
    """Count the pages that ksmd knows of all processes but these (ksm_rmap_items in /proc/PID/ksm_stat)."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in pids:
            try:
                total += parse_known_pages((entry / "ksm_stat").read_text(encoding="ascii"))
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
    return total


def parse_known_pages(ksm_stat: str) -> int:
    """Return ksm_rmap_items; 0 where there is none (kernel threads)."""
    words = ksm_stat.split()
    return int(words[words.index("ksm_rmap_items") + 1]) if "ksm_rmap_items" in words else 0


@contextmanager
def lent_ksmd() -> Iterator[RealKsmd]:
    """Lend the kernel's KSM: locked, nothing merged, run=1 but scanning nothing; restored afterwards."""
    with lent_ksm() as ksm:
        lent = RealKsmd(ksm)
        lent.pause()
        yield lent
