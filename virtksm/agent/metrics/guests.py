"""KSM's savings on each guest, for metrics: read from this host's /proc beside the agent's loop, and not too often.

No pass does it (a guest costs three small files), and libvirt is not asked: the guests are those of the last pass. A
reading over its limit is abandoned, and its metrics are missing until it returns. Of another host there is nothing to
read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from virtksm.agent.calls import BlockingCalls
from virtksm.errors import SensingFailed
from virtksm.guests.ports import GuestFacts
from virtksm.guests.savings import Account, settle
from virtksm.model.snapshot import Guest, KsmState, Snapshot, Source

MAX_AGE_S = 5.0
"""Of a reading; 150 guests take some 10 ms."""
LIMIT_S = 2.0
"""How long a page waits for a reading: a fifth of what Prometheus waits for a page by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSavings:
    """What KSM saves on guests, `saved` on each that could be read; `unattributed_bytes` belongs to no known guest.

    `unaccounted` guests could not be read.
    """

    saved: tuple[tuple[Guest, int], ...]
    unaccounted: int
    unattributed_bytes: int


class GuestLedger:
    """The last reading; to be used from one asyncio loop."""

    def __init__(self, facts: GuestFacts, *, limit_s: float = LIMIT_S) -> None:
        self._facts = facts
        self._limit_s = limit_s
        self._calls = BlockingCalls(SensingFailed)
        self._lock = asyncio.Lock()
        self._seen: GuestSavings | None = None
        self._seen_s = -MAX_AGE_S

    def profit_bytes(self, last: Snapshot | None) -> int | None:
        """Return the kernel's general_profit, which every user may read and no guest's process delays."""
        return None if last is None or last.source is not Source.LOCAL else self._facts.general_profit_bytes()

    async def read(self, last: Snapshot | None) -> GuestSavings | None:
        """Return what is saved on the guests of the last pass; None where that is unknown."""
        if last is None or last.source is not Source.LOCAL:
            return None
        async with self._lock:
            if time.monotonic() - self._seen_s >= MAX_AGE_S:
                try:
                    self._seen = await self._calls.run(
                        "read guests' processes", lambda: read_savings(self._facts, last.guests), self._limit_s
                    )
                except SensingFailed:
                    return None
                self._seen_s = time.monotonic()
            return self._seen


def read_savings(facts: GuestFacts, running: tuple[Guest, ...]) -> GuestSavings | None:
    """Read what KSM saves on running guests; None on a kernel without KSM. Blocks."""
    processes = facts.processes(running)
    host = KsmState.counted(facts.ksm_counter, facts.page_kib())
    if host.saved_kib is None:
        return None
    settled: list[tuple[Guest, Account]] = []
    for guest, process in zip(running, processes, strict=True):
        ksm = None if process is None else process.ksm
        account = None if ksm is None else settle(ksm, guest.rss_kib, host)
        if account is not None:
            settled.append((guest, account))
    return GuestSavings(
        saved=tuple((guest, account.saved_bytes) for guest, account in settled),
        unaccounted=len(running) - len(settled),
        unattributed_bytes=host.saved_kib * 1024 - sum(account.saved_bytes for _, account in settled),
    )


class ShownGuests:
    """Which guests have a metric of their own: those on which KSM saves most, and then as long as they run.

    So no series comes and goes because two guests save about the same.
    """

    def __init__(self) -> None:
        self._uuids: frozenset[str] = frozenset()

    def choose(self, saved: Iterable[tuple[Guest, int]], count: int) -> tuple[dict[tuple[str, ...], int], int]:
        """Return what is saved on each of `count` guests, by name and UUID, and the sum of the other guests."""
        ranked = sorted(saved, key=lambda one: (one[0].uuid not in self._uuids, -one[1], one[0].uuid))
        shown, rest = ranked[:count], ranked[count:]
        self._uuids = frozenset(guest.uuid for guest, _ in shown)
        return {(guest.name, guest.uuid): saved for guest, saved in shown}, sum(saved for _, saved in rest)
