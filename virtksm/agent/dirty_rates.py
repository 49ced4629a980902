"""How fast the guests' memory changes: measured by libvirt, or bounded by what they read from disk, between passes.

QEMU hashes a sample of a guest's pages (virDomainStartDirtyRateCalc: 512 a GiB) at the beginning and at the end of
MEASURE_S seconds; nothing is logged and no page is write-protected. What a guest reads from disk is written into its
memory, most of it as page cache: the guest's block statistics tell it where measuring is refused or fails, and where
it finds 0, which stands for all below 1 MiB a second. A control group's io.stat counts what reaches a disk of the host:
not what its page cache or a network serves (of a file of 64 MiB that was read again 0 bytes reached the disk).

Each guest that may merge has its turn while the policy acts, one call at a time. Measurements begin, and so end, PACE_S
apart: one guest is sampled at a time, unless that takes longer, and up to MEASURE_S / PACE_S = 120 are between their
two samples. After a large guest the next waits longer, as sampling takes CPU time, and while memory is in swap, as it
is read in. Meanwhile each has a thread in QEMU that sleeps and holds no lock (QEMU's migration/dirtyrate.c,
`calculate_dirtyrate_sample_vm`), and no job in libvirt, which ends with the call (libvirt's qemu_driver.c,
`qemuDomainStartDirtyRateCalc`). The calls are this module's own, and one that hangs costs no other guest its rate. A
pass takes the newest rates (`Tenure.dirty_kib_per_s`). A guest without a rate changes as the policy assumes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from virtksm.agent.calls import GuestCalls, wait_next
from virtksm.errors import GuestVanished, LibvirtRefuses, LibvirtTimeout, SensingFailed, Unsupported, VirtksmError
from virtksm.model.snapshot import Guest
from virtksm.policy.adaptive.changes import BLIND_S

Result = TypeVar("Result")

MEASURE_S = 60
"""Between the two samples (libvirt: its longest)."""
TOLD_KIB_PER_S = 1024
"""A slower rate is told as 0 (libvirt: whole MiB a second, rounded down)."""
PACE_S = 0.5
"""From the beginning of one guest's measurement to the next (chosen)."""
SAMPLED_KIB_PER_GIB = 512 * 4
"""What is sampled of each GiB (libvirt: QEMU's default)."""
PACE_S_PER_GIB = 0.125
"""As long at least for each GiB of the guest (chosen: 4 % of a core, at 5 microseconds a sample)."""
SWAPPED_KIB_PER_S = 40.0
"""Sampling reads at most so much from swap (chosen: ten pages, where a disk reads a hundred)."""
RETRY_S = 600.0
"""A measurement that failed or hung is tried again (chosen)."""
MAX_HANGING = 1
"""Calls that may hang beside the one out (chosen)."""


def min_turn_s(guests: int) -> float:
    """Return how many seconds there are at least from one turn of a guest to its next, among so many."""
    return max(MEASURE_S + 1, guests * PACE_S)


def pace_s(guest: Guest, swapped_share: float) -> float:
    """Return how long the next guest waits for this one, with such a share of guests' memory in swap."""
    gib = max(guest.rss_kib or 0, guest.max_kib or 0) / 2**20
    sampling_s = gib * max(PACE_S_PER_GIB, SAMPLED_KIB_PER_GIB * swapped_share / SWAPPED_KIB_PER_S)
    return min(max(PACE_S, sampling_s), RETRY_S)


class Measures(Protocol):
    """libvirt's measuring of a guest. Each call raises GuestVanished, and SensingFailed for what fails for this one.

    Unsupported (before libvirt 7.2) and LibvirtRefuses (by the access driver polkit) are true for all guests.
    """

    def start_dirty_rate(self, uuid: str, seconds: int) -> None:
        """Begin to measure a guest (virDomainStartDirtyRateCalc, page sampling; the action is domain.write).

        Raises SensingFailed before QEMU 5.2, and while it is being measured.
        """

    def changes(self, uuid: str, *, is_measured: bool) -> tuple[int | None, int | None]:
        """Return how many whole MiB a second a guest wrote to, and how many bytes it has read from its disks.

        The first is None unless it `is_measured` and that is over; the second, since it started, where libvirt cannot
        tell.
        """


