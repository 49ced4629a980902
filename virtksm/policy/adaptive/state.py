"""What the adaptive policy hands from one pass to the next, and its form as plain JSON values.

A state is a value: the policy gets one and returns the next. Memory is in KiB, times are CLOCK_BOOTTIME seconds.
Counters that the kernel or the connection does not offer are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from virtksm.values import EMPTY, build, dump

DEFAULT_COST_S_PER_KIB = 7e-6 / 4
"""What scanning costs until that is known: the most of 0.3 to 7 microseconds a page of 4 KiB (measured)."""

MAX = 2.0**100
"""No number of a state that is loaded is larger (chosen)."""


class Meter(NamedTuple):
    """The kernel's counters at one moment, to take differences from."""

    taken_s: float
    full_scans: int
    pages_shared: int
    pages_sharing: int
    unmapped_kib: int
    cpu_s: float | None
    pages_scanned: int | None
    pages_skipped: int | None
    thp_split_page: int | None
    cow_ksm: int | None


class FullScan(NamedTuple):
    """A full scan that is under way. `ends_at_full_scans` is the value of full_scans that ends it.

    `scanning` is the new backlog at its beginning, and what had changed in place, by worth.py's keys: scanned once when
    it ends. `began_kib` is all memory at its beginning.
    """

    ends_at_full_scans: int
    scanning: Mapping[str, float]
    began: Meter
    began_kib: int
    taken_along_kib: int = 0
    """What guests that stopped meanwhile, or cannot merge any more, had merged: at most."""
    fed: Meter | None = None
    """When ksmd was granted the last batch, of `batch_pages`."""
    batch_pages: int = 0
    seen: Meter | None = None
    """What the last pass has seen of that batch: ksmd's CPU time tells when it is over, where pages are not counted."""
    scanned_pages: int = 0
    """What the batches before that one have scanned, where it is known."""
    granted_s: float = 0.0
    """The CPU time that they were granted by the budget."""

    @property
    def scanning_kib(self) -> int:
        return int(sum(self.scanning.values()))

    @property
    def times(self) -> int:
        """How often it scans memory at most: twice where it is whole only after the end of another's."""
        return max(self.ends_at_full_scans - self.began.full_scans, 1)


class Appeared(NamedTuple):
    """So many KiB that appeared of a process at a moment."""

    at_s: float
    key: str
    kib: int


class Backlog(NamedTuple):
    """Memory that ksmd has not scanned as often as merging needs, by state; what each means is in backlog.py."""

    settling: tuple[Appeared, ...] = ()
    new: Mapping[str, int] = EMPTY
    """By `Guest.key`, or changes.OTHER_PROCESSES."""
    scanned_once: Mapping[str, float] = EMPTY
    """By worth.py's keys: changed memory counts once a full scan for it has begun."""
    exited_kib: int = 0
    waited_kib_s: float = 0.0
    """KiB times seconds that new and scanned once memory has waited since the last full scan began."""
    exited_kib_s: float = 0.0
    """The same of exited memory."""
    changed: Mapping[str, float] = EMPTY
    """KiB that have changed in place since the last pair of full scans began, by estimate, by changes.py's keys."""
    changed_kib_s: float = 0.0
    """KiB times seconds that it has waited."""

    @property
    def settling_kib(self) -> int:
        return sum(kib for _, _, kib in self.settling)

    @property
    def new_kib(self) -> int:
        return sum(self.new.values())

    @property
    def scanned_once_kib(self) -> int:
        return int(sum(self.scanned_once.values()))

    @property
    def changed_kib(self) -> float:
        return sum(self.changed.values())

    @property
    def due_kib(self) -> int:
        """What certainly waits for a full scan; settling memory does not, and changed memory only perhaps."""
        return self.new_kib + self.scanned_once_kib + self.exited_kib


class Arrivals(NamedTuple):
    """How memory has appeared lately; growth.py judges by it whether more is to come."""

    recent: tuple[Appeared, ...] = ()
    """What appeared in the last second, settling or not; of what a process had grown by since a pass longer ago, as
    much as if it had grown evenly."""
    burst_since_s: float | None = None
    """Since when there has been a burst, or was the last one."""
    burst_at_s: float | None = None
    """When memory last appeared at its rate."""
    start_s: float | None = None
    """When a guest was last seen to have started."""
    interval_s: float = 0.0
    """The longest interval between two starts of the present series."""
    series_since_s: float = 0.0
    """When its first guest started."""


