"""KSM's savings on each guest, for metrics: read from this host's /proc beside the agent's loop, and not too often.

No pass does it (a guest costs three small files), and libvirt is not asked: the guests are those of the last pass. A
reading over its limit is abandoned, and its metrics are missing until it returns. Of another host there is nothing to
read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from virtksm.agent.calls import BlockingCalls
from virtksm.errors import SensingFailed
from virtksm.guests.ports import GuestFacts
from virtksm.guests.savings import find_profit_bytes, settle
from virtksm.model.snapshot import Guest, KsmState, Snapshot, Source
from virtksm.values import replace

MAX_AGE_S = 5.0
"""Of a reading; 150 guests take some 10 ms."""
LIMIT_S = 2.0
"""How long a page waits for a reading: a fifth of what Prometheus waits for a page by default."""
STAYS = 2
"""A guest that is shown ranks as if so many times as much were saved on it (chosen)."""

SavedBytes = list[tuple[Guest, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSavings:
    """What KSM saves: on each guest that is `shown`, by name and UUID, on all other guests, and on no known guest.

    `unaccounted` guests could not be read.
    """

    shown: Mapping[tuple[str, ...], int]
    other_bytes: int
    unattributed_bytes: int
    unaccounted: int


class GuestLedger:
    """The last reading; to be used from one asyncio loop.

    The guests that are shown are those on which KSM saves most. One gives its place only to one of which more than
    STAYS times as much is saved: no series comes and goes because two guests save about the same.
    """

    def __init__(self, facts: GuestFacts, *, limit_s: float = LIMIT_S) -> None:
        self._facts = facts
        self._calls = BlockingCalls(SensingFailed, limit_s)
        self._lock = asyncio.Lock()
        self._read: GuestSavings | None = None
        self._read_s = -MAX_AGE_S
        self._shown: frozenset[str] = frozenset()

    def profit_bytes(self, last: Snapshot | None) -> int | None:
        """Return the host's profit: every user may read general_profit, and no guest's process delays that."""
        if last is None or last.source is not Source.LOCAL:
            return None
        return find_profit_bytes(last.ksm, self._facts.general_profit_bytes())

    async def read(self, last: Snapshot | None, max_shown: int) -> GuestSavings | None:
        """Return what is saved on the guests of the last pass; None where that is unknown."""
        if last is None or last.source is not Source.LOCAL:
            return None
        async with self._lock:
            if time.monotonic() - self._read_s >= MAX_AGE_S:
                work = partial(read_savings, self._facts, last.guests)
                try:
                    found = await self._calls.run("read guests' processes", work)
                except SensingFailed:
                    return None
                self._read = None if found is None else self.choose(*found, len(last.guests), max_shown)
                self._read_s = time.monotonic()
            return self._read

    def choose(self, saved: SavedBytes, host_bytes: int, running: int, max_shown: int) -> GuestSavings:
        """Share out what KSM saves, of which `saved` is known, on so many running guests."""

        def rank(one: tuple[Guest, int]) -> tuple[int, bool, str]:
            is_shown = one[0].uuid in self._shown
            return -one[1] * (STAYS if is_shown else 1), not is_shown, one[0].uuid

        ranked = sorted(saved, key=rank)
        shown, rest = ranked[:max_shown], ranked[max_shown:]
        self._shown = frozenset(guest.uuid for guest, _ in shown)
        return GuestSavings(
            shown={(guest.name, guest.uuid): saved_bytes for guest, saved_bytes in shown},
            other_bytes=sum(saved_bytes for _, saved_bytes in rest),
            unattributed_bytes=host_bytes - sum(saved_bytes for _, saved_bytes in ranked),
            unaccounted=running - len(ranked),
        )


def read_savings(facts: GuestFacts, running: tuple[Guest, ...]) -> tuple[SavedBytes, int] | None:
    """Read the bytes that KSM saves on running guests, where they can be read, and in all; None without KSM. Blocks."""
    processes = facts.processes(running)
    counted = KsmState.counted(facts.ksm_counter, facts.page_kib())
    host = replace(counted, freed_kib=sum(guest.freed_kib for guest in running))
    if host.saved_kib is None:
        return None
    accounts = (
        (guest, None if process is None or process.ksm is None else settle(process.ksm, guest, host))
        for guest, process in zip(running, processes, strict=True)
    )
    return [(guest, account.saved_bytes) for guest, account in accounts if account is not None], host.saved_kib * 1024
