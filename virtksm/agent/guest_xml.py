"""Reads the guests' XML, to learn which are private, which cannot merge, and which have one image: beside passes.

A pass lists the running guests; XML that is not known yet is read beside passes, a few at a time, each guest's once a
run, and the next pass knows which guests cannot merge, their images, and which are bound to NUMA nodes (`Tenure`).
libvirt answers once a guest that starts or ends has done so, so the calls are the reader's own: no pass waits for them.
A guest that has vanished is removed; XML that cannot be read or understood is reported once and counts as that of a
guest that can merge. After a call that failed as a whole, the other guests are read first, and then each guest alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from virtksm.agent.calls import GuestCalls, wait_next
from virtksm.agent.configuration import Configuration
from virtksm.agent.log import Reporter
from virtksm.errors import VirtksmError
from virtksm.guests.obstacles import exposed, find_mixed, find_obstacles
from virtksm.guests.ports import Descriptions
from virtksm.guests.xml import UNKNOWN, GuestXml, read_guests
from virtksm.model.snapshot import NO_TRAITS, Guest, Traits
from virtksm.tuning.sense import GuestNotes

READ_AT_ONCE = 8
"""Guests whose XML one call reads (chosen)."""


@dataclass(slots=True)
class GuestReader:
    """Reads the XML of guests that passes have seen, a few at a time.

    `source` gives the host, None while there is no connection.
    """

    source: Callable[[], Descriptions | None]
    configuration: Configuration
    reporter: Reporter
    notes: GuestNotes = field(default_factory=GuestNotes)
    """Traits outlive a connection: a key is one run's."""
    running: tuple[Guest, ...] | None = None
    """The guests of the last pass over this connection."""
    known: dict[str, GuestXml] = field(default_factory=dict)
    due: dict[str, Guest] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    """Those asked for since the call that is out began, which may have read what was before: they stay due."""
    at_once: int = READ_AT_ONCE
    calls: GuestCalls = field(default_factory=partial(GuestCalls, 0))
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    learned: Callable[[], None] = lambda: None
    """Called when guests have gone or their XML was read: `name_exposed` is due."""
    _exposed: tuple[tuple[Guest, ...], Sequence[str], frozenset[str], tuple[str, ...]] | None = None
    """The guests, patterns and unmerged ones that were asked for last, and the answer, as long as it holds."""

    def see(self, running: tuple[Guest, ...], *, again: bool) -> None:
        """Note the guests that run; `again`: all of them are read again."""
        if running is self.running and not again and not self.due:
            return  # a pass that has sensed no guests anew
        guests = {guest.key: guest for guest in running}
        is_same = self.running is not None and not again and guests.keys() == self.known.keys()
        self.running, self._exposed = running, None
        self.known = {key: xml for key, xml in self.known.items() if key in guests}
        for key in self.notes.traits.keys() - guests.keys():
            del self.notes.traits[key]
        in_order = (*self.due, *guests)  # those that were postponed stay behind
        is_due = {key for key in guests if again or key not in self.known or key in self.due}
        self.due = {key: guests[key] for key in in_order if key in is_due}
        self.asked.update(guests if again else ())
        if not is_same:
            self.learned()
        self.seen.set()

    def reread(self, uuid: str) -> None:
        """Read a guest's XML again: its metadata or its memory has changed."""
        asked = {guest.key: guest for guest in self.running or () if guest.uuid == uuid}
        self.due.update(asked)
        self.asked.update(asked)
        self.seen.set()

    def exposed(self, running: tuple[Guest, ...], patterns: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the private guests that can merge, as far as is known."""
        asked = self._exposed
        if asked is None or not (asked[0] is running and asked[1] == patterns and asked[2] == self.notes.unmerged):
            unmerged = frozenset(self.notes.unmerged)
            asked = self._exposed = running, patterns, unmerged, exposed(running, self.known, patterns, unmerged)
        return asked[3]

    def forget(self) -> None:
        """Forget all: the connection is another one."""
        self.known, self.due, self.running, self._exposed = {}, {}, None, None
        self.calls.begin_anew()

    async def read_when_due(self) -> None:
        """Read some of the guests that are due, or wait for a pass that sees one."""
        host = self.source()
        if host is None or not self.due:
            await wait_next(self.seen)
            return
        guests = tuple(self.due.values())[: self.at_once]
        self.asked.clear()
        try:
            limit_s = self.configuration.in_force.call_timeout_s
            seen, failures = await self.calls.one.run("read guests' XML", partial(read_guests, host, guests), limit_s)
        except VirtksmError as error:
            self._postpone(guests)
            self.reporter.guest_xml_unreadable(error)
            await wait_next(self.seen)  # until the next pass finds libvirt answering
            return
        for failure in failures:
            self.reporter.guest_xml_unreadable(failure)
        if host is self.source():
            self._learn(seen)
            self.learned()

    def _postpone(self, guests: Iterable[Guest]) -> None:
        """Read these after all others, and each alone, or one bad guest would keep the others from being read."""
        self.at_once = 1
        for guest in guests:
            if self.due.pop(guest.key, None) is not None:
                self.due[guest.key] = guest

    def _learn(self, seen: Iterable[tuple[Guest, GuestXml | None]]) -> None:
        """Take what was read of guests that still run; None for a guest that has ended."""
        self._exposed = None
        for guest, xml in seen:
            was_due = guest.key in self.due
            if guest.key not in self.asked:
                self.due.pop(guest.key, None)
            if was_due and xml is not None:
                self.known[guest.key] = xml
                if xml is not UNKNOWN:
                    traits = Traits(can_merge=not find_obstacles(xml), image=xml.image, bound_to=xml.bound_to)
                    if traits != NO_TRAITS:
                        self.notes.traits[guest.key] = traits  # in one step: a pass may read it meanwhile
                    else:
                        self.notes.traits.pop(guest.key, None)
        if not self.due:
            self.at_once = READ_AT_ONCE

    def name_exposed(self) -> None:
        """Report the private guests that can merge, once all are known."""
        if self.running is not None and not self.due:  # or those not yet read would be named again
            patterns = self.configuration.in_force.private_guests
            self.reporter.guests_exposed(self.exposed(self.running, patterns))
            self.reporter.groups_mixed(self._count_mixed(self.running))

    def _count_mixed(self, running: Iterable[Guest]) -> int:
        """Count the groups that share a KSM pool with another; where none is declared at no cost (0.6 ms for 500)."""
        if not any(xml.group for xml in self.known.values()):
            return 0
        known = [(guest, xml, None) for guest in running if (xml := self.known.get(guest.key)) is not None]
        return sum(map(len, find_mixed(known, self.notes.unmerged)))
