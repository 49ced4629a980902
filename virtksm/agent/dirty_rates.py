"""Has libvirt measure how fast the guests' memory changes (virDomainStartDirtyRateCalc), between passes.

QEMU hashes a sample of a guest's pages (512 a GiB) at the beginning and at the end of MEASURE_S seconds; nothing is
logged and no page is write-protected. Each guest that may merge is measured once in EVERY_S seconds, while the policy
acts. A pass takes the newest rates (`Tenure.dirty_kib_per_s`). What cannot be measured has no rate: the policy then
assumes one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from virtksm.agent.calls import BlockingCalls
from virtksm.agent.configuration import Configuration
from virtksm.errors import GuestVanished, SensingFailed, VirtksmError
from virtksm.model.snapshot import Guest

MEASURE_S = 60
"""libvirt's longest time between the two samples: what changes more often counts once."""
EVERY_S = 120.0
AT_ONCE = 8
"""Guests asked for in one thread, some 2 ms each (measured)."""
RETRY_S = 600.0
"""After a call that failed as a whole: a guest's monitor hangs, or libvirt has no such call, or refuses it."""
KIB_PER_MIB = 1024


class Measures(Protocol):
    """libvirt's measuring of dirty rates."""

    def start_dirty_rate(self, uuid: str, seconds: int) -> None:
        """Begin to measure a guest (virDomainStartDirtyRateCalc, page sampling).

        Raises GuestVanished; Unsupported before libvirt 7.2; LibvirtRefuses where the access driver polkit denies it
        (action domain.write); SensingFailed before QEMU 5.2, and while it is being measured.
        """

    def dirty_rates(self, uuids: Iterable[str]) -> Mapping[str, int]:
        """Return the whole MiB a second that guests wrote to; without those that have ended or are being measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One that is under way, with the guest as it was when it began."""

    guest: Guest
    ends_s: float


@dataclass(slots=True)
class DirtyRates:
    """The rates by guest (`Guest.key`) in KiB a second, in `rates`, and their measuring.

    `source` gives the connection, None while there is none. `calls` are its own: a guest whose monitor hangs keeps no
    pass waiting.
    """

    source: Callable[[], Measures | None]
    configuration: Configuration
    rates: dict[str, float]
    failing: Callable[[VirtksmError], None]
    clock: Callable[[], float] = time.monotonic
    calls: BlockingCalls = field(default_factory=BlockingCalls)
    running: dict[str, Guest] = field(default_factory=dict)
    measured: dict[str, Measurement] = field(default_factory=dict)
    due_s: dict[str, float] = field(default_factory=dict)
    """When to measure a guest next; one that is not named is due."""
    retry_s: float = 0.0
    """When to measure again after a failure."""
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    noted: tuple[Iterable[Guest], bool] | None = None
    """What was seen last."""

    def see(self, running: Iterable[Guest], *, is_wanted: bool) -> None:
        """Note the guests that run with what they hold; `is_wanted`: the policy goes by their rates now."""
        if self.noted is not None and self.noted[0] is running and self.noted[1] == is_wanted:
            return  # a pass that has sensed no guests anew
        self.noted = running, is_wanted
        self.running = {guest.key: guest for guest in running if guest.can_merge} if is_wanted else {}
        for known in (self.rates, self.due_s, self.measured):
            for key in known.keys() - self.running.keys():
                del known[key]
        self.seen.set()

    def forget(self) -> None:
        """Forget all: the connection is another one."""
        self.see((), is_wanted=False)
        self.noted = None
        self.retry_s = 0.0

    async def measure_when_due(self) -> None:
        """Begin or read some measurements, or wait until one is due or a pass has seen guests."""
        now_s, host = self.clock(), self.source()
        ended = [one for one in self.measured.values() if one.ends_s <= now_s][:AT_ONCE]
        begins = [
            guest
            for key, guest in self.running.items()
            if key not in self.measured and self.due_s.get(key, now_s) <= now_s
        ][: AT_ONCE - len(ended)]
        if host is None or now_s < self.retry_s or not (ended or begins):
            await self._wait(now_s)
            return
        for guest in begins:
            self.due_s[guest.key] = now_s + EVERY_S
        work = partial(_measure, host, ended, begins)
        try:
            limit_s = self.configuration.in_force.call_timeout_s
            found, begun = await self.calls.run("measure dirty rates", work, limit_s)
        except VirtksmError as error:
            if host is not self.source():  # it tells nothing of the next connection
                return
            self.retry_s = now_s + RETRY_S
            self.rates.clear()
            self.measured.clear()
            self.failing(error)
            return
        if host is not self.source():
            return
        for one in ended:
            self._learn(one, found.get(one.guest.uuid))
        for guest in begins:
            if guest not in begun:
                self.rates.pop(guest.key, None)
        for guest in begun:
            self.measured[guest.key] = Measurement(guest=guest, ends_s=now_s + MEASURE_S + 1)

    def _learn(self, ended: Measurement, mib_per_s: int | None) -> None:
        """Take a rate, less what the guest has grown by meanwhile: that is new memory, not changed memory."""
        self.measured.pop(ended.guest.key, None)
        now = self.running.get(ended.guest.key)
        if mib_per_s is None or now is None:
            self.rates.pop(ended.guest.key, None)
            return
        grown_kib = max((now.rss_kib or 0) - (ended.guest.rss_kib or 0), 0)
        self.rates[now.key] = max(mib_per_s * KIB_PER_MIB - grown_kib / MEASURE_S, 0.0)

    async def _wait(self, now_s: float) -> None:
        """Sleep until a measurement ends, the next one is due, or a pass has seen guests."""
        times = [one.ends_s for one in self.measured.values()]
        times += [self.due_s.get(key, now_s) for key in self.running.keys() - self.measured.keys()]
        self.seen.clear()
        is_idle = self.source() is None or not times
        try:
            async with asyncio.timeout(None if is_idle else max(min(times), self.retry_s) - now_s):
                await self.seen.wait()
        except TimeoutError:
            return


def _measure(
    host: Measures, ended: Sequence[Measurement], begins: Iterable[Guest]
) -> tuple[Mapping[str, int], list[Guest]]:
    """Read what has been measured, begin what is due. Blocks; a guest that ended or is being measured is left out."""
    found: Mapping[str, int] = {}
    begun = []
    if ended:
        with suppress(SensingFailed):
            found = host.dirty_rates([one.guest.uuid for one in ended])
    for guest in begins:
        try:
            host.start_dirty_rate(guest.uuid, MEASURE_S)
        except (GuestVanished, SensingFailed):
            continue
        begun.append(guest)
    return found, begun
