"""Guests' memory: which pages there are at a time, and which version of their content they hold.

A guest is described as the payload guests are (PayloadGuest), and behaves as bench/guest/payload.c does: it fills
common, zero and own pages in this order at a steady rate, and once settled rewrites pages in turn, and grows. Nothing
is computed before it is needed: `catch_up` brings a region's pages to a point in time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf

from bench.sim.pages import UNKNOWN, PageState
from bench.sim.runs import Runs
from bench.sim.trees import Content, Key, Trees
from demo.guests import KEPT_MIB, PayloadGuest
from virtksm.agent.dirty_rates import MEASURE_S
from virtksm.values import replace

WRITE_BLOCKS = 128
"""Rewriting is done in so many blocks a region, each as one at its end: every moment of its own would be a run."""


class Kind(Enum):
    """What a region's pages are equal to."""

    COMMON = "common"
    ZERO = "zero"
    OWN = "own"


@dataclass(slots=True, kw_only=True, eq=False)
class Region:
    """Pages of one kind, side by side in a guest.

    From `from_s` on they are filled at `fill_per_s` pages a second up to `pages`; from `settled_s` on `grow_per_s` more
    are added a second, up to `most_pages`, and `rewrite_per_s` of the first `pages` are rewritten a second, in turn;
    `rewritten` counts them.
    """

    guest: SimGuest
    kind: Kind
    image: int
    pages: int
    most_pages: int
    from_s: float
    fill_per_s: float
    settled_s: float
    grow_per_s: float
    rewrite_per_s: float
    rewrite_from_s: float
    rewrite_base: int
    rewritten: int
    is_drifting: bool = False
    """Whether what is rewritten becomes equal in all guests."""
    states: Runs[PageState] = field(default_factory=lambda: Runs(UNKNOWN))

    def filled(self, now_s: float) -> int:
        """Tell how many pages there are."""
        filled = min(self.pages, max(0, int((now_s - self.from_s) * self.fill_per_s)))
        if filled < self.pages or now_s < self.settled_s:
            return filled
        return min(self.most_pages, self.pages + int((now_s - self.settled_s) * self.grow_per_s))

    def is_static(self, now_s: float) -> bool:
        """Tell whether nothing happens to its pages any more."""
        grows = self.grow_per_s > 0 and self.pages < self.most_pages
        return now_s >= self.settled_s and not grows and self.rewrite_per_s == 0

    def written_per_s(self, now_s: float) -> float:
        """Tell how many pages that were there before are written to in a second."""
        return min(self.rewrite_per_s, self.pages / MEASURE_S) if now_s >= self.rewrite_from_s else 0.0

    def key(self, version: int) -> Key | None:
        """Return the key of its contents of a version; None for those that no other page has (rewritten own ones)."""
        if self.kind is Kind.OWN and version > 0:
            return ("drift", 0, version) if self.is_drifting else None
        return (self.kind.value, self.image, version if self.kind is Kind.COMMON else 0)

    def indexes(self, low: int, high: int) -> tuple[int, int, int]:
        """Return the contents of pages low..high-1: first, after the last, and how many pages have each."""
        return (0, 1, high - low) if self.kind is Kind.ZERO else (low, high, 1)

    def count(self, trees: Trees, low: int, high: int, version: int, *, stable: int = 0, live: int = 0) -> None:
        """Count pages low..high-1 in or out of the tallies of their content."""
        key = self.key(version)
        if key is None:
            return
        content: Content = trees.content(key)
        first, end, times = self.indexes(low, high)
        if stable:
            content.stable.add(first, end, stable * times)
        if live:
            content.live.add(first, end, live * times)

    def catch_up(self, trees: Trees, now_s: float) -> None:
        """Write what the guest has written until now."""
        if self.rewrite_per_s == 0 or self.pages == 0 or now_s <= self.rewrite_from_s or self.guest.has_ended:
            return
        due = self.rewrite_base + int((now_s - self.rewrite_from_s) * self.rewrite_per_s)
        block = max(1, self.pages // WRITE_BLOCKS)
        due -= (due - self.rewrite_base) % block
        if due == self.rewritten:
            return
        begin, self.rewritten = self.rewritten, due
        cycle, into = divmod(due, self.pages)
        if due - begin >= self.pages:
            changed = [(0, into, cycle + 1), (into, self.pages, cycle)]
        elif begin % self.pages <= into:
            changed = [(begin % self.pages, into, cycle + 1)]
        else:
            changed = [(0, into, cycle + 1), (begin % self.pages, self.pages, cycle)]
        for low, high, version in changed:
            self.write(trees, low, high, version)

    def drift(self, trees: Trees, now_s: float, pages_per_s: float) -> None:
        """Rewrite so many pages a second from now on, as all other guests' do."""
        self.catch_up(trees, now_s)
        self.is_drifting, self.rewrite_per_s = True, pages_per_s
        self.rewrite_from_s, self.rewrite_base = now_s, self.rewritten

    def grow(self, now_s: float, pages: int) -> None:
        """Fill so many pages more, as fast as at first."""
        self.pages, self.settled_s, self.grow_per_s = self.filled(now_s), now_s, self.fill_per_s
        self.most_pages = self.pages + pages

    def leave(self, trees: Trees) -> None:
        """Unmap all pages, as a process that ends does; ksmd will learn of it later."""
        for low, high, state in list(self.states.within(0, self.most_pages)):
            if state.is_merged:
                self.count(trees, low, high, state.version, live=-1)

    def write(self, trees: Trees, low: int, high: int, version: int) -> None:
        """Give pages low..high-1 a new content."""
        for start, end, state in list(self.states.within(low, high)):
            if state.is_merged:
                self.count(trees, start, end, state.version, live=-1)
                trees.cow_ksm += end - start
            self.states.assign(start, end, replace(state, version=version))


@dataclass(slots=True, kw_only=True, eq=False)
class SimGuest:
    """A guest's process. `overhead_kib` is what it holds beside the guest's pages."""

    spec: PayloadGuest
    uuid: str
    domain_id: int
    overhead_kib: int
    page_kib: int
    regions: list[Region] = field(default_factory=list)
    has_ended: bool = False
    dirty_kib_per_s: float | None = None
    """As it was measured last, every EVERY_S seconds."""
    low_until_s: float = 0.0
    """When it takes its common pages again, which it has given back through the balloon."""
    _measured_s: float | None = None
    _spoiled_s: float = -inf

    @property
    def key(self) -> str:
        """As `Guest.key`."""
        return f"{self.uuid}/{self.domain_id}"

    def measure_dirty(self, now_s: float, every_s: float) -> None:
        """Measure how much is written, if it is time to: once in `every_s`."""
        if self._measured_s is None:
            self._measured_s = now_s - self.domain_id * 7 % every_s
        if now_s >= self._measured_s + every_s:
            self._measured_s = now_s
            pages_per_s = sum(region.written_per_s(now_s) for region in self.regions)
            if now_s < self._spoiled_s + MEASURE_S:
                pages_per_s += self.regions[0].pages / MEASURE_S
            mib_per_s = pages_per_s * self.page_kib // 1024
            self.dirty_kib_per_s = mib_per_s * 1024

    def rss_kib(self, now_s: float) -> int:
        """Tell its resident memory; merged pages are resident, too."""
        regions = self.regions[now_s < self.low_until_s :]
        return self.overhead_kib + self.page_kib * sum(region.filled(now_s) for region in regions)

    def merged_pages(self) -> tuple[int, int]:
        """Return how many of its pages ksmd counts as merged, and how many are."""
        counted = mapped = 0
        for region in self.regions:
            for start, end, state in region.states.within(0, region.most_pages):
                counted += (end - start) * (state.merged_as is not None)
                mapped += (end - start) * state.is_merged
        return counted, mapped

    @property
    def has_merged(self) -> bool:
        """Whether nine tenths of its common pages have merged."""
        common = self.regions[0]
        runs = common.states.within(0, common.pages)
        return sum(end - start for start, end, state in runs if state.is_merged) > 0.9 * common.pages

    def spoil(self, trees: Trees, now_s: float, version: int, low_s: float) -> None:
        """Give its common pages a new content; given back before that, no page is copied."""
        cow_ksm = trees.cow_ksm
        self.regions[0].write(trees, 0, self.regions[0].pages, version)
        self._spoiled_s = now_s
        if low_s:
            trees.cow_ksm, self.low_until_s = cow_ksm, now_s + low_s

    def catch_up(self, trees: Trees, now_s: float) -> None:
        """Write what it has written until now."""
        for region in self.regions:
            region.catch_up(trees, now_s)


def make_guest(
    spec: PayloadGuest,
    *,
    uuid: str,
    domain_id: int,
    now_s: float,
    fill_mib_per_s: float,
    overhead_kib: int,
    page_kib: int,
) -> SimGuest:
    """Return a guest that starts now; `fill_mib_per_s` is how fast it fills unless its own options say slower."""
    guest = SimGuest(spec=spec, uuid=uuid, domain_id=domain_id, overhead_kib=overhead_kib, page_kib=page_kib)
    pages_per_mib = 1024 // page_kib
    per_s = (spec.slow_mib_per_s or fill_mib_per_s) * pages_per_mib
    settled_s = now_s + spec.content_mib * pages_per_mib / per_s
    room = (spec.memory_mib - KEPT_MIB - spec.content_mib) * pages_per_mib
    # As in the payload: common pages are rewritten in step in all guests, counted from the same moment.
    in_step = int(settled_s) * spec.rewrite_common_per_s
    parts = [
        (Kind.COMMON, spec.image, spec.common_mib, spec.rewrite_common_per_s, in_step, 0.0, 0),
        (Kind.ZERO, 0, spec.zero_mib, 0, 0, 0.0, 0),
        (Kind.OWN, spec.seed, spec.own_mib, spec.rewrite_per_s, 0, spec.grow_mib_per_min * pages_per_mib / 60, room),
    ]
    from_s = now_s
    for kind, image, mib, rewrite_per_s, rewritten, grow_per_s, more in parts:
        pages = mib * pages_per_mib
        guest.regions.append(
            Region(
                guest=guest,
                kind=kind,
                image=image,
                pages=pages,
                most_pages=pages + more,
                from_s=from_s,
                fill_per_s=per_s,
                settled_s=settled_s,
                grow_per_s=grow_per_s,
                rewrite_per_s=rewrite_per_s,
                rewrite_from_s=settled_s,
                rewrite_base=rewritten,
                rewritten=rewritten,
            )
        )
        from_s += pages / per_s
    return guest
