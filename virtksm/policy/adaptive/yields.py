"""Rules 11 and 12 of the adaptive law: merges that do not last, and looking for what no debt tells of. Pure."""

from __future__ import annotations

from dataclasses import replace

from virtksm.policy.adaptive.debt import NEGLIGIBLE
from virtksm.policy.adaptive.state import MAX_SUM, AdaptiveState

MAX_BACKOFF = 1024
MIN_PROBE_S = 60.0
MAX_PROBE_S = 4 * 3600.0
LATEST_PROBE_S = 7 * 24 * 3600.0
PROBE_COST = 400.0
"""A probe waits for at least so many times the ksmd-seconds of a round: its two take half a percent of a core."""
PROBE_ROUNDS = 2


def judge_lasting(state: AdaptiveState, memory_kib: int) -> AdaptiveState:
    """Before a round: back off if half of what was merged is broken again, come back if it lasts (rule 11)."""
    if state.broken_kib * 2 > state.gained_kib and state.broken_kib * NEGLIGIBLE > memory_kib:
        return replace(state, backoff=min(state.backoff * 2, MAX_BACKOFF), broken_kib=0, gained_kib=0)
    if state.gained_kib * NEGLIGIBLE > memory_kib:
        return replace(state, backoff=max(state.backoff // 2, 1), broken_kib=0, gained_kib=0)
    return state


def plan_probe(state: AdaptiveState, now_s: float, cost_s: float) -> AdaptiveState:
    """Set the time of the next probe, counted from now (rule 12)."""
    return replace(state, probe_due_s=now_s + min(max(state.probe_interval_s, PROBE_COST * cost_s), LATEST_PROBE_S))


def probe_is_due(state: AdaptiveState, now_s: float) -> bool:
    """Tell whether it is time for the next probe."""
    return state.probe_due_s is not None and now_s >= state.probe_due_s


def count_probe_round(state: AdaptiveState, gained_kib: int, memory_kib: int) -> AdaptiveState:
    """After a round of a probe: count it, and after its last look again sooner if it found something, later if not."""
    if state.probe_rounds == 0:
        return state
    gained_kib = min(gained_kib + state.probe_gained_kib, MAX_SUM)
    if state.probe_rounds > 1:
        return replace(state, probe_rounds=state.probe_rounds - 1, probe_gained_kib=gained_kib)
    if gained_kib * NEGLIGIBLE > memory_kib and state.backoff == 1:  # what does not last is no find
        interval_s = max(state.probe_interval_s / 2, MIN_PROBE_S)
    else:
        interval_s = min(state.probe_interval_s * 2, MAX_PROBE_S)
    return replace(state, probe_rounds=0, probe_gained_kib=0, probe_interval_s=interval_s)
