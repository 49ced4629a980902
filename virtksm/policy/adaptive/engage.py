"""Rules 1 and 2 of the adaptive law: whether merging is worth anything now, and how short memory is.

Merging while memory is plenty is a cost (it splits huge pages, and a later write is a copy-on-write fault), so with
`engage = "auto"` the policy acts when memory is short, or will be once the running guests have grown to their maximum;
with "short" it looks at available memory alone. `HostMemory` says what memory there is to be short of. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import Snapshot
from virtksm.text import format_kib
from virtksm.values import replace

HYSTERESIS = 1.25
"""Disengages only this factor above the reserve: noise at the border never flaps (chosen)."""


class Need(NamedTuple):
    """`pressure` is 0.0 with the reserve available or more, 1.0 with nothing available; `why` says why not engaged."""

    engaged: bool
    pressure: float
    why: str


def reserve_of_kib(usable_kib: int, params: AdaptiveParams) -> int:
    """Return how much of `usable_kib` should stay available."""
    return usable_kib * params.reserve_percent // 100


def available_of_kib(snapshot: Snapshot) -> int:
    """Return the host's available memory; where it is unknown, what is free or cache."""
    host = snapshot.host
    return host.free_kib + host.buffers_kib + host.cached_kib if host.spare_kib is None else host.spare_kib


def with_available(snapshot: Snapshot, available_kib: int) -> Snapshot:
    """Return the same host with so much memory available."""
    host = replace(snapshot.host, available_kib=available_kib, arc_kib=None, limit_left_kib=None)
    return replace(snapshot, host=host)


def potential_of_kib(snapshot: Snapshot) -> int:
    """Return how much memory the guests can grow to together, pool aside; a guest holds already what it holds."""
    return sum(max((guest.max_kib or 0) - (guest.pool_kib or 0), guest.rss_kib or 0) for guest in snapshot.guests)


def judge_need(snapshot: Snapshot, params: AdaptiveParams, *, was_engaged: bool) -> Need:
    """Decide whether to act (rule 1) and how hard memory presses (rule 2)."""
    usable_kib, available_kib = snapshot.host.usable_kib, available_of_kib(snapshot)
    reserve_kib = reserve_of_kib(usable_kib, params)
    pressure = 0.0 if reserve_kib <= 0 else min(max(1 - available_kib / reserve_kib, 0.0), 1.0)
    if params.engage in ("always", "never"):
        return Need(engaged=params.engage == "always", pressure=pressure, why=f'engage = "{params.engage}"')
    wanted_kib = int(reserve_kib * HYSTERESIS) if was_engaged else reserve_kib
    usable = format_kib(usable_kib)
    available = format_kib(available_kib).removesuffix(f" {usable.split()[-1]}")
    engaged, why = available_kib < wanted_kib, f"memory is not short: {available} of {usable} available"
    if params.engage == "auto":
        potential_kib = potential_of_kib(snapshot)
        engaged = engaged or potential_kib + wanted_kib > usable_kib
        why += f", guests can grow to {format_kib(potential_kib)}"
    return Need(engaged=engaged, pressure=pressure, why=why)
