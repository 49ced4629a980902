"""ksmd's two trees, as counts: which contents are merged and by how many pages, and which wait for a twin.

A content is an index within a key: the common page `index` of an image in one version, or the one zero page. Contents
that no other page can have (a guest's own) have no key; they only stand in the unstable tree, and are counted there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.sim.runs import Runs

if TYPE_CHECKING:
    from bench.sim.memory import Region

MAX_PAGE_SHARING = 256
"""Kernel's default: a merged page is shared by so many at most, then another copy is made."""

Key = tuple[str, int, int]
"""(kind, image, version)."""


@dataclass(slots=True)
class Totals:
    """`pages` are mapped to `copies`, so pages - copies are saved."""

    pages: int = 0
    copies: int = 0

    @property
    def saved(self) -> int:
        return self.pages - self.copies


class Tally:
    """How many pages share each content of one key; the sums go to `totals`, which all keys have in common."""

    __slots__ = ("_counts", "_totals")

    def __init__(self, totals: Totals) -> None:
        self._counts: Runs[int] = Runs(0)
        self._totals = totals

    def add(self, low: int, high: int, change: int) -> None:
        """Count `change` more pages (fewer, if negative) of each content low..high-1."""
        for start, end, count in list(self._counts.within(low, high)):
            changed = count + change
            self._totals.pages += change * (end - start)
            self._totals.copies += (copies_of(changed) - copies_of(count)) * (end - start)
            self._counts.assign(start, end, changed)

    def run_at(self, place: int) -> tuple[int, int, int]:
        """Return a run of contents shared by equally many pages: first, after the last, pages."""
        return self._counts.run_at(place)

    @property
    def is_empty(self) -> bool:
        return len(self._counts) == 1 and self._counts.run_at(0)[2] == 0


def copies_of(pages: int) -> int:
    """Tell how many copies of one content so many pages need."""
    return -(-pages // MAX_PAGE_SHARING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Pages in the unstable tree: those of `region` at index + `shift`, inserted in the full scan of that number."""

    region: Region
    shift: int
    full_scan: int


class Content:
    """One key's contents. `stable` is what the kernel's counters say, `live` what is truly mapped to merged pages."""

    __slots__ = ("live", "stable", "waiting")

    def __init__(self, stable: Totals, live: Totals) -> None:
        self.stable = Tally(stable)
        self.live = Tally(live)
        self.waiting: Runs[Waiting | None] = Runs(None)


@dataclass(slots=True)
class Trees:
    """All contents, and the sums behind the counters.

    `known` are all rmap_items, `inserted` those marked as in the unstable tree, `in_tree` those put there in this
    full scan: the marks of the last one stay until the next visit. `cow_ksm` counts writes to merged pages.
    """

    stable: Totals = field(default_factory=Totals)
    live: Totals = field(default_factory=Totals)
    known: int = 0
    inserted: int = 0
    in_tree: int = 0
    full_scan: int = 0
    cow_ksm: int = 0
    _contents: dict[Key, Content] = field(default_factory=dict)

    def content(self, key: Key) -> Content:
        """Return the contents of a key."""
        content = self._contents.get(key)
        if content is None:
            content = self._contents[key] = Content(self.stable, self.live)
        return content

    def begin_full_scan(self) -> None:
        """Empty the unstable tree, and forget contents that no page has."""
        self.full_scan += 1
        self.in_tree = 0
        gone = [key for key, content in self._contents.items() if content.stable.is_empty and content.live.is_empty]
        for key in gone:
            del self._contents[key]
        for content in self._contents.values():
            content.waiting = Runs(None)

    @property
    def pages_shared(self) -> int:
        return self.stable.copies

    @property
    def pages_sharing(self) -> int:
        return self.stable.saved

    @property
    def pages_unshared(self) -> int:
        return self.inserted

    @property
    def pages_volatile(self) -> int:
        return max(0, self.known - self.stable.pages - self.inserted)
