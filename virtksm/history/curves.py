"""Curves through the agent's history: samples become what a picture or a line of text shows of them. Pure.

Where no pass ran there is no curve: samples further apart than `GAP_S`, or in the wrong order since the clock was set
back, begin a new piece. Those that were thinned, or are of a policy that waits longer, are all further apart: there a
piece ends where `APART` times the usual time is exceeded. CPU time is a difference of two samples; a counter that fell
has begun anew with the host. For a small curve of savings, and for "lately", single observations (`Point`) do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from virtksm.history.samples import SAMPLE_S, Sample
from virtksm.values import replace

GAP_S = 180.0
"""Longer than policies usually wait between two passes: the agent, libvirt or the host was away."""
APART = 3.0
"""Thinned samples are up to twice their usual time apart."""
FEW = 3
"""Fewer times between samples do not tell which is usual."""
MAX_SHARE = 1.5
"""ksmd is one thread, and a pass may take a while: with more the clock was set back between two samples."""


class CpuShare(NamedTuple):
    """The share of one core that ksmd took from `from_s` to `to_s` (1.0: all of it)."""

    from_s: float
    to_s: float
    share: float


def pieces(samples: Sequence[Sample]) -> Iterator[tuple[Sample, ...]]:
    """Cut samples where no pass ran; every piece has one sample at least, and rising times."""
    gap_s = _find_gap_s(samples)
    piece: list[Sample] = []
    for sample in samples:
        if piece and not 0 < sample.at_s - piece[-1].at_s <= gap_s:
            yield tuple(piece)
            piece = []
        piece.append(sample)
    if piece:
        yield tuple(piece)


def _find_gap_s(samples: Sequence[Sample]) -> float:
    """Return how far apart samples of one piece can be."""
    times = sorted(after.at_s - before.at_s for before, after in pairwise(samples) if after.at_s > before.at_s)
    return GAP_S if len(times) < FEW else max(GAP_S, APART * times[(len(times) - 1) // 2])


def cpu_shares(samples: Sequence[Sample], width_s: float) -> list[CpuShare]:
    """Return ksmd's CPU over `width_s` seconds at a time, longer where samples are further apart.

    The kernel counts CPU time in steps of 10 ms, so that shorter stretches have little meaning.
    """
    shares = []
    for piece in pieces(samples):
        first: Sample | None = None
        for number, sample in enumerate(piece):
            if first is None or _has_fallen(first, sample):
                first = sample
                continue
            took_s = sample.at_s - first.at_s
            if took_s < width_s and number < len(piece) - 1:
                continue
            if first.ksmd_cpu_seconds is not None and sample.ksmd_cpu_seconds is not None:
                share = (sample.ksmd_cpu_seconds - first.ksmd_cpu_seconds) / took_s
                if share <= MAX_SHARE:
                    shares.append(CpuShare(from_s=first.at_s, to_s=sample.at_s, share=share))
            first = sample
    return shares


def _has_fallen(before: Sample, after: Sample) -> bool:
    if before.ksmd_cpu_seconds is None or after.ksmd_cpu_seconds is None:
        return before.ksmd_cpu_seconds is not after.ksmd_cpu_seconds
    return after.ksmd_cpu_seconds < before.ksmd_cpu_seconds


LATELY_S = 300.0
MIN_S = 1.0
"""Too short a time to say what share of a core ksmd took in it, as its CPU time is counted in steps of 10 ms."""


class Point(NamedTuple):
    """What was seen at Unix time `at_s`, of what a sample has; CPU time is since boot."""

    at_s: float
    saved_kib: int | None
    ksmd_cpu_seconds: float | None
    zero_kib: int | None = None
    freed_kib: int | None = None


def saved_levels(
    points: Sequence[Point | Sample], *, until_s: float, step_s: float, steps: int, name: str = "saved_kib"
) -> list[int | None]:
    """Return what was saved at the end of each of the last `steps` stretches of `step_s` seconds, or a part of it.

    Where nothing was seen in a stretch, it is what was seen last before it, None before the first.
    """
    levels: list[int | None] = []
    found: Iterable[tuple[float, int | None]] = ((point.at_s, getattr(point, name)) for point in points)
    seen = sorted((one for one in found if one[1] is not None), key=lambda one: one[0])
    number, level = 0, None
    for step in range(steps):
        end_s = until_s - (steps - 1 - step) * step_s
        while number < len(seen) and seen[number][0] <= end_s:
            level = seen[number][1]
            number += 1
        levels.append(level)
    return levels


def core_share(points: Iterable[Point | Sample], now: Point) -> dict[str, float | None]:
    """Return as JSON values the share of a core that ksmd took lately, in percent, and over how many seconds.

    Lately is `LATELY_S`, or since the last point where that is longer ago. Points of before a reboot do not count.
    """
    began_s, began_cpu_s, before_s = 0.0, None, 0.0
    for at_s, cpu_s in ((point.at_s, point.ksmd_cpu_seconds) for point in points):
        if cpu_s is None or now.at_s - at_s < MIN_S:
            continue
        if cpu_s < before_s:  # the host was booted between the two
            began_cpu_s = None
        before_s = cpu_s
        is_lately = began_cpu_s is not None and began_s >= now.at_s - LATELY_S
        if now.ksmd_cpu_seconds is not None and cpu_s <= now.ksmd_cpu_seconds and not is_lately:
            began_s, began_cpu_s = at_s, cpu_s
    if now.ksmd_cpu_seconds is None or began_cpu_s is None:
        return {"core_percent": None, "over_s": None}
    over_s = now.at_s - began_s
    share = (now.ksmd_cpu_seconds - began_cpu_s) / over_s
    if share > MAX_SHARE:
        return {"core_percent": None, "over_s": None}
    return {"core_percent": round(100 * share, 2), "over_s": round(over_s, 1)}


def as_curves(samples: Sequence[Sample], now: Point, width_s: float) -> dict[str, object]:
    """Return JSON values to draw, up to `now`: pieces of [Unix time, value], and ksmd's share of a core lately.

    The curves are of saved memory (KiB) and of ksmd's share of a core (percent), over `width_s` seconds at a time.
    """
    last = [replace(one, **now._asdict()) for one in samples[-1:]]
    # The last stretch is no shorter than others can be, so that a burst in it is no peak.
    of_cpu = [*(one for one in samples if now.at_s - one.at_s >= SAMPLE_S), *last]
    cpu: list[list[list[float]]] = []
    for one in cpu_shares(of_cpu, width_s):
        if not cpu or cpu[-1][-1][0] != one.from_s:
            cpu.append([])
        cpu[-1] += [[one.from_s, 100 * one.share], [one.to_s, 100 * one.share]]
    saved = pieces([one for one in (*samples, *last) if one.saved_kib is not None])
    return {
        "saved_kib": [[[one.at_s, one.saved_kib] for one in piece] for piece in saved],
        "core_percent": cpu,
        "ksmd": core_share(samples, now),
    }
