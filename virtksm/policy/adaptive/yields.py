"""Rules 11 and 12 of the adaptive law: merges that do not last, and looking for what no debt tells of. Pure."""

from __future__ import annotations

from dataclasses import replace

from virtksm.policy.adaptive.debt import NEGLIGIBLE
from virtksm.policy.adaptive.past import MOST_SUM, AdaptivePast

MOST_BACKOFF = 1024
LEAST_PROBE_S = 60.0
MOST_PROBE_S = 4 * 3600.0
LATEST_PROBE_S = 7 * 24 * 3600.0
PROBE_COST = 400.0
"""A probe waits for at least so many times the ksmd-seconds of a round: its two take half a percent of a core."""
PROBE_ROUNDS = 2


def judge_lasting(past: AdaptivePast, memory_kib: int) -> AdaptivePast:
    """Before a round: back off if half of what was merged is broken again, come back if it lasts (rule 11)."""
    if past.broken_kib * 2 > past.gained_kib and past.broken_kib * NEGLIGIBLE > memory_kib:
        return replace(past, backoff=min(past.backoff * 2, MOST_BACKOFF), broken_kib=0, gained_kib=0)
    if past.gained_kib * NEGLIGIBLE > memory_kib:
        return replace(past, backoff=max(past.backoff // 2, 1), broken_kib=0, gained_kib=0)
    return past


def plan_probe(past: AdaptivePast, now_s: float, cost_s: float) -> AdaptivePast:
    """Set the time of the next probe, counted from now (rule 12)."""
    return replace(past, probe_due_s=now_s + min(max(past.probe_interval_s, PROBE_COST * cost_s), LATEST_PROBE_S))


def probe_is_due(past: AdaptivePast, now_s: float) -> bool:
    """Tell whether it is time for the next probe."""
    return past.probe_due_s is not None and now_s >= past.probe_due_s


def count_probe_round(past: AdaptivePast, gained_kib: int, memory_kib: int) -> AdaptivePast:
    """After a round of a probe: count it, and after its last look again sooner if it found something, later if not."""
    if past.probe_rounds == 0:
        return past
    gained_kib = min(gained_kib + past.probe_gained_kib, MOST_SUM)
    if past.probe_rounds > 1:
        return replace(past, probe_rounds=past.probe_rounds - 1, probe_gained_kib=gained_kib)
    if gained_kib * NEGLIGIBLE > memory_kib and past.backoff == 1:  # what does not last is no find
        interval_s = max(past.probe_interval_s / 2, LEAST_PROBE_S)
    else:
        interval_s = min(past.probe_interval_s * 2, MOST_PROBE_S)
    return replace(past, probe_rounds=0, probe_gained_kib=0, probe_interval_s=interval_s)
