"""What one pass senses: plain frozen values, with no behaviour beyond arithmetic.

`host` reads them, a policy decides from a snapshot and its state, the cycle reports both. Names of the kernel's
files stay verbatim (`pages_to_scan`), every other quantity carries its unit. A counter that the kernel or the
connection does not offer is `None`, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

IDLE_SLEEP_MS = 10_000
"""sleep_millisecs while ksmd idles. ksmd wakes once per sleep even with 0 pages to scan, so ten seconds cost nothing;
a shorter sleep makes it wake for nothing, and 0 makes it spin (docs/policies.md)."""


class Source(Enum):
    """Where a snapshot's facts about guests come from; no snapshot mixes the two."""

    LOCAL = "local"
    LIBVIRT = "libvirt"


class Settings(NamedTuple):
    """The three KSM parameters that virNodeSetMemoryParameters can set (unsigned int each).

    `None` means: not offered by the kernel (in a snapshot) or left as it is (in a target).
    """

    pages_to_scan: int | None
    sleep_millisecs: int | None
    merge_across_nodes: int | None = None

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield (parameter, value) of those that are set, in the order in which they must be written."""
        for parameter in PARAMETERS:
            value = getattr(self, parameter)
            if value is not None:
                yield parameter, value

    def as_dict(self) -> dict[str, int | None]:
        return {parameter: getattr(self, parameter) for parameter in PARAMETERS}


PARAMETERS = ("pages_to_scan", "sleep_millisecs", "merge_across_nodes")
"""In writing order: a changed sleep_millisecs wakes ksmd at once, a changed pages_to_scan does not, so pages go first;
merge_across_nodes can be refused for reasons of its own and goes last, in a call of its own."""

KERNEL_MAXIMUM = 2**32 - 1
"""The largest pages_to_scan and sleep_millisecs: unsigned int in mm/ksm.c and in libvirt's typed parameters."""

MAXIMA: Mapping[str, int] = {
    "pages_to_scan": KERNEL_MAXIMUM,
    "sleep_millisecs": KERNEL_MAXIMUM,
    "merge_across_nodes": 1,
}
"""The largest value that the kernel takes for each parameter; the smallest is 0."""

KERNEL_DEFAULTS = Settings(pages_to_scan=100, sleep_millisecs=20)
"""What the kernel begins with (mm/ksm.c); merge_across_nodes aside, which no other tuner of KSM is known to set."""

IDLE = Settings(pages_to_scan=0, sleep_millisecs=IDLE_SLEEP_MS)
"""The settings that stop scanning; what is merged stays merged."""


LIBVIRT_COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "full_scans")
"""libvirt tells them, as shm_NAME; other files of KSM's, and counters of /proc/vmstat, are read where local alone."""
LOCAL_COUNTERS = ("run", "pages_scanned", "pages_skipped", "ksm_zero_pages", "redhat_only_zero_pages")
VM_COUNTERS = ("cow_ksm", "thp_fault_alloc", "thp_split_page", "thp_underused_split_page", "pswpout", "zswpout")


