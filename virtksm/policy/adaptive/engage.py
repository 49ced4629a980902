"""Rule 1 of the adaptive law: whether merging is worth anything now, and how short memory is.

Merging while memory is plenty is a cost (it splits huge pages, and a later write is a copy-on-write fault), so with
`engage = "auto"` the policy acts when memory is short, or will be once the running guests have grown to their maximum;
with "short" it looks at available memory alone. `HostMemory` says what memory there is to be short of. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from virtksm.config.schema import AdaptiveParams
from virtksm.model.snapshot import NodeMemory, Snapshot
from virtksm.text import format_kib, nodes_text
from virtksm.values import replace

HYSTERESIS = 1.25
"""Disengages only this factor above the reserve (chosen)."""


class Need(NamedTuple):
    """`pressure` is 0.0 with the reserve available or more, 1.0 with nothing available; `why` says why not engaged.

    `where` names the NUMA nodes that make memory short; it is empty where the host as a whole is.
    """

    engaged: bool
    pressure: float
    why: str
    where: str = ""


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
    return sum(guest.potential_kib for guest in snapshot.guests)


def judge_need(snapshot: Snapshot, params: AdaptiveParams, *, was_engaged: bool) -> Need:
    """Decide whether to act and how hard memory presses, on the host or where guests are bound to."""
    is_auto = params.engage == "auto"
    potential_kib = potential_of_kib(snapshot) if is_auto else 0
    host = NodeMemory(snapshot.host.usable_kib, available_of_kib(snapshot), potential_kib)
    places = (_judge(one, params, was_engaged=was_engaged) for one in (host, *snapshot.bound))
    need = max(places, key=lambda one: (one.pressure, one.engaged))  # the host, where nodes are as short
    if params.engage in ("always", "never"):
        return replace(need, engaged=params.engage == "always", why=f'engage = "{params.engage}"')
    why = f"memory is not short: {_available_text(host)}"
    if is_auto:
        why += f", guests can grow to {format_kib(potential_kib)}"
    return replace(need, why=why)


def _judge(memory: NodeMemory, params: AdaptiveParams, *, was_engaged: bool) -> Need:
    """Judge the memory of the host, or of NUMA nodes that guests are bound to; why not is left to say."""
    reserve_kib = reserve_of_kib(memory.usable_kib, params)
    wanted_kib = int(reserve_kib * HYSTERESIS) if was_engaged else reserve_kib
    may_be = params.engage == "auto" and memory.potential_kib + wanted_kib > memory.usable_kib
    pressure = 0.0 if reserve_kib <= 0 else min(max(1 - memory.available_kib / reserve_kib, 0.0), 1.0)
    is_short, where = memory.available_kib < wanted_kib, ""
    if memory.nodes and is_short:
        where = f"memory is short on {nodes_text(memory.nodes)}: {_available_text(memory)}"
    elif memory.nodes and may_be:
        where = f"memory may be short on {nodes_text(memory.nodes)}: "
        where += f"guests can grow to {format_kib(memory.potential_kib)} there"
    return Need(engaged=is_short or may_be, pressure=pressure, why="", where=where)


def _available_text(memory: NodeMemory) -> str:
    usable = format_kib(memory.usable_kib)
    return f"{format_kib(memory.available_kib).removesuffix(f' {usable.split()[-1]}')} of {usable} available"
