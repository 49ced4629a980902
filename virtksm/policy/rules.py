"""What each rule that a decision can name means, in one sentence. Imports nothing.

A test holds that every policy's rules are here, and no others.
"""

from __future__ import annotations

from collections.abc import Mapping

PAUSED = "`virtksm pause` outranks every policy: ksmd is idle until `virtksm resume`"

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "ksmtuned": {
        "unknown": "with no memory known there is nothing to tune",
        "stop": "with memory to spare for guests and host, scanning stops",
        "boost": "while memory is short, each step scans more pages",
        "decay": "while guests hold much but memory is not short, each step scans fewer pages",
        "hold": "a balloon or a memory device is no step, so the pages stay as they are",
        "paused": PAUSED,
    },
    "adaptive": {
        "off": "while KSM is off nothing is scanned, and the backlog stays",
        "disengaged": "it acts when memory is short or will be, unless `engage` says otherwise",
        "idle": "without a backlog ksmd is idle, until memory that may have changed in place is worth a check scan",
        "wait": "new memory is collected until a full scan pays off",
        "full_scan": "ksmd is fed a full scan batch by batch, within the CPU budget",
        "check_scan": "two full scans look for memory that has changed in place, of which no counter tells",
        "stalled": "a full scan that makes no progress is given up; its backlog stays",
        "empty": "where KSM knows of no page after a batch, no memory may merge, and there is no backlog",
        "paused": PAUSED,
    },
    "observe": {
        "off": "while KSM is off nothing would be scanned, and the backlog stays",
        "disengaged": "adaptive would act when memory is short or will be, unless `engage` says otherwise",
        "idle": "without a backlog adaptive would let ksmd idle until a check scan is worth its cost",
        "wait": "adaptive would collect new memory until a full scan pays off",
        "full_scan": "adaptive would begin a full scan; it is due until the kernel has made one, for another program",
        "check_scan": "adaptive would look for memory that has changed in place; it is due as a full scan is",
        "paused": "`virtksm pause` is in force, and virtksm sets nothing anyway",
    },
}
"""By policy, then by rule."""


def meaning_of(policy: str, rule: str) -> str:
    """Return what a rule means; another version's rule is said to be unknown."""
    return MEANINGS.get(policy, {}).get(rule, "not a rule of this version of virtksm")
