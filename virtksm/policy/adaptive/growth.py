"""Rule 4 of the adaptive law, its second half: whether more memory is to be expected, and for how long. Pure."""

from __future__ import annotations

import math
from enum import Enum

from virtksm.policy.adaptive.state import AdaptiveState, Arrivals
from virtksm.values import replace

RECENT_S = 0.9
"""Growth is judged by so many seconds (chosen)."""
BURST_S = 120.0
"""Memory that would double so soon is in a burst (chosen)."""
LULL_S, LULL_SHARE = 8 * BURST_S, 0.25
"""While it would double within LULL_S, a burst lasts LULL_SHARE of its length longer (measured)."""
LULL_RECENT_S = RECENT_S / 2
"""RECENT_S in a lull: one pass (chosen)."""
PATIENCE = 1.05
"""A series' next start is awaited for so many longest intervals (chosen)."""
MAX_INTERVAL_S = 15.0
"""Starts further apart are no series (chosen)."""


class Growth(Enum):
    """How memory appears: a burst or a series of starts goes on, the backlog grows steadily, or neither."""

    COMING = "coming"
    STEADY = "steady"
    SETTLED = "settled"


def judge_growth(state: AdaptiveState, memory_kib: int) -> Growth:
    """Tell whether more memory is to be expected, so that a full scan should wait for it (rule 4)."""
    if seconds_coming(state, memory_kib) > 0:
        return Growth.COMING
    recent_kib = sum(kib for _, _, kib in state.arrivals.recent)
    return Growth.STEADY if recent_kib * BURST_S > _unscanned_kib(state) * RECENT_S else Growth.SETTLED


def seconds_coming(state: AdaptiveState, memory_kib: int) -> float:
    """Return how much longer more is waited for if nothing appears: the rest of a burst, or a series' next guest.

    A series' guests are waited for while its memory comes as fast as a burst's, all in all: BURST_S at the most.
    """
    arrivals, now_s, left_s = state.arrivals, state.taken_s, 0.0
    if arrivals.start_s is not None and now_s is not None and arrivals.start_s <= now_s:  # else the clock began anew
        double_s = BURST_S * _unscanned_kib(state) / (memory_kib or 1)
        end_s = min(arrivals.start_s + PATIENCE * arrivals.interval_s, arrivals.series_since_s + double_s)
        left_s = end_s - now_s
    return max(left_s, burst_left_s(state, memory_kib))


def _unscanned_kib(state: AdaptiveState) -> int:
    return state.backlog.new_kib + state.backlog.settling_kib


def note_burst(state: AdaptiveState, memory_kib: int) -> AdaptiveState:
    """Note since when there has been a burst, and when memory last appeared at the rate of one."""
    if _full_rate_left_s(state, memory_kib) <= 0:
        return state
    goes_on = _patience_s(state) >= -RECENT_S  # else this is another one
    since_s = state.arrivals.burst_since_s if goes_on else state.taken_s
    return replace(state, arrivals=replace(state.arrivals, burst_since_s=since_s, burst_at_s=state.taken_s))


def burst_left_s(state: AdaptiveState, memory_kib: int) -> float:
    """Return in how many seconds a burst will be over if nothing more appears; 0.0 or below: there is none."""
    lull_left_s = min(_left_s(state, LULL_RECENT_S, memory_kib * LULL_RECENT_S / LULL_S), _patience_s(state))
    return max(_full_rate_left_s(state, memory_kib), lull_left_s)


def _full_rate_left_s(state: AdaptiveState, memory_kib: int) -> float:
    return _left_s(state, RECENT_S, memory_kib * RECENT_S / BURST_S)


def _patience_s(state: AdaptiveState) -> float:
    """Return how much longer a lull ends no burst; below 0.0 where it has, or where the clock began anew."""
    since_s, at_s = state.arrivals.burst_since_s, state.arrivals.burst_at_s
    if since_s is None or at_s is None or state.taken_s is None or state.taken_s < at_s:
        return -math.inf
    return at_s + LULL_SHARE * (at_s - since_s) - state.taken_s


def _left_s(state: AdaptiveState, window_s: float, min_kib: float) -> float:
    """Return how much longer more than `min_kib` will have appeared within `window_s`; 0.0 or below: it has not."""
    appeared_kib, now_s = 0, state.taken_s or 0.0
    for at_s, _, kib in reversed(state.arrivals.recent):
        appeared_kib += kib
        if appeared_kib > min_kib:
            return at_s + window_s - now_s
    return 0.0


def note_start(arrivals: Arrivals, now_s: float) -> Arrivals:
    """Note that guests have started, as the next of a series or the first of a new one."""
    before_s = arrivals.start_s
    if before_s is None or not 0 <= now_s - before_s <= MAX_INTERVAL_S:
        return replace(arrivals, start_s=now_s, interval_s=0.0, series_since_s=now_s)
    return replace(arrivals, start_s=now_s, interval_s=max(arrivals.interval_s, now_s - before_s))
