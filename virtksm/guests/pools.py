"""Which groups' guests share a KSM pool, so that each may learn what the other's memory holds. Pure.

A guest's group, its tenant say, is declared in its metadata (guests/xml.py). A pool is all guests whose pages can merge
with one another's. Linux has one pool for a host. With merge_across_nodes = 0 it has one for each NUMA node; which
nodes a guest's pages are on is not known here, and they move, so all guests count as one pool then, too. A kernel that
keeps groups apart needs another `find_pools`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from virtksm.guests.obstacles import find_obstacles
from virtksm.guests.xml import GuestXml
from virtksm.model.snapshot import Guest

if TYPE_CHECKING:
    from virtksm.guests.process import GuestProcess  # making it is start-up time, and the agent has none

Pool = Mapping[str | None, Sequence[str]]
"""The names of a pool's guests, by their group; None for guests that declare none."""


def find_pools(
    guests: Iterable[tuple[Guest, GuestXml, GuestProcess | None]], unmerged: Collection[str] = ()
) -> tuple[Pool, ...]:
    """Return the pools of the guests that can merge; video memory and firmware beside their RAM count.

    But not those of the guests (`Guest.key`) that were unmerged while they run, as of private ones: that is the remedy.
    """
    pool: dict[str | None, list[str]] = {}
    for guest, xml, process in guests:
        if guest.key not in unmerged and not any(obstacle.is_whole for obstacle in find_obstacles(xml, process)):
            pool.setdefault(xml.group, []).append(guest.name)
    return (pool,) if pool else ()


def find_mixed(pools: Iterable[Pool]) -> tuple[Pool, ...]:
    """Return the pools that guests of different groups share; guests without a group are none of the others'."""
    return tuple(pool for pool in pools if len(pool) > 1)


def pool_text(pool: Pool) -> str:
    """Name a pool's groups, with the number of their guests."""
    parts = [
        f"{'no group' if group is None else group} ({len(names)})"
        for group, names in sorted(pool.items(), key=lambda one: (one[0] is None, one[0] or ""))
    ]
    return ", ".join(parts)
