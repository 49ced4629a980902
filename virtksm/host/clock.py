"""The clock of snapshots: CLOCK_BOOTTIME, which never steps, counts suspended time and is shared by all processes."""

from __future__ import annotations

import time


def boottime_s() -> float:
    """Return seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
