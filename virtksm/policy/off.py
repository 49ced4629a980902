"""Paused: what a pass decides while `virtksm pause` is in force. Pure; store/switch.py keeps the switch.

It outranks every policy and every trigger: each pass lets ksmd idle. The policy is not asked, and its state is dropped:
meanwhile, anything may have happened to what KSM knows (unmerging forgets all of it), so the policy begins anew when
`virtksm resume` comes, and every guest needs a scan.
"""

from __future__ import annotations

from virtksm.model.decision import PAUSED, Decision, Pause, Reason, Threshold
from virtksm.model.snapshot import IDLE

RULE = "paused"

WATCH_S = 60.0
"""How often to see whether another program has set KSM scanning meanwhile."""

RESUMED = Threshold(then="asks the policy again", quantity=PAUSED, value=0, present=1)


def decide_off(off: Pause, *, was_off: bool, only_observes: bool = False) -> Decision:
    """Let ksmd idle; `was_off` says that the pass before did so, too. While it `only_observes`, nothing is set."""
    since = f" since {off.since}" if off.since else ""
    return Decision(
        target=IDLE,
        reason=Reason(
            rule=RULE,
            text=f"paused{since}, until `virtksm resume`: "
            + ("policy observe sets nothing, so ksmd goes on as others say" if only_observes else "ksmd idle"),
        ),
        next_pass_s=WATCH_S,
        is_routine=was_off,
    )
