"""How savings and ksmd's CPU time went, out of single observations: for a small curve and for "lately". Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from virtksm.history import Sample

LATELY_S = 300.0
LEAST_S = 1.0
"""Too short a time to say what share of a core ksmd took in it, as its CPU time comes in ticks of 10 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was seen at Unix time `at_s`; CPU time is since boot."""

    at_s: float
    saved_kib: int | None
    cpu_seconds: float | None


def points_of(samples: Iterable[Sample]) -> list[Point]:
    """Return samples as points."""
    return [Point(at_s=one.at_s, saved_kib=one.saved_kib, cpu_seconds=one.ksmd_cpu_seconds) for one in samples]


def saved_levels(points: Sequence[Point], *, until_s: float, step_s: float, steps: int) -> list[int | None]:
    """Return what was saved at the end of each of the last `steps` stretches of `step_s` seconds.

    Where nothing was seen in a stretch, it is what was seen last before it, None before the first.
    """
    levels: list[int | None] = []
    seen = sorted((point for point in points if point.saved_kib is not None), key=lambda point: point.at_s)
    number, level = 0, None
    for step in range(steps):
        end_s = until_s - (steps - 1 - step) * step_s
        while number < len(seen) and seen[number].at_s <= end_s:
            level = seen[number].saved_kib
            number += 1
        levels.append(level)
    return levels


def core_share(points: Sequence[Point], now: Point) -> tuple[float, float] | None:
    """Return the share of a core that ksmd took lately, in percent, and over how many seconds; None if unknown.

    Lately is `LATELY_S`, or since the last point where that is longer ago. Points of before a reboot do not count.
    """
    if now.cpu_seconds is None:
        return None
    began: Point | None = None
    before_s = 0.0
    for point in points:
        if point.cpu_seconds is None or now.at_s - point.at_s < LEAST_S:
            continue
        if point.cpu_seconds < before_s:  # the host was booted between the two
            began = None
        before_s = point.cpu_seconds
        if point.cpu_seconds > now.cpu_seconds:
            continue
        if began is None or began.at_s < now.at_s - LATELY_S:
            began = point
    if began is None or began.cpu_seconds is None:
        return None
    over_s = now.at_s - began.at_s
    return 100 * (now.cpu_seconds - began.cpu_seconds) / over_s, over_s