class KsmState(NamedTuple):
    """KSM's settings and counters; pages are the host's page size.

    Source: virNodeGetMemoryParameters; from `run` on, where local, the files of that name in /sys/kernel/mm/ksm, and
    `ksmd_cpu_seconds`, `cow_ksm` and `thp_...` from /proc. `page_kib` and `huge_page_kib` are the sizes of this
    machine's pages and transparent huge pages (hpage_pmd_size) where local, else as on x86: libvirt does not tell them.
    `pages_scanned` counts visits (Linux 6.6), `pages_skipped` what smart_scan left out (6.7), `ksm_zero_pages` pages
    merged into the zero page (6.6), `cow_ksm` COW breaks since boot (5.19), `thp_fault_alloc` huge pages that appeared
    whole, `thp_split_page` those that were split, as ksmd does to merge a part of one (4.5), `thp_underused_split_page`
    those that reclaim split for their zero pages (6.12), `pswpout` pages written to swap and `zswpout` those that zswap
    took. The other counters change only when ksmd next scans the page, so COW breaks and exited guests show late. With
    `redhat_only_zero_pages` (RHEL 9.9) nothing else merges.

    `freed_kib` is what huge pages gave back when they were split, by estimate (tuning/freed.py).

    Unmerging (writing 2 to `run`) gives every place its own copy again; a shared page goes only when the last of its
    places has a copy. So that many copies have to fit into memory.
    """

    settings: Settings
    pages_shared: int | None = None
    pages_sharing: int | None = None
    pages_unshared: int | None = None
    pages_volatile: int | None = None
    full_scans: int | None = None
    run: int | None = None
    advisor_mode: str | None = None
    pages_scanned: int | None = None
    pages_skipped: int | None = None
    ksm_zero_pages: int | None = None
    ksmd_cpu_seconds: float | None = None
    cow_ksm: int | None = None
    thp_fault_alloc: int | None = None
    thp_split_page: int | None = None
    thp_underused_split_page: int | None = None
    pswpout: int | None = None
    zswpout: int | None = None
    page_kib: int = 4
    huge_page_kib: int = 2048
    freed_kib: int | None = None
    redhat_only_zero_pages: int | None = None

    @property
    def advisor_is_on(self) -> bool:
        return self.advisor_mode not in (None, "none")

    @classmethod
    def counted(cls, count: Callable[[str], int | None], page_kib: int) -> KsmState:
        """Take only what is merged, each counter by its name."""
        return cls(
            settings=Settings(pages_to_scan=None, sleep_millisecs=None),
            pages_shared=count("pages_shared"),
            pages_sharing=count("pages_sharing"),
            ksm_zero_pages=count("ksm_zero_pages"),
            page_kib=page_kib,
        )

    def kib(self, pages: int) -> int:
        return pages * self.page_kib

    @property
    def merging_pages(self) -> int | None:
        """The places that share a page, each page's first included; zero pages are none of them."""
        if self.pages_shared is None or self.pages_sharing is None:
            return None
        return self.pages_shared + self.pages_sharing

    @property
    def places_per_page(self) -> float | None:
        """How many places a shared page serves on average; None while nothing is shared."""
        return None if not self.pages_shared or self.merging_pages is None else self.merging_pages / self.pages_shared

    @property
    def zero_kib(self) -> int | None:
        return None if self.ksm_zero_pages is None else self.kib(self.ksm_zero_pages)

    @property
    def shared_kib(self) -> int | None:
        return None if self.pages_shared is None or self.pages_sharing is None else self.kib(self.pages_sharing)

    @property
    def unmapped_kib(self) -> int:
        """The memory saved that is in no resident memory: merged zero pages, and what huge pages gave back."""
        return (self.zero_kib or 0) + (self.freed_kib or 0)

    @property
    def saved_kib(self) -> int | None:
        """The memory saved: by sharing pages, by zero pages and by splitting huge pages, as far as they are known."""
        return None if self.shared_kib is None else self.shared_kib + self.unmapped_kib

    @property
    def unmerge_kib(self) -> int | None:
        """The memory that unmerging takes at its height; 0 where nothing is merged."""
        return None if self.merging_pages is None else self.kib(self.merging_pages) + (self.zero_kib or 0)

    def missing_kib(self, available_kib: int) -> int | None:
        """Return how much memory lacks for unmerging; 0 if it fits."""
        return None if self.unmerge_kib is None else max(self.unmerge_kib - available_kib, 0)


class HostMemory(NamedTuple):
    """The host's memory in KiB (/proc/meminfo where local, else virNodeGetMemoryStats).

    From `available_kib` (MemAvailable) on libvirt reports nothing. `hugetlb_kib` is the pool of huge pages (Hugetlb,
    Linux 4.16), `arc_kib` what ZFS's cache gives back when memory is short, which MemAvailable lacks. `limit_kib` is
    what a control group allows all guests together, and `limit_left_kib` what it still lets them take. `swap_left_kib`
    is what of the free swap is not memory itself (zram), and that group may have. `commit_left_kib` is what the kernel
    still promises to programs, merged or not, where it promises no more than it has (vm.overcommit_memory = 2).
    `swapped_kib` is in swap, and not in memory besides.
    """

    total_kib: int
    free_kib: int
    buffers_kib: int
    cached_kib: int
    available_kib: int | None = None
    swap_free_kib: int | None = None
    hugetlb_kib: int | None = None
    arc_kib: int | None = None
    limit_kib: int | None = None
    limit_left_kib: int | None = None
    swap_left_kib: int | None = None
    commit_left_kib: int | None = None
    swapped_kib: int | None = None

    @property
    def usable_kib(self) -> int:
        """What guests can share: not the pool, which is given away, and no more than their control group's limit."""
        return _within(max(self.total_kib - (self.hugetlb_kib or 0), 0), self.limit_kib)

    @property
    def spare_kib(self) -> int | None:
        """What of it is available, ZFS's cache included; None where MemAvailable is unknown."""
        if self.available_kib is None:
            return None
        return _within(self.available_kib + (self.arc_kib or 0), self.limit_left_kib)

    @property
    def spare_swap_kib(self) -> int | None:
        """What of guests' memory the free swap can take; None where swap is unknown."""
        return None if self.swap_free_kib is None else _within(self.swap_free_kib, self.swap_left_kib)

    @property
    def copies_kib(self) -> int:
        """What unmerging can have, without ZFS's cache: before OpenZFS 2.4 it comes back too slowly to rely on."""
        available_kib = self.free_kib if self.available_kib is None else self.available_kib
        return _within(available_kib, self.limit_left_kib)


