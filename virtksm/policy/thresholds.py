"""What would change a decision: the policy itself is asked, with one quantity moved, all else equal. Pure.

It is asked what it decides at the next pass, by its timer and from the state that the decision has left behind: its
hysteresis is in the answer. Some ten to fifty decisions answer it: only for somebody who asks.

Where the policy decides otherwise at the next pass although nothing changes, that is the only threshold. Else each
quantity is tried at a few values, the nearest first, and the first change is bisected, so that a change which comes and
goes between two of them is not seen. At the value that is named the policy decides so, and a step short of it not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from virtksm.model.decision import PASSED_S, Decision, Threshold, Trigger, Triggers
from virtksm.model.snapshot import Snapshot
from virtksm.policy.base import Policy

Quantity = tuple[str, float, tuple[float, ...], Callable[[Any], str]]
"""Its name, its present value, the values to try, away from the present one, and what the policy would do at a value: a
verb with its object, empty where nothing changes. Any: whole but for time."""
TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))
LATER_S = tuple(4**power for power in range(11))
"""How much later the policy is asked: up to twelve days. A full scan that is given up later has no threshold."""
MIN_PASSED_S = 0.01
STEPS = 4096
"""A threshold is found to this part of its distance from the present value: to 1 KiB takes twice the decisions."""


def step_to(value: float, quantity: str, present: float) -> float:
    """Return how far from the true threshold a found one may be, in its own unit."""
    return max(abs(value - present) / STEPS, MIN_PASSED_S if quantity == PASSED_S else 1)


def find_thresholds(policy: Policy[Any], snapshot: Snapshot, state: Any, decision: Decision) -> Iterator[Threshold]:  # noqa: ANN401  # each policy's own
    """Yield what would change a decision of a policy on a snapshot, which has left `state` behind."""
    for name, present, points, ask in policy.quantities(snapshot, state, decision):
        short = present
        for value in points:
            if ask(value):
                while abs(value - short) > step_to(value, name, present):
                    middle = (short + value) / 2 if name == PASSED_S else (short + value) // 2
                    short, value = (short, middle) if ask(middle) else (middle, value)  # noqa: PLW2901
                yield Threshold(then=ask(value), quantity=name, value=value, present=present)
                if value == present:
                    return
                break
            short = value
