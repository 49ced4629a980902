"""JSON from outside, bounded. Pure; imports nothing but json, so that a one-shot that finds an agent stays quick."""

from __future__ import annotations

import json

MOST = 2.0**65
"""Bounds numbers: no counter and no clock has more."""


def parse_object(said: bytes | str, what: str) -> dict[str, object]:
    """Take a JSON object, called `what`; raises ValueError saying what is wrong."""
    try:
        told = json.loads(said, parse_int=_whole, parse_float=_real, parse_constant=_real)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    if not isinstance(told, dict):
        raise ValueError(f"{what} is no JSON object")
    return told


def _whole(text: str) -> int:
    _real(text)
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not -MOST < value < MOST:
        raise ValueError(f"{text:.20} is no number of a counter or a clock")
    return value
