"""What each rule that a decision can name means, in one sentence, by the numbers of docs/policies.md. Imports nothing.

A test holds that every policy's rules are here, and no others.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from collections.abc import Mapping

SWITCHED_OFF = "`virtksm pause` outranks every policy: ksmd is idle until `virtksm resume`"

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "ksmtuned": {
        "unknown": "rule 1: with no memory known there is nothing to tune",
        "stop": "rule 5: with memory to spare for guests and host, scanning stops",
        "boost": "rule 6: while memory is short, each step scans more pages",
        "decay": "rule 6: while guests hold much but memory is not short, each step scans fewer pages",
        "hold": "rule 7: a balloon or a memory device is no step, so the pages stay as they are",
        "switched_off": SWITCHED_OFF,
    },
    "adaptive": {
        "off": "while KSM is off nothing is scanned, and the backlog stays",
        "disengaged": "rule 1: it acts when memory is short or will be, unless `engage` says otherwise",
        "idle": "rule 12: without a backlog ksmd is idle, with a check scan now and then",
        "wait": "rule 6: the backlog waits until the waiting is worth a full scan",
        "full_scan": "rules 7 and 8: ksmd is fed a full scan batch by batch, within the CPU budget",
        "check_scan": "rule 12: two full scans look for what no counter tells of",
        "stalled": "rule 9: a full scan that makes no progress is given up; its backlog stays",
        "empty": "rule 9: where KSM knows of no page after a batch, no memory may merge, and there is no backlog",
        "switched_off": SWITCHED_OFF,
    },
}
"""By policy, then by rule."""


def meaning_of(policy: str, rule: str) -> str:
    """Return what a rule means; another version's rule is said to be unknown."""
    return MEANINGS.get(policy, {}).get(rule, "not a rule of this version of virtksm")
