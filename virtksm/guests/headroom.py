"""How much more guest memory a host can take, and what it risks. Pure; amounts in KiB.

1. What guests hold is their RSS, and what the RSS lacks: their merged zero pages, and what their huge pages gave back.
   The merge ratio is the share of it that is saved, 0 where nothing is merged; where no guest's zero pages are known,
   all of the host's are theirs.
   While KSM is off nothing new merges, and the ratio counts as 0 below.
2. Reserved for running guests: the reserve of the policy in force, and the guests' growth: for each the memory that it
   may have less its RSS and merged zero pages, all of it where that cannot be read, but at least what is in swap and
   what its huge pages gave back: it may write there again, and KSM has none of it to unmerge. The pool of huge pages
   was taken at the start.
3. Room, that is memory of new guests, on three assumptions, and never less than 0, which means that the host is full:
   - safe: all merged pages unmerge, and none merges again:  available - reserve - growth - needed for unmerging;
   - unmerged: merged pages stay merged, new memory and growth do not merge:  available - reserve - growth;
   - at the ratio: new memory and growth merge like the present memory:  (available - reserve) / (1 - ratio) - growth.
   Where the kernel promises no more than it has, no room is more than it still promises: guests ask for all of their
   memory as they start, and merging does not lower what they have asked for.
4. The risk of taking the room at the ratio: if everything unmerges then, the host needs the memory for unmerging,
   the growth and that whole room. The part that is not available, the reserve included, is missing. Free swap is
   counted separately; for the rest the kernel ends processes.
5. Guests that are bound to NUMA nodes have no other memory. The safe room there is what those nodes have available,
   less the reserve, their growth and what unmerging them takes: by what is known of each, else all that is merged. Of a
   guest with several sets of nodes each counts for an equal part. It is never more than the host's, and others may take
   of it. All else is of the host as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from virtksm.model.snapshot import Guest, HostMemory, KsmState, NodeMemory

if TYPE_CHECKING:
    from virtksm.config.schema import Config
    from virtksm.guests.xml import GuestXml

Nodes = tuple[int, ...]

MAX_RATIO = 0.95
"""New guests are never more alike than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestNeed:
    """A guest's memory, held and at most, without the pool of huge pages; None where it is unknown.

    `freed_kib` is what its huge pages gave back, `swapped_kib` what is in swap: it holds neither. `merged_kib` is what
    of it is merged. `bound_to` are the sets of NUMA nodes that it is bound to.
    """

    held_kib: int | None
    max_kib: int | None
    freed_kib: int = 0
    swapped_kib: int = 0
    merged_kib: int | None = None
    bound_to: tuple[Nodes, ...] = ()

    @property
    def growth_kib(self) -> int:
        return max((self.max_kib or 0) - (self.held_kib or 0), self.freed_kib + self.swapped_kib)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host's side of the arithmetic; `swap_free_kib` is None where it is unknown.

    `commit_left_kib` is what the kernel still promises, None where it promises anything.
    `saved_kib` is what KSM saves on the guests, `zero_kib` what of it are zero pages that no guest's
    figure has; `unmerging_kib` is what unmerging all that is merged takes. `is_merging` is False while KSM is off.
    """

    available_kib: int
    reserve_kib: int
    saved_kib: int
    zero_kib: int = 0
    unmerging_kib: int
    swap_free_kib: int | None
    commit_left_kib: int | None = None
    is_merging: bool


class Room(NamedTuple):
    """Memory of further guests in KiB, on the assumptions of rule 3."""

    safe: int
    """All merged pages unmerge."""
    unmerged: int
    """New memory does not merge."""
    at_ratio: int
    """New memory merges as the present does."""


class Risk(NamedTuple):
    """The risk of rule 4; the last two are None where swap is unknown."""

    unmerging_kib: int
    needed_kib: int
    missing_kib: int
    swap_free_kib: int | None
    missing_after_swap_kib: int | None


class Headroom(NamedTuple):
    """What `virtksm headroom --json` prints of the arithmetic (docs/reference.md)."""

    available_kib: int
    reserve_kib: int
    growth_kib: int
    swapped_kib: int
    saved_kib: int
    merge_ratio: float
    room_kib: Room
    risk: Risk


class NodeRoom(NamedTuple):
    """The room of rule 5, on NUMA nodes that guests are bound to."""

    nodes: Nodes
    available_kib: int
    reserve_kib: int
    growth_kib: int
    unmerging_kib: int
    safe_kib: int


def need_of(
    guest: Guest,
    xml: GuestXml,
    max_kib: int | None,
    *,
    zero_kib: int = 0,
    swapped_kib: int = 0,
    merged_kib: int | None = None,
) -> GuestNeed:
    """Return a guest's memory, held and at most; huge pages, as its process or its XML tells, are neither."""
    pool_kib = max_kib if xml.has_hugepages else guest.pool_kib
    return GuestNeed(
        held_kib=None if guest.rss_kib is None else guest.rss_kib + zero_kib,
        max_kib=None if max_kib is None else max_kib - (pool_kib or 0),
        freed_kib=guest.freed_kib,
        swapped_kib=swapped_kib,
        merged_kib=merged_kib,
        bound_to=xml.bound_to,
    )


