"""Rules 11 and 12 of the adaptive law: merged pages that are rewritten quickly, and check scans. Pure."""

from __future__ import annotations

from dataclasses import replace

from virtksm.policy.adaptive.backlog import NEGLIGIBLE
from virtksm.policy.adaptive.state import MAX_SUM, AdaptiveState, CheckScans, Learned

MAX_BACKOFF = 1024
MIN_INTERVAL_S = 60.0
MAX_INTERVAL_S = 4 * 3600.0
LATEST_S = 7 * 24 * 3600.0
INTERVAL_COST = 400.0
"""A check scan waits for at least so many times the ksmd-seconds of a full scan: its two take half a percent of a
core."""
FULL_SCANS = 2


def judge_lasting(learned: Learned, memory_kib: int) -> Learned:
    """Before a full scan: back off if half of what was merged is rewritten, come back if it lasts (rule 11)."""
    if learned.rewritten_kib * 2 > learned.merged_kib and learned.rewritten_kib * NEGLIGIBLE > memory_kib:
        return replace(learned, backoff=min(learned.backoff * 2, MAX_BACKOFF), rewritten_kib=0, merged_kib=0)
    if learned.merged_kib * NEGLIGIBLE > memory_kib:
        return replace(learned, backoff=max(learned.backoff // 2, 1), rewritten_kib=0, merged_kib=0)
    return learned


def plan_check_scan(state: AdaptiveState, now_s: float, cost_s: float) -> AdaptiveState:
    """Set the time of the next check scan, counted from now (rule 12)."""
    wait_s = min(max(state.checks.interval_s, INTERVAL_COST * cost_s), LATEST_S)
    return replace(state, checks=replace(state.checks, due_s=now_s + wait_s))


def begin_due_check_scan(checks: CheckScans, now_s: float) -> CheckScans:
    """Begin a check scan if it is time for one."""
    is_due = checks.left == 0 and checks.due_s is not None and now_s >= checks.due_s
    return replace(checks, left=FULL_SCANS) if is_due else checks


def count_check_scan(checks: CheckScans, merged_kib: int, memory_kib: int, backoff: int) -> CheckScans:
    """After a full scan of a check scan: count it. After the last: the next is sooner if it found something."""
    if checks.left == 0:
        return checks
    merged_kib = min(merged_kib + checks.merged_kib, MAX_SUM)
    if checks.left > 1:
        return replace(checks, left=checks.left - 1, merged_kib=merged_kib)
    if merged_kib * NEGLIGIBLE > memory_kib and backoff == 1:  # what is rewritten quickly does not count
        interval_s = max(checks.interval_s / 2, MIN_INTERVAL_S)
    else:
        interval_s = min(checks.interval_s * 2, MAX_INTERVAL_S)
    return replace(checks, left=0, merged_kib=0, interval_s=interval_s)
