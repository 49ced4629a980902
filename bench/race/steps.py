"""What a work of the race is made of: guests, timed steps, and the savings that their memory allows.

Pure. A work is a list of steps over payload guests (bench/guest/payload.c), from the first start on; `already` are
guests that have long been there when the clock starts. Contents are known to the page, so possible savings are, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

from bench.steps import Start, Stop
from demo.guests import PAGES_PER_MIB, PayloadGuest

SHARERS_MOST = 256
"""The kernel's max_page_sharing: so many equal pages take one page of memory, then the next one begins."""


Step = Start | Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One work. `busy_until_s`: from then on nothing new happens, whoever parks may stay parked."""

    name: str
    told: str
    steps: tuple[Step, ...]
    length_s: float
    already: tuple[PayloadGuest, ...] = ()
    busy_until_s: float = 0.0
    has_clairvoyant: bool = True

    @property
    def guests(self) -> tuple[PayloadGuest, ...]:
        """Tell every guest that ever runs."""
        return (*self.already, *(step.guest for step in self.steps if isinstance(step, Start)))

    @property
    def savings_until_s(self) -> float:
        """Tell until when savings only grow: to the first stop, or to the end."""
        return min((step.at_s for step in self.steps if isinstance(step, Stop)), default=self.length_s)

    @property
    def expected_sharing_pages(self) -> int:
        """Tell pages_sharing when all that is equal is merged: every content takes one page, the rest is saved."""
        common = sharing_pages([(guest.image, guest.common_mib) for guest in self.guests])
        own = sharing_pages([(guest.seed, guest.own_mib) for guest in self.guests])
        zero = sum(guest.zero_mib for guest in self.guests) * PAGES_PER_MIB
        return common + own + zero - math.ceil(zero / SHARERS_MOST)


def sharing_pages(owned_mib: list[tuple[int, int]]) -> int:
    """Count what is saved of contents of equal owner, given as (owner, MiB): all of them but the largest."""
    saved_mib = 0
    for _, group in groupby(sorted(owned_mib), key=lambda pair: pair[0]):
        sizes = [mib for _, mib in group]
        saved_mib += sum(sizes) - max(sizes)
    return saved_mib * PAGES_PER_MIB