def _within(kib: int, limit_kib: int | None) -> int:
    return kib if limit_kib is None else min(kib, limit_kib)


IMAGE = "image-"
"""Begins the name of a guest's image; the rest is a hash, as its owner has chosen what it is called."""


class Traits(NamedTuple):
    """What a guest's configuration says that passes go by: may it merge, its image (`Guest.image`), its NUMA nodes.

    `bound_to` are the sets of nodes that it may take memory from and from no others.
    """

    can_merge: bool = True
    image: str | None = None
    bound_to: tuple[tuple[int, ...], ...] = ()


NO_TRAITS = Traits()


class MergedReading(NamedTuple):
    """What of a guest ksmd counts as merged, and what is mapped so, when a reading began (CLOCK_BOOTTIME).

    ksmd counts a page until it scans it again, also if it was written to or given back. Source: ksm_merging_pages of
    /proc/PID (Linux 5.19) and KSM of its smaps_rollup (6.7), both for root to read; zero pages are in neither.
    """

    taken_s: float
    counted_kib: int
    mapped_kib: int


class Guest(NamedTuple):
    """A running domain; `rss_kib` is what its process holds resident, None where that cannot be read.

    `shared_kib` is the part of that in files and shared memory, which never merges, None where that is not told.
    `can_merge` is False where its configuration is known to forbid it. `max_kib` is the memory that it may grow to
    (virDomainGetMaxMemory), None where not asked; `pool_kib` of it is in the pool of huge pages, which RSS lacks, None
    where there is no pool, or it is unknown. `dirty_kib_per_s` is how much of its memory is written to in a second,
    measured (virDomainStartDirtyRateCalc) or as much as it reads from disk; None where neither is known. `freed_kib`
    is its part of KsmState's. `image` is the same for guests that were made from the same disk image or boot the same
    kernel, None where that is not known. `merged` is the last reading of what is merged, None where there is none.
    """

    uuid: str
    name: str
    domain_id: int = -1
    rss_kib: int | None = None
    shared_kib: int | None = None
    can_merge: bool = True
    max_kib: int | None = None
    pool_kib: int | None = None
    dirty_kib_per_s: float | None = None
    freed_kib: int = 0
    image: str | None = None
    merged: MergedReading | None = None

    @property
    def key(self) -> str:
        """The name of this run of the guest: libvirt gives each run a new id."""
        return f"{self.uuid}/{self.domain_id}"

    @property
    def mergeable_kib(self) -> int | None:
        """What of its resident memory may merge; nothing where its RAM cannot, as what lies beside it is small."""
        if not self.can_merge:
            return 0
        return None if self.rss_kib is None else max(self.rss_kib - (self.shared_kib or 0), 0)

    @property
    def potential_kib(self) -> int:
        """The memory that it can grow to, pool aside; it holds already what it holds."""
        return max((self.max_kib or 0) - (self.pool_kib or 0), self.rss_kib or 0)


class NodeMemory(NamedTuple):
    """Memory of the host's NUMA nodes that some guests are bound to, in KiB.

    Of `usable_kib` that guests can share on `nodes` `available_kib` are available; `potential_kib` is what the guests
    that are bound to these nodes can grow to.
    """

    usable_kib: int
    available_kib: int
    potential_kib: int = 0
    nodes: tuple[int, ...] = ()


class OtherProcesses(NamedTuple):
    """Mergeable memory of processes that are no guests, where it can be read, in KiB.

    `processes` hold it; whether `unread` ones may merge is not for this user to read.
    """

    kib: int
    processes: int
    unread: int


class Snapshot(NamedTuple):
    """What one pass sensed. `taken_s` is CLOCK_BOOTTIME in seconds: monotonic, shared by processes, no clock steps.

    `other_processes` is None where the policy does not ask, on another machine, and before Linux 6.1. `cpus` are the
    host's that are online. `bound` are the sets of NUMA nodes that guests are bound to, as far as it has been
    read.
    """

    taken_s: float
    source: Source
    host: HostMemory
    ksm: KsmState
    guests: tuple[Guest, ...]
    other_processes: OtherProcesses | None = None
    cpus: int | None = None
    bound: tuple[NodeMemory, ...] = ()

    def is_sensed_with(self, other: Snapshot) -> bool:
        """Return whether one sensing read the guests and the host of both, and KSM's state alone was read again.

        Each reading makes the host's memory anew; the guests of two may be one object: CPython has a single `()`.
        """
        return self.host is other.host

    @property
    def committed_kib(self) -> int:
        """The sum of the guests' resident memory, of those whose memory could be read."""
        return sum(guest.rss_kib or 0 for guest in self.guests)

    @property
    def guests_unread(self) -> int:
        return [guest.rss_kib for guest in self.guests].count(None)
