"""Reads the guests' XML, to learn which are private and which cannot merge: between passes, each guest once a run.

A pass lists the running guests; XML that is not known yet is read between passes, a few at a time, and the next pass
knows which guests cannot merge (`Tenure.unmergeable`). Each call is short, so a pass that becomes due meanwhile waits
for READ_AT_ONCE guests at most. A guest that has vanished is removed; XML that cannot be read or understood is reported
once and counts as that of a guest that can merge. After a call that failed as a whole, the other guests are read first,
and then each guest alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from virtksm.agent.calls import BlockingCalls
from virtksm.agent.configuration import Configuration
from virtksm.agent.log import Reporter
from virtksm.errors import VirtksmError
from virtksm.guests.obstacles import exposed, find_obstacles
from virtksm.guests.ports import Descriptions
from virtksm.guests.xml import UNKNOWN, GuestXml, Seen, read_guests
from virtksm.model.snapshot import Guest

READ_AT_ONCE = 8
READ_S = 0.05
"""A call that has taken so long reads no further guest: a pass may be waiting for it."""


@dataclass(slots=True)
class GuestReader:
    """Reads the XML of guests that passes have seen, a few at a time, between passes.

    `source` gives the host, None while there is no connection; `calls` are those of passes, so that one waits for the
    other.
    """

    source: Callable[[], Descriptions | None]
    configuration: Configuration
    calls: BlockingCalls
    reporter: Reporter
    unmergeable: set[str] = field(default_factory=set)
    """The guests (`Guest.key`) that their XML keeps from merging. It outlives a connection: a key is one run's."""
    bound_to: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """The sets of NUMA nodes that guests are bound to, as long as it."""
    running: tuple[Guest, ...] | None = None
    """The guests of the last pass over this connection."""
    known: dict[str, GuestXml] = field(default_factory=dict)
    due: dict[str, Guest] = field(default_factory=dict)
    at_once: int = READ_AT_ONCE
    read_s: float = READ_S
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    is_stopping: bool = False
    _exposed: tuple[tuple[Guest, ...], Sequence[str], tuple[str, ...]] | None = None
    """The guests and the patterns that were asked for last, and the answer, as long as it holds."""

    def see(self, running: tuple[Guest, ...], *, again: bool) -> None:
        """Note the guests that run; `again`: all of them are read again."""
        if running is self.running and not again and not self.due:
            return  # a pass that has sensed no guests anew
        self.running = running
        guests = {guest.key: guest for guest in running}
        self.known = {key: xml for key, xml in self.known.items() if key in guests}
        self.unmergeable.intersection_update(guests)
        for key in self.bound_to.keys() - guests.keys():
            del self.bound_to[key]
        in_order = (*self.due, *guests)  # those that were postponed stay behind
        is_due = {key for key in guests if again or key not in self.known or key in self.due}
        self.due = {key: guests[key] for key in in_order if key in is_due}
        self._name_exposed()
        self.seen.set()

    def exposed(self, running: tuple[Guest, ...], patterns: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the private guests that can merge, as far as is known."""
        if self._exposed is None or not (self._exposed[0] is running and self._exposed[1] == patterns):
            self._exposed = running, patterns, exposed(running, self.known, patterns)
        return self._exposed[2]

    def forget(self) -> None:
        """Forget all: the connection is another one."""
        self.known, self.due, self.running, self._exposed = {}, {}, None, None

    def stop(self) -> None:
        """Read no further guest."""
        self.is_stopping = True
        self.seen.set()

    async def read_when_due(self) -> None:
        """Read some of the guests that are due, or wait for a pass that sees one."""
        host = self.source()
        if host is None or not self.due:
            await self._wait_seen()
            return
        guests = tuple(self.due.values())[: self.at_once]
        work = partial(_read_a_while, host, guests, self.read_s)
        try:
            limit_s = self.configuration.in_force.call_timeout_s
            seen, failures = await self.calls.run("read guests' XML", work, limit_s)
        except VirtksmError as error:
            self._postpone(guests)
            self.reporter.guest_xml_unreadable(error)
            await self._wait_seen()  # until the next pass finds libvirt answering
            return
        for failure in failures:
            self.reporter.guest_xml_unreadable(failure)
        if host is self.source():
            self._learn(seen)
            self._name_exposed()

    async def _wait_seen(self) -> None:
        """Sleep until a pass has seen guests, or the agent stops."""
        self.seen.clear()
        if not self.is_stopping:
            await self.seen.wait()

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
            if self.due.pop(guest.key, None) is not None and xml is not None:
                self.known[guest.key] = xml
                if find_obstacles(xml):
                    self.unmergeable.add(guest.key)
                elif xml is not UNKNOWN:
                    self.unmergeable.discard(guest.key)
                if xml.bound_to:
                    self.bound_to[guest.key] = xml.bound_to
                elif xml is not UNKNOWN:
                    self.bound_to.pop(guest.key, None)
        if not self.due:
            self.at_once = READ_AT_ONCE

    def _name_exposed(self) -> None:
        if self.running is not None and not self.due:  # or those not yet read would be named again
            patterns = self.configuration.in_force.private_guests
            self.reporter.guests_exposed(self.exposed(self.running, patterns))


def _read_a_while(source: Descriptions, guests: tuple[Guest, ...], limit_s: float) -> Seen:
    """Read guests' XML, no further one once `limit_s` is over. Blocks."""
    end_s = time.monotonic() + limit_s
    return read_guests(source, guests, is_over=lambda: time.monotonic() >= end_s)
