"""Rule 6 of the adaptive law, its first half: whether more memory is to be expected, and for how long. Pure."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from virtksm.policy.adaptive.past import AdaptivePast

RECENT_S = 1.0
"""What appeared so lately tells how fast memory is appearing. Short, since after a burst it is what is waited for."""
BURST_SHARE = 120
"""Memory that would double within two minutes at the present rate is in a burst (guests start): it ends soon, and one
round then covers it all."""
STEADY_SHARE = 40
"""Debt that would double within 40 s at the present rate is still growing."""
PATIENCE = 1.25
"""After a burst the next one of its series is waited for this many times longer than the series' longest pause."""
MOST_PAUSE_S = 15.0
"""Bursts that are further apart are no series."""
DOUBLED = 0.8
"""Debt of this share of what is covered is worth a round in the middle of a series: each covers almost twice as much as
the one before, so that all of them together cost little more than twice the last."""


class Growth(Enum):
    """How memory is appearing, judged by what the present rate would come to; a pause is one between two bursts."""

    BURST = "burst"
    PAUSE = "pause"
    STEADY = "steady"
    SETTLED = "settled"


def is_burst(appeared: tuple[tuple[float, int], ...], memory_kib: int) -> bool:
    """Tell whether so much has appeared lately that the memory would double within two minutes."""
    return sum(kib for _, kib in appeared) * BURST_SHARE > memory_kib


def judge_growth(past: AdaptivePast, memory_kib: int) -> Growth:
    """Tell whether more memory is to be expected, so that a round should wait for it (rule 6)."""
    if is_burst(past.recent, memory_kib):
        return Growth.BURST
    if _pause_left_s(past) > 0:
        return Growth.PAUSE
    young_kib, recent_kib = (sum(kib for _, kib in appeared) for appeared in (past.young, past.recent))
    return Growth.STEADY if recent_kib * STEADY_SHARE > past.fresh_kib + young_kib else Growth.SETTLED


def has_doubled(past: AdaptivePast, memory_kib: int, reserve_kib: int) -> bool:
    """Tell whether about as much memory waits for its first visit as is covered, and as should be available."""
    debt_kib = past.fresh_kib + sum(kib for _, kib in past.young)
    return debt_kib >= DOUBLED * max(memory_kib - debt_kib, reserve_kib)


def seconds_to_end(growth: Growth, past: AdaptivePast, memory_kib: int) -> float:
    """Return in how many seconds a burst or a pause will be over if nothing more appears; 0.0 for the others."""
    if growth is Growth.PAUSE:
        return _pause_left_s(past)
    left_s, now_s, recent = 0.0, past.taken_s or 0.0, past.recent
    while growth is Growth.BURST and is_burst(recent, memory_kib):
        left_s, recent = recent[0][0] + RECENT_S - now_s, recent[1:]
    return left_s


def _pause_left_s(past: AdaptivePast) -> float:
    """Return how much longer the next burst of a series is waited for."""
    if past.burst_s is None or past.taken_s is None:
        return 0.0
    return past.burst_s + PATIENCE * past.pause_s - past.taken_s


def note_burst(past: AdaptivePast, now_s: float) -> AdaptivePast:
    """Note a burst that is there now, and the pause before it if it was seen to be over."""
    pause_s = None if past.burst_s is None else now_s - past.burst_s
    if pause_s is None or not 0 <= pause_s <= MOST_PAUSE_S:
        return replace(past, burst_s=now_s, pause_s=0.0)
    was_over = past.taken_s is not None and past.burst_s is not None and past.taken_s > past.burst_s
    return replace(past, burst_s=now_s, pause_s=max(past.pause_s, pause_s) if was_over else past.pause_s)
