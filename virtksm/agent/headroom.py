"""The room for more guest memory as a scheduler reads it: the headroom of each pass, steadied. Beside passes.

1. It is found after a pass that has read guests and memory anew, once the XML of all guests is known, from both alone:
   nothing is read for it. So it is what `virtksm headroom` says without root, but for memory in swap.
2. It is unknown while a guest's XML or maximum is.
3. A room falls at once: what is published is never more than what was found last.
4. It rises slowly: once each pass of RISE_S has found more, by at least a STEP of the host's memory, and then to
   the least that these have found. So noise never makes it rise, and it rises once in RISE_S at most.

The state is the agent's and ends with it: a new one publishes at once what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from virtksm.agent.passes import DonePass
from virtksm.guests.headroom import find_headroom, host_of, need_of
from virtksm.guests.xml import GuestXml

RISE_S = 600.0
"""Ten times as long as nova's and KubeVirt's nodes report their resources, by default or less (chosen)."""
STEP = 50
"""This part of the memory that guests can share, 2 %: more than an idle host's noise (chosen)."""


class SteadyRoom(NamedTuple):
    """One published room, and the least that passes have found above it since `since_s`."""

    kib: int
    min_kib: int = 0
    since_s: float | None = None


def steady(room: SteadyRoom | None, found_kib: int, now_s: float, step_kib: int) -> SteadyRoom:
    """Return the room to publish once `found_kib` was found (rules 3 and 4); time is of a clock that does not step."""
    if room is None or found_kib <= room.kib:
        return SteadyRoom(found_kib)
    if found_kib < room.kib + step_kib:
        return SteadyRoom(room.kib)
    if room.since_s is None:
        return SteadyRoom(room.kib, found_kib, now_s)
    min_kib = min(room.min_kib, found_kib)
    return SteadyRoom(min_kib) if now_s - room.since_s >= RISE_S else room._replace(min_kib=min_kib)


@dataclass(slots=True)
class Rooms:
    """The rooms by name, from pass to pass; `known` is the guests' XML by `Guest.key`."""

    _last: DonePass | None = None
    """The last pass that has read guests and memory anew."""
    _is_due: bool = False
    _rooms: Mapping[str, SteadyRoom] | None = None

    def passed(self, done: DonePass, known: Mapping[str, GuestXml]) -> None:
        # Within a full scan most passes read KSM's counters alone, which do not go with the memory of a moment ago.
        if self._last is None or not done.report.snapshot.is_sensed_with(self._last.report.snapshot):
            self._last, self._is_due = done, True
            self.room_kib(known)

    def room_kib(self, known: Mapping[str, GuestXml]) -> Mapping[str, int] | None:
        """Return the rooms as published; None while they are unknown."""
        if self._is_due and self._last is not None:
            found_kib = find_room_kib(self._last, known)
            if found_kib is None:
                return None
            step_kib = self._last.report.snapshot.host.usable_kib // STEP
            before = self._rooms or {}
            self._rooms = {
                name: steady(before.get(name), kib, self._last.ended_s, step_kib) for name, kib in found_kib.items()
            }
            self._is_due = False
        return None if self._rooms is None else {name: room.kib for name, room in self._rooms.items()}


def find_room_kib(done: DonePass, known: Mapping[str, GuestXml]) -> Mapping[str, int] | None:
    """Return the rooms after a pass; None while a guest's XML or maximum is unknown."""
    snapshot, needs = done.report.snapshot, []
    for guest in snapshot.guests:
        xml = known.get(guest.key)
        max_kib = guest.max_kib if xml is None or guest.max_kib is not None else xml.memory_kib
        if xml is None or max_kib is None:
            return None
        needs.append(need_of(guest, xml, max_kib))
    return find_headroom(needs, host_of(snapshot.host, snapshot.ksm, done.config)).room_kib._asdict()