class Scans(NamedTuple):
    """The full scan under way, and how it belongs to those before it."""

    current: FullScan | None = None
    cursor_full_scans: int | None = None
    """The full scan at whose end our last one left ksmd's cursor; None if it may be anywhere."""
    pair_left: int = 0
    """Full scans of the present pair that have yet to end: the second begins as soon as the first has ended."""
    more: int = 0
    """Full scans made beyond the pair, since some memory has met no twins yet (smart_scan, split huge pages)."""
    merged_kib: int = 0
    """What has merged since the pair's second full scan began; in a check scan since its first, and is still merged."""
    expected_kib: float = 0.0
    """What one more was expected to merge when the last full scan ended."""
    visited: float = 0.0
    """How often the present check scan has visited the memory that has not merged, on average (smart_scan)."""
    fed: Meter | None = None
    """When the full scan before was granted its last batch, whose budget the next one waits for."""
    is_check: bool = False
    """Whether the present pair of full scans looks for nothing but what may have changed in place."""

    @property
    def last_fed(self) -> Meter | None:
        """When the last batch was granted, in the present full scan or the one before."""
        return self.fed if self.current is None else self.current.fed or self.fed


class Ratio(NamedTuple):
    """The `share` of some memory that has merged and lasted, on average over the pairs of full scans before the last.

    `lost` is the share that has merged and was rewritten too soon.

    Each pair counts by how much it was for, and less than the next (worth.OLDER): together `kib`. What is assumed of
    a process at first counts like a negligible part of its memory, so that less than that teaches little.
    """

    share: float
    kib: float
    lost: float = 0.0


class Learned(NamedTuple):
    """What full scans have cost and brought."""

    ratios: Mapping[str, Ratio] = EMPTY
    """By worth.py's keys."""
    pair: Mapping[str, float] = EMPTY
    """What the last pair of full scans was for, by the same keys; what is of an image by that, too."""
    expected_kib: float = 0.0
    """What of it was expected to merge and to last."""
    lost_kib: float = 0.0
    """What of it was expected to merge and to be lost soon; what is lost, once that is known."""
    lost_part: float | None = None
    """What was lost of what was rewritten; None before a full scan has found it."""
    merged_kib: int = 0
    """What it has merged."""
    rewritten: Mapping[str, float] = EMPTY
    """What was written to too soon, by the keys of changed memory (changes.attribute)."""
    saved_kib: int = 0
    """All that was saved when it had ended."""
    ended_s: float = 0.0
    """When the last full scan ended."""
    began_cow_ksm: int | None = None
    """The kernel's count of COW breaks when the last full scan began."""
    cost_s_per_kib: float = DEFAULT_COST_S_PER_KIB
    """What ksmd's scanning costs, as the last batch did."""
    full_scan_cost_s_per_kib: float | None = None
    """ksmd's CPU time that a full scan takes by estimate, for each KiB of memory; None before the first."""

    @property
    def rewritten_kib(self) -> float:
        return sum(self.rewritten.values())


class Watched(NamedTuple):
    """What speaks against a guest: so many `times` in a row it has lost most of what had merged, before that had paid.

    The last time it was `lost_kib`, in the rest that began at `rest_s`. Since `held_s` it has held most of that again.
    """

    rest_s: float
    times: int
    lost_kib: int
    held_s: float | None = None


class AdaptiveState(NamedTuple):
    """All that a pass hands to the next."""

    taken_s: float | None = None
    rule: str = ""
    """The rule that the last pass ended with."""
    engaged: bool = False
    guests_kib: Mapping[str, int] = EMPTY
    """Resident memory that may merge, by `Guest.key`, and that of other processes (changes.OTHER_PROCESSES)."""
    given_back_kib: Mapping[str, int] = EMPTY
    """What guests have given back, through their balloon for one: filled anew, it was written to, and is not new."""
    unmapped_kib: int = 0
    """As of when guests' memory last changed, to tell what they gave back from what came free by merging."""
    swap_free_kib: int | None = None
    """The same, to tell it from what was swapped out."""
    pages_sharing: int | None = None
    """As last seen, to notice COW breaks where the kernel does not count them."""
    cow_ksm: int | None = None
    """As last seen, to notice COW breaks."""
    backlog: Backlog = Backlog()
    arrivals: Arrivals = Arrivals()
    scans: Scans = Scans()
    learned: Learned = Learned()
    watched: Mapping[str, Watched] = EMPTY
    """The guests (`Guest.key`) against which something speaks."""
    rewriters: Mapping[str, float] = EMPTY
    """The guests (`Guest.key`) that are to be out, and until when."""


def dump_state(state: AdaptiveState) -> dict[str, object]:
    """Return a state as plain JSON values."""
    values: dict[str, object] = dump(state)
    return values


def load_state(values: Mapping[str, object]) -> AdaptiveState:
    """Rebuild a state from what `dump_state` gave; raises ValueError if it is not one, as another version's is not."""
    return build(AdaptiveState, values, least=0, most=MAX, is_exact=True)
