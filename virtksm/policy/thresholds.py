"""What would change a decision: the policy itself is asked, with one quantity moved, all else equal. Pure.

It is asked what it decides at the next pass, by its timer and from the state that the decision has left behind. So its
hysteresis, and a full scan that has just begun, are in the answer; what takes two quantities at once is not. Some forty
to two hundred decisions answer it: only for somebody who asks.

Where the policy decides otherwise at the next pass although nothing changes, that is the only threshold. Else each
quantity is tried at a few values, the nearest first, and the first change is bisected. So a change that comes and goes
between two of these values is not seen; at the value that is named the policy decides so, and just short of it not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from virtksm.model.decision import PASSED_S, Decision, Threshold, Trigger, Triggers
from virtksm.model.snapshot import Snapshot
from virtksm.policy.base import Policy

TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))
LATER_S = tuple(4.0**power for power in range(11))
"""How much later the policy is asked: up to twelve days, longer than any of its waits."""
MIN_PASSED_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What a decision depends on. `points` are the values to try, away from the present one.

    `then` names what the policy would do at a value, a verb with its object; it is empty where nothing changes.
    """

    name: str
    present: int
    points: tuple[float, ...]
    then: Callable[[float], str]


def find_thresholds(
    policy: Policy[Any],  # Any: each policy's state is a type of its own
    snapshot: Snapshot,
    state: Any,  # noqa: ANN401  # as above
    decision: Decision,
) -> Iterator[Threshold]:
    """Yield what would change a decision of a policy on a snapshot, after which the policy's state was `state`."""
    for quantity in policy.quantities(snapshot, state, decision):
        threshold = _nearest(quantity)
        if threshold is not None:
            yield threshold
            if threshold.value == threshold.present:
                return


def _nearest(quantity: Quantity) -> Threshold | None:
    """Return where the first change is, if there is one."""
    is_time = quantity.name == PASSED_S
    short: float = quantity.present
    for value in quantity.points:
        then = quantity.then(value)
        if not then:
            short = value
            continue
        while abs(value - short) > (MIN_PASSED_S if is_time else 1):
            middle = (short + value) / 2 if is_time else (short + value) // 2
            found = quantity.then(middle)
            if found:
                value, then = middle, found  # noqa: PLW2901
            else:
                short = middle
        return Threshold(then=then, quantity=quantity.name, value=value, present=quantity.present)
    return None
