"""The kernel's advisor, scan-time (Linux 6.8, mm/ksm.c), at its defaults: it sets pages_to_scan after each full scan.

It aims at full scans of 200 s, between 10 and 70 % of a core, in integers. Switched on, it knows neither when the
present full scan began nor what ksmd had used before: the first seems to have taken since boot, for all of ksmd's CPU
time.
"""

from dataclasses import dataclass

FIRST_PAGES = 500
MAX_PAGES = 30_000
TARGET_SCAN_S = 200
MIN_CPU_PERCENT, MAX_CPU_PERCENT = 10, 70
NEWEST_PERCENT = 30
"""Weight of the last change of a full scan's time in their average."""


@dataclass(slots=True, kw_only=True)
class Advisor:
    """What it keeps from one full scan to the next; times are seconds since boot."""

    began_s: float = 0.0
    scan_s: int = 0
    change_percent: int = 0
    cpu_seconds: float = 0.0

    def end_scan(self, now_s: float, cpu_seconds: float, pages_to_scan: int) -> int:
        """Return what pages_to_scan becomes after a full scan, with ksmd's CPU time since boot."""
        scan_s = int(now_s - self.began_s) or 1
        cpu_percent = int((cpu_seconds - self.cpu_seconds) * 1000) * 100 // (scan_s * 1000) or 1
        factor = TARGET_SCAN_S * 100 // scan_s or 1
        change = scan_s * 100 // (self.scan_s or scan_s) or 1
        change = ((100 - NEWEST_PERCENT) * self.change_percent + NEWEST_PERCENT * change) // 100
        wanted = pages_to_scan * 100 // factor * change // 100
        of_a_percent = pages_to_scan // cpu_percent or 1
        pages = max(min(wanted, of_a_percent * MAX_CPU_PERCENT), of_a_percent * MIN_CPU_PERCENT)
        self.scan_s, self.change_percent, self.cpu_seconds = scan_s, change, cpu_seconds
        return min(pages, MAX_PAGES)
