"""Looks at the guests' XML, for which of them are private: off the hot path, a few at a time, each guest once a run.

A pass tells which guests run; what is not known of them yet is read between passes. Each look is one short call, so
that a pass that becomes due meanwhile waits for READ_AT_ONCE guests at most. A guest that has vanished is struck off;
XML that cannot be read or understood says so once and counts as that of a guest that can merge. After a look that
failed as a whole, those are read first that it was not for, and each guest alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from virtksm.agent.calls import BlockingCalls
from virtksm.agent.configuration import Configuration
from virtksm.agent.log import Reporter
from virtksm.errors import VirtksmError
from virtksm.guests.obstacles import exposed
from virtksm.guests.ports import Descriptions
from virtksm.guests.xml import GuestXml, Seen, read_guests
from virtksm.model.snapshot import Guest

READ_AT_ONCE = 8
LOOK_S = 0.05
"""No further guest's XML is read in a look that has taken so long: a pass may be waiting for it."""


class GuestLook:
    """What is known of the running guests' XML, and what is still to be read."""

    def __init__(self) -> None:
        self._known: dict[str, GuestXml] = {}
        self._due: dict[str, Guest] = {}
        self._has_seen = False
        self._at_once = READ_AT_ONCE

    @property
    def is_due(self) -> bool:
        return bool(self._due)

    @property
    def is_complete(self) -> bool:
        """Whether all guests that the last pass over this connection has seen are read."""
        return self._has_seen and not self._due

    def see(self, running: Iterable[Guest], *, afresh: bool) -> None:
        """Take note of the guests that run; `afresh`, all of them are read again."""
        self._has_seen = True
        guests = {guest.key: guest for guest in running}
        self._known = {key: xml for key, xml in self._known.items() if key in guests}
        self._due = {
            key: guest for key, guest in guests.items() if afresh or key not in self._known or key in self._due
        }

    def forget(self) -> None:
        """Forget all: the connection is another one."""
        self._known, self._due, self._has_seen = {}, {}, False

    def next_guests(self) -> tuple[Guest, ...]:
        """Return the guests to read now."""
        return tuple(self._due.values())[: self._at_once]

    def postpone(self, guests: Iterable[Guest]) -> None:
        """Read these after all others that are due, and each guest alone until nothing is due."""
        self._at_once = 1
        for guest in guests:
            if self._due.pop(guest.key, None) is not None:
                self._due[guest.key] = guest

    def learn(self, seen: Iterable[tuple[Guest, GuestXml | None]]) -> None:
        """Take what `read_guests` found; None for a guest that has ended."""
        for guest, xml in seen:
            if self._due.pop(guest.key, None) is not None and xml is not None:
                self._known[guest.key] = xml
        if not self._due:
            self._at_once = READ_AT_ONCE

    def exposed(self, running: Iterable[Guest], patterns: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the private guests that can merge, as far as is known."""
        return exposed(running, self._known, patterns)


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
    look: GuestLook = field(default_factory=GuestLook)
    look_s: float = LOOK_S
    running: tuple[Guest, ...] = ()
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    is_stopping: bool = False

    def see(self, running: tuple[Guest, ...], *, afresh: bool) -> None:
        """Take note of the guests that run; `afresh`, all of them are read again."""
        self.running = running
        self.look.see(running, afresh=afresh)
        self._name_exposed()
        self.seen.set()

    def exposed(self, running: Iterable[Guest], patterns: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the private guests that can merge, as far as is known."""
        return self.look.exposed(running, patterns)

    def forget(self) -> None:
        """Forget all: the connection is another one."""
        self.look.forget()

    def stop(self) -> None:
        """Read no further guest."""
        self.is_stopping = True
        self.seen.set()

    async def read_when_due(self) -> None:
        """Read some of the guests that are due, or wait for a pass that sees one."""
        host = self.source()
        if host is None or not self.look.is_due:
            await self._wait_seen()
            return
        guests = self.look.next_guests()
        work = partial(_read_a_while, host, guests, self.look_s)
        try:
            limit_s = self.configuration.in_force.call_timeout_s
            seen, failures = await self.calls.run("look at guests", work, limit_s)
        except VirtksmError as error:
            self.look.postpone(guests)  # or whichever of them it is would keep the others from being read
            self.reporter.look_failed(error)
            await self._wait_seen()  # the next pass tells whether libvirt answers again
            return
        for failure in failures:
            self.reporter.look_failed(failure)
        if host is self.source():
            self.look.learn(seen)
            self._name_exposed()

    async def _wait_seen(self) -> None:
        """Sleep until a pass has seen guests, or the agent stops."""
        self.seen.clear()
        if not self.is_stopping:
            await self.seen.wait()

    def _name_exposed(self) -> None:
        if self.look.is_complete:  # or those not yet read would be named again
            patterns = self.configuration.in_force.private_guests
            self.reporter.guests_exposed(self.look.exposed(self.running, patterns))


def _read_a_while(source: Descriptions, guests: tuple[Guest, ...], look_s: float) -> Seen:
    """Read guests' XML, no further one once `look_s` is over. Blocks."""
    end_s = time.monotonic() + look_s
    return read_guests(source, guests, is_over=lambda: time.monotonic() >= end_s)
