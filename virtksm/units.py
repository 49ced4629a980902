"""Quantities as text for people; the exact figures stay in the records. Imports nothing."""

from __future__ import annotations


def format_kib(kib: float | None) -> str:
    """Return KiB as MiB or GiB with one decimal, "unknown" for None."""
    if kib is None:
        return "unknown"
    return f"{kib / 1024:.1f} MiB" if kib < 1024 * 1024 else f"{kib / 1024 / 1024:.1f} GiB"
