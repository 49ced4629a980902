"""Quantities as text for people; the exact figures stay in the records. Imports nothing."""

from __future__ import annotations

MOST_TIME_S = 253_370_764_800.0
"""Unix time of the year 9999: no calendar goes beyond it."""


def format_kib(kib: float | None) -> str:
    """Return KiB as MiB or GiB with one decimal, "unknown" for None."""
    if kib is None:
        return "unknown"
    return f"{kib / 1024:.1f} MiB" if kib < 1024 * 1024 else f"{kib / 1024 / 1024:.1f} GiB"