@dataclass(slots=True, kw_only=True)
class Turn:
    """When a guest is asked next, as it is now, and what it was when it was asked last.

    `is_measuring`: libvirt measures it since `then_s`; `is_pausing`: it was measured then, and nothing is to be learned
    of what follows until `begin_s`, when it is measured next. `read_bytes`: what it had read from disk at `then_s`.
    """

    due_s: float
    begin_s: float
    now: Guest
    then: Guest
    then_s: float = 0.0
    is_measuring: bool = False
    is_pausing: bool = False
    read_bytes: int | None = None


@dataclass(slots=True)
class DirtyRates:
    """The rates by guest (`Guest.key`) in KiB a second, in `rates`, and how they are found.

    `source` gives the connection, None while there is none. `limit_s` is a call's. `calls` are its own: a guest whose
    monitor hangs keeps no pass waiting.
    """

    source: Callable[[], Measures | None]
    limit_s: Callable[[], float]
    rates: dict[str, float]
    failing: Callable[[VirtksmError], None]
    clock: Callable[[], float] = time.monotonic
    calls: GuestCalls = field(default_factory=partial(GuestCalls, MAX_HANGING))
    turns: dict[str, Turn] = field(default_factory=dict)
    next_s: float = 0.0
    """When the next measurement may begin."""
    start_s: float = 0.0
    """When to begin to measure guests again, after a refusal."""
    retry_s: float = 0.0
    """When to ask for anything again, after a failure that is no guest's."""
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    noted: tuple[Iterable[Guest], bool] | None = None
    """What was seen last."""
    swapped_share: float = 0.0
    """How much of guests' memory is in swap, at most."""

    def see(self, running: Iterable[Guest], *, is_wanted: bool, swapped_kib: int = 0) -> None:
        """Note the guests that run with what they hold; `is_wanted`: the policy goes by their rates now.

        `swapped_kib` is what the host has in swap.
        """
        if self.noted is not None and self.noted[0] is running and self.noted[1] == is_wanted:
            return  # a pass that has sensed no guests anew
        self.noted = running, is_wanted
        held_kib = sum(guest.rss_kib or 0 for guest in running)
        self.swapped_share = swapped_kib / max(swapped_kib + held_kib, 1)
        wanted = {guest.key: guest for guest in running if guest.can_merge} if is_wanted else {}
        for known in (self.rates, self.turns):
            for key in known.keys() - wanted.keys():
                del known[key]
        for key, guest in wanted.items():
            if key in self.turns:
                self.turns[key].now = guest
            else:
                now_s = self.clock()
                self.turns[key] = Turn(due_s=now_s, begin_s=now_s, now=guest, then=guest)
        self.seen.set()

    def forget(self) -> None:
        """Forget all: the connection is another one."""
        self.see((), is_wanted=False)
        self.noted = None
        self.calls.begin_anew()
        self.start_s = self.retry_s = self.next_s = 0.0

    async def measure_when_due(self) -> None:
        """Ask for one guest, or wait until one is due or a pass has seen guests."""
        now_s, host = self.clock(), self.source()
        self.calls.forget_returned()
        turns = [turn for key, turn in self.turns.items() if key not in self.calls.hanging]
        if host is None or not turns:
            await wait_next(self.seen)
            return
        turn = min(turns, key=self.due_s)
        due_s = self.due_s(turn)
        if due_s > now_s:
            await wait_next(self.seen, due_s - now_s)
            return
        key = turn.now.key
        try:
            await self._ask(host, turn, now_s)
        except GuestVanished:
            self.rates.pop(key, None)
        except VirtksmError as error:
            if host is not self.source():  # it tells nothing of the next connection
                return
            self.failing(error)
            turn.due_s = now_s + RETRY_S
            self.rates.pop(key, None)
            if isinstance(error, LibvirtTimeout) and self.calls.set_aside(key):
                return
            self.retry_s = now_s + RETRY_S
            self.rates.clear()
            for one in self.turns.values():
                one.is_measuring = False

    @property
    def turn_every_s(self) -> float:
        """From one turn of a guest to its next."""
        paces_s = (self._pace_s(turn.now) for turn in self.turns.values())
        return max(min_turn_s(len(self.turns)), sum(paces_s))

    def _pace_s(self, guest: Guest) -> float:
        return PACE_S if self.clock() < self.start_s else pace_s(guest, self.swapped_share)  # else nothing is sampled

    def due_s(self, turn: Turn) -> float:
        """Return when to ask for a guest; the end of a measurement that is not followed by one waits for no other."""
        due_s = max(turn.due_s, self.retry_s)
        return due_s if due_s < turn.begin_s else max(due_s, self.next_s)

    async def _ask(self, host: Measures, turn: Turn, now_s: float) -> None:
        """Learn from what was measured and what the guest has read from disk, and begin to measure."""
        guest, every_s = turn.now, self.turn_every_s
        turn.due_s = now_s + every_s
        was_measuring, turn.is_measuring = turn.is_measuring, False
        mib_per_s = read_bytes = None
        with suppress(SensingFailed):
            changes = partial(host.changes, guest.uuid, is_measured=was_measuring)
            mib_per_s, read_bytes = await self._run(guest, changes)
        if not turn.is_pausing:
            self._learn(turn, mib_per_s, read_bytes, now_s - turn.then_s)
        turn.then, turn.then_s, turn.read_bytes = guest, now_s, read_bytes
        turn.begin_s = max(turn.begin_s, self.next_s)
        turn.is_pausing = now_s < turn.begin_s
        if turn.is_pausing:
            turn.due_s = turn.begin_s
            return
        self.next_s = now_s + self._pace_s(guest)
        turn.begin_s = now_s + every_s
        if now_s < self.start_s:
            return
        try:
            await self._run(guest, partial(host.start_dirty_rate, guest.uuid, MEASURE_S))
        except (LibvirtRefuses, Unsupported) as error:
            if host is self.source():
                self.start_s = now_s + RETRY_S
                self.failing(error)
        except SensingFailed:
            pass
        else:
            turn.is_measuring, turn.due_s = True, now_s + MEASURE_S + 1

    async def _run(self, guest: Guest, call: Callable[[], Result]) -> Result:
        return await self.calls.one.run(f"ask how fast guest {guest.name} changes", call, self.limit_s())

    def _learn(self, turn: Turn, mib_per_s: int | None, read_bytes: int | None, passed_s: float) -> None:
        """Take a rate, less what the guest has grown by meanwhile: that is new memory, not changed memory.

        What is read into the same pages again changes no more of them: a measured rate, which compares pages, is
        believed against a higher one of reads.
        """
        key, kib_per_s, read_kib_per_s = turn.now.key, None, 0.0
        if read_bytes is not None and turn.read_bytes is not None:
            read_kib_per_s = (read_bytes - turn.read_bytes) / 1024 / passed_s
        if mib_per_s is not None:
            kib_per_s = mib_per_s * 1024 or min(read_kib_per_s, TOLD_KIB_PER_S)
        elif read_kib_per_s * BLIND_S > (turn.now.rss_kib or 0):  # else the assumed rate: reads tell of no other writes
            kib_per_s = read_kib_per_s
        if kib_per_s is None or self.turns.get(key) is not turn:  # it has gone meanwhile
            self.rates.pop(key, None)
            return
        grown_kib = max((turn.now.rss_kib or 0) - (turn.then.rss_kib or 0), 0)
        self.rates[key] = max(kib_per_s - grown_kib / passed_s, 0.0)
