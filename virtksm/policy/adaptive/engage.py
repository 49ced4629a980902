"""Rules 1 and 2 of the adaptive law: whether merging is worth anything now, and how much memory presses.

Merging memory that nobody needs is a cost (it splits huge pages, and a later write is a copy-on-write fault), so with
`engage = "auto"` the policy acts when memory is short, or will be once the running guests have grown to what they may.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from virtksm.config.schema import AdaptiveParams
from virtksm.model.decision import Turn
from virtksm.model.snapshot import Snapshot
from virtksm.text import format_kib

HYSTERESIS = 1.25
"""What engaged the policy must be left behind by this factor before it disengages: noise at the border never flaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """`pressure` is 0.0 with the reserve available or more, 1.0 with nothing available.

    `turns` are those that rule 1 has for the next look.
    """

    engaged: bool
    pressure: float
    why: str
    turns: tuple[Turn, ...] = ()


def reserve_of_kib(total_kib: int, params: AdaptiveParams) -> int:
    """Return the memory that should stay available on a host of `total_kib`."""
    return total_kib * params.reserve_percent // 100


def judge_need(snapshot: Snapshot, params: AdaptiveParams, *, was_engaged: bool) -> Need:
    """Decide whether to act (rule 1) and how hard memory presses (rule 2)."""
    host = snapshot.host
    free_kib = host.free_kib + host.buffers_kib + host.cached_kib
    available_kib = free_kib if host.available_kib is None else host.available_kib
    reserve_kib = reserve_of_kib(host.total_kib, params)
    pressure = 0.0 if reserve_kib <= 0 else min(max(1 - available_kib / reserve_kib, 0.0), 1.0)
    if params.engage != "auto":
        return Need(engaged=params.engage == "always", pressure=pressure, why=f'engage = "{params.engage}"')
    wanted_kib = _wanted_kib(reserve_kib, was_engaged=was_engaged)
    potential_kib = sum(max(guest.max_kib or 0, guest.rss_kib or 0) for guest in snapshot.guests)
    available = f"{format_kib(available_kib)} available"
    engaged = True
    if available_kib < wanted_kib:
        why = f"{available}, less than {format_kib(wanted_kib)}"
    elif potential_kib + wanted_kib > host.total_kib:
        why = f"guests may grow to {format_kib(potential_kib)}, which leaves less than {format_kib(wanted_kib)}"
    else:
        engaged = False
        why = f"{available} of {format_kib(host.total_kib)}, guests may grow to {format_kib(potential_kib)}"
    turns = _find_turns(snapshot, available_kib, potential_kib, reserve_kib, engaged=engaged)
    return Need(engaged=engaged, pressure=pressure, why=why, turns=tuple(turns))


def _wanted_kib(reserve_kib: int, *, was_engaged: bool) -> int:
    return int(reserve_kib * HYSTERESIS) if was_engaged else reserve_kib


def _find_turns(
    snapshot: Snapshot, available_kib: int, potential_kib: int, reserve_kib: int, *, engaged: bool
) -> Iterator[Turn]:
    """Yield what would engage the policy, or alone have it disengage; guests hold already what they hold."""
    total_kib, wanted_kib = snapshot.host.total_kib, _wanted_kib(reserve_kib, was_engaged=engaged)
    most_kib = total_kib - wanted_kib
    is_short, will_be_short = available_kib < wanted_kib, potential_kib > most_kib
    if not engaged:
        if wanted_kib > 0:
            yield Turn(then="engages", quantity="available_kib", threshold=wanted_kib - 1, present=available_kib)
        yield Turn(then="engages", quantity="potential_kib", threshold=most_kib + 1, present=potential_kib)
    elif is_short and not will_be_short:
        yield Turn(then="disengages", quantity="available_kib", threshold=wanted_kib, present=available_kib)
    elif will_be_short and not is_short and snapshot.committed_kib <= most_kib:
        yield Turn(then="disengages", quantity="potential_kib", threshold=most_kib, present=potential_kib)
