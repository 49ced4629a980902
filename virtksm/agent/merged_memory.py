"""How much of each guest is merged, read beside passes where the policy wants it, which judges who rewrites that.

The kernel walks a guest's page tables for it. So one guest is read after the other, all within MAX_SHARE of a core, and
only while ksmd rests and guests rewrite, or once a rest where one has before. It is for root to read: for another user
nothing is known of any guest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from virtksm.agent.calls import BlockingCalls
from virtksm.errors import SensingFailed, VirtksmError
from virtksm.guests.ports import GuestFacts
from virtksm.model.snapshot import Guest, MergedReading

MAX_SHARE = 0.01
"""Of a core, to read what has merged (chosen)."""
LIMIT_S = 30.0
"""Reading a guest is given up after so long (chosen)."""
REMEDY = "it takes Linux 6.7, and CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH (docs/security.md)"


@dataclass(slots=True)
class MergedMemory:
    """The last readings by guest (`Guest.key`), in `merged`. `facts` is None where guests run on another machine."""

    merged: dict[str, MergedReading]
    failing: Callable[[VirtksmError | None], None]
    facts: GuestFacts | None = None
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    calls: BlockingCalls = field(default_factory=partial(BlockingCalls, SensingFailed, LIMIT_S))
    wanted: tuple[Guest, ...] = ()
    failure: VirtksmError | None = None
    """Why nothing could be read last."""
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    def connect(self, facts: GuestFacts | None) -> None:
        """Go on over another connection, or under another configuration."""
        self.facts, self.wanted = facts, ()
        self._note(None)

    def see(self, running: tuple[Guest, ...], *, is_wanted: bool) -> None:
        """Note the guests that run; `is_wanted`: a reading of them is of use to the next pass."""
        self.wanted = tuple(guest for guest in running if guest.can_merge) if is_wanted else ()
        if self.merged:  # or each pass of a full scan would make all keys
            for key in self.merged.keys() - {guest.key for guest in running}:
                del self.merged[key]
        if self.wanted:
            self.seen.set()

    async def read_when_wanted(self) -> None:
        """Wait until a pass wants a reading, read all guests once, and pause."""
        await self.seen.wait()
        self.seen.clear()
        facts, guests, began_s = self.facts, self.wanted, self.clock()
        if facts is None or not guests:
            return
        try:
            readings = facts.merged(guests)
            while self.wanted and (one := await self.calls.run("read what is merged", partial(next, readings, None))):
                self.merged[one[0]] = one[1]
            is_unread = self.merged.keys().isdisjoint(guest.key for guest in guests)
            self._note(SensingFailed("of no guest it can be read", remedy=REMEDY) if is_unread else None)
        except VirtksmError as error:
            self._note(error)
        await self.pause((self.clock() - began_s) / MAX_SHARE)

    def _note(self, failure: VirtksmError | None) -> None:
        self.failure = failure
        self.failing(failure)
