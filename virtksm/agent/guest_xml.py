"""Looks at the guests' XML, for which of them are private: off the hot path, a few at a time, each guest once a run.

A pass tells which guests run; what is not known of them yet is read between passes. Each look is one short call, so
that a pass that becomes due meanwhile waits for READ_AT_ONCE guests at most. A guest that has vanished is struck off;
XML that cannot be read or understood says so once and counts as that of a guest that can merge. After a look that
failed as a whole, those are read first that it was not for, and each guest alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from virtksm.guests.obstacles import exposed
from virtksm.guests.xml import GuestXml
from virtksm.model.snapshot import Guest

READ_AT_ONCE = 8


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
