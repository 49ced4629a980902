"""Text for people: amounts of memory with their unit, and text from outside made printable. Pure."""

from __future__ import annotations

from collections.abc import Sequence

MAX_TIME_S = 253_370_764_800.0
"""Unix time of the year 9999: no calendar goes beyond it."""


def format_kib(kib: float | None) -> str:
    """Return KiB as MiB or GiB with one decimal, "unknown" for None."""
    if kib is None:
        return "unknown"
    return f"{kib / 1024:.1f} MiB" if kib < 1024 * 1024 else f"{kib / 1024 / 1024:.1f} GiB"


def to_bytes(kib: int | None) -> int | None:
    """Return KiB in bytes, None for None."""
    return None if kib is None else kib * 1024


def some_of(words: Sequence[str], most: int = 5) -> str:
    """Return the first `most` of words, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def nodes_text(nodes: Sequence[int]) -> str:
    """Return the name of NUMA nodes."""
    return f"NUMA node{'' if len(nodes) == 1 else 's'} {some_of([str(node) for node in nodes])}"


def printable(text: str) -> str:
    """Return `text` with what is not printable as backslash escapes: controls, line ends, bidirectional overrides."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def width(text: str) -> int:
    """Return how many columns printable text takes in a terminal; some characters take two of them, some none."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.category(one) in ("Mn", "Me") for one in text)