def host_of(memory: HostMemory, ksm: KsmState, config: Config) -> Host:
    """Return the host's side where no guest's savings are known: all that KSM saves counts as the guests'."""
    return Host(
        available_kib=memory.free_kib if memory.spare_kib is None else memory.spare_kib,
        reserve_kib=find_reserve_kib(config, memory),
        saved_kib=ksm.saved_kib or 0,
        zero_kib=ksm.zero_kib or 0,
        unmerging_kib=ksm.unmerge_kib or 0,
        swap_free_kib=memory.spare_swap_kib,
        commit_left_kib=memory.commit_left_kib,
        is_merging=ksm.run in (None, 1),
    )


def find_reserve_kib(config: Config, memory: HostMemory) -> int:
    """Return the reserve of the policy in force."""
    if config.policy == "ksmtuned":
        from virtksm.policy.ksmtuned import threshold_kib

        return threshold_kib(memory.total_kib, config.ksmtuned)
    from virtksm.policy.adaptive.engage import reserve_of_kib

    return reserve_of_kib(memory.usable_kib, config.adaptive)


def find_headroom(guests: Iterable[GuestNeed], host: Host) -> Headroom:
    """Return the room for more guest memory."""
    known = list(guests)
    held_kib = sum((guest.held_kib or 0) + guest.freed_kib for guest in known)
    growth_kib = sum(guest.growth_kib for guest in known)
    ratio = min(host.saved_kib / (held_kib + host.zero_kib), MAX_RATIO) if held_kib else 0.0
    free_kib = host.available_kib - host.reserve_kib

    def room(kib: int) -> int:
        return max(kib if host.commit_left_kib is None else min(kib, host.commit_left_kib), 0)

    at_ratio_kib = room(int(free_kib / (1 - (ratio if host.is_merging else 0.0))) - growth_kib)
    needed_kib = host.unmerging_kib + growth_kib + at_ratio_kib
    missing_kib = max(needed_kib - host.available_kib, 0)
    after_swap_kib = None if host.swap_free_kib is None else max(missing_kib - host.swap_free_kib, 0)
    return Headroom(
        available_kib=host.available_kib,
        reserve_kib=host.reserve_kib,
        growth_kib=growth_kib,
        swapped_kib=sum(guest.swapped_kib for guest in known),
        saved_kib=host.saved_kib,
        merge_ratio=round(ratio, 4),
        room_kib=Room(room(free_kib - growth_kib - host.unmerging_kib), room(free_kib - growth_kib), at_ratio_kib),
        risk=Risk(host.unmerging_kib, needed_kib, missing_kib, host.swap_free_kib, after_swap_kib),
    )


def find_node_rooms(
    guests: Iterable[GuestNeed], bound: Mapping[Nodes, NodeMemory], config: Config, *, unmerging_kib: int, safe_kib: int
) -> list[NodeRoom]:
    """Return the room of each set of NUMA nodes, by `GuestNeed.bound_to`; the host's are the last two figures."""
    known, rooms = list(guests), []
    for nodes, memory in bound.items():
        growth_kib = there_kib = 0
        for guest in known:
            sets = guest.bound_to
            if nodes in sets:
                merged_kib = unmerging_kib if guest.merged_kib is None else guest.merged_kib
                growth_kib += guest.growth_kib * sets.count(nodes) // len(sets)
                there_kib += merged_kib * sets.count(nodes) // len(sets)
        usable = HostMemory(total_kib=memory.usable_kib, free_kib=0, buffers_kib=0, cached_kib=0)
        reserve_kib, there_kib = find_reserve_kib(config, usable), min(there_kib, unmerging_kib)
        room_kib = max(min(memory.available_kib - reserve_kib - growth_kib - there_kib, safe_kib), 0)
        rooms.append(NodeRoom(memory.nodes, memory.available_kib, reserve_kib, growth_kib, there_kib, room_kib))
    return rooms
