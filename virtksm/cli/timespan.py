"""Numbers on the command line, and spans of time: seconds, or a number with a unit (as systemd.time(7) has them)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

EVERY_S = 2.0
MIN_EVERY_S = 0.1
UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
DAY_S = 86_400.0
YEAR_S = 365 * DAY_S


def timespan(min_s: float, max_s: float) -> Callable[[str], float]:
    """Return what takes 90, 90s, 1.5m, 24h or 1d, in seconds; raises argparse's error for others and out of range."""

    def take(text: str) -> float:
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", text, re.ASCII)
        seconds = -1.0 if found is None else float(found[1]) * UNITS_S[found[2]]
        if not min_s <= seconds <= max_s:
            raise argparse.ArgumentTypeError(
                f"{text!r:.40} is no time from {min_s:g} s to {in_words(max_s)}: "
                "a number of seconds, or one with s, m, h or d"
            )
        return seconds

    return take


def whole(max_number: int) -> Callable[[str], int]:
    """Return what takes a number from 1 to `max_number`; raises argparse's error for others."""

    def take(text: str) -> int:
        if text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= max_number:
            return int(text[:9])
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number from 1 to {max_number}")

    return take


def add_watch_option(parser: argparse.ArgumentParser) -> None:
    """Add --watch."""
    parser.add_argument(
        "--watch",
        metavar="TIME",
        nargs="?",
        type=timespan(MIN_EVERY_S, DAY_S),
        const=EVERY_S,
        help=f"show it again every so often (default: {EVERY_S:g} s), until q or Ctrl-C",
    )


def in_words(seconds: float) -> str:
    """Write a whole number of days, hours, minutes, or else seconds."""
    for unit in ("d", "h", "m"):
        if seconds >= UNITS_S[unit] and seconds % UNITS_S[unit] == 0:
            return f"{seconds / UNITS_S[unit]:g} {unit}"
    return f"{seconds:g} s"
