"""A curve, or a bar, in one line of text. Pure; imports nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"


def choose_marks(encoding: str | None, environ: Mapping[str, str]) -> str:
    """Return marks that a terminal can show: blocks if the stream's encoding and the locale know them, else ASCII."""
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environ.get(name))), "C")
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return ASCII if locale in ("C", "POSIX") else BLOCKS


def sparkline(values: Sequence[float | None], marks: str) -> str:
    """Return a mark for each value, its height between 0 and the greatest of all; a blank for None."""
    top = max((value for value in values if value is not None), default=0)
    steps = len(marks) - 1
    return "".join(
        " " if value is None else marks[round(steps * value / top) if top > 0 and value > 0 else 0] for value in values
    )


def progress_bar(share: float, marks: str, cells: int = 20) -> str:
    """Return a bar of which a share from 0 to 1 is filled."""
    filled, rest = ("█", "░") if marks == BLOCKS else ("#", "-")
    done = int(cells * share)
    return filled * done + rest * (cells - done)
