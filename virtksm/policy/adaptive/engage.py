"""Rules 1 and 2 of the adaptive law: whether merging is worth anything now, and how much memory presses.

Merging memory that nobody needs is a cost (it splits huge pages, and a later write is a copy-on-write fault), so with
`engage = "auto"` the policy acts when memory is short, or will be once the running guests have grown to what they may.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtksm.config.schema import AdaptiveParams
from virtksm.model import Snapshot
from virtksm.units import format_kib

HYSTERESIS = 1.25
"""What engaged the policy must be left behind by this factor before it disengages: noise at the border never flaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """`pressure` is 0.0 with the reserve available or more, 1.0 with nothing available."""

    engaged: bool
    pressure: float
    why: str


def judge_need(snapshot: Snapshot, params: AdaptiveParams, *, was_engaged: bool) -> Need:
    """Decide whether to act (rule 1) and how hard memory presses (rule 2)."""
    host = snapshot.host
    free_kib = host.free_kib + host.buffers_kib + host.cached_kib
    available_kib = free_kib if host.available_kib is None else host.available_kib
    reserve_kib = host.total_kib * params.reserve_percent // 100
    pressure = 0.0 if reserve_kib <= 0 else min(max(1 - available_kib / reserve_kib, 0.0), 1.0)
    if params.engage != "auto":
        return Need(engaged=params.engage == "always", pressure=pressure, why=f'engage = "{params.engage}"')
    wanted_kib = int(reserve_kib * HYSTERESIS) if was_engaged else reserve_kib
    available = f"{format_kib(available_kib)} available"
    if available_kib < wanted_kib:
        return Need(engaged=True, pressure=pressure, why=f"{available}, less than {format_kib(wanted_kib)}")
    potential_kib = sum(max(guest.max_kib or 0, guest.rss_kib or 0) for guest in snapshot.guests)
    if potential_kib + wanted_kib > host.total_kib:
        grown = f"guests may grow to {format_kib(potential_kib)}, which leaves less than {format_kib(wanted_kib)}"
        return Need(engaged=True, pressure=pressure, why=grown)
    plenty = f"{available} of {format_kib(host.total_kib)}, guests may grow to {format_kib(potential_kib)}"
    return Need(engaged=False, pressure=pressure, why=plenty)
