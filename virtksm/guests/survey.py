"""A survey of all guests for people: their memory, their XML, and KSM's account of each. Never part of a pass.

Every guest costs a call of libvirt for its XML, and where the connection is local a few files of /proc. Elsewhere
libvirt reports their memory (2-5 ms a guest), and of KSM there are only the host's counters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtksm.guests.obstacles import Obstacle, Pool, find_mixed, find_obstacles
from virtksm.guests.ports import Connection, GuestFacts
from virtksm.guests.process import GuestProcess, OtherProcess, ProcessKsm
from virtksm.guests.savings import Account, LeftOver, find_left_over, settle
from virtksm.guests.xml import UNKNOWN, GuestXml, read_guests
from virtksm.model.snapshot import Guest, KsmState, Source
from virtksm.tuning.sense import no_ksm
from virtksm.values import replace

if TYPE_CHECKING:
    from virtksm.guests.headroom import GuestNeed


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenGuest:
    """One guest; `guest.can_merge` leaves open whether KSM is on. `xml` is UNKNOWN where it could not be read.

    `process` is None where none was found, `account` where the kernel does not count, `obstacles` where unknown.
    """

    guest: Guest
    xml: GuestXml
    process: GuestProcess | None
    account: Account | None
    obstacles: tuple[Obstacle, ...] | None

    @property
    def ksm(self) -> ProcessKsm | None:
        """What KSM counts for its process, None where this user may not read it."""
        return None if self.process is None else self.process.ksm

    @property
    def can_merge(self) -> bool | None:
        return None if self.obstacles is None else not self.obstacles

    @property
    def zero_kib(self) -> int:
        """The zero pages merged of it, which are no part of its RSS."""
        return 0 if self.account is None else self.account.zero_bytes // 1024

    @property
    def swapped_kib(self) -> int | None:
        """What of it is in swap, where nothing merges; None where its process was not found."""
        return None if self.process is None else self.process.swapped_kib

    @property
    def max_kib(self) -> int | None:
        """What it may have by its XML, else by libvirt's statistics."""
        return self.guest.max_kib if self.xml.memory_kib is None else self.xml.memory_kib

    @property
    def need(self) -> GuestNeed:
        from virtksm.guests.headroom import need_of  # making its classes is start-up time

        return need_of(
            self.guest,
            self.xml,
            self.max_kib,
            zero_kib=self.zero_kib,
            swapped_kib=self.swapped_kib or 0,
            merged_kib=None if self.account is None else self.account.merged_bytes // 1024,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All running guests; `notes` say what is missing.

    `left_over` is None where no guest has an account; `other_processes` have part in it. `max_page_sharing` is the most
    places that a merged page serves, None where the kernel does not tell.
    """

    uri: str
    source: Source
    ksm: KsmState
    general_profit_bytes: int | None
    max_page_sharing: int | None
    guests: tuple[SeenGuest, ...]
    left_over: LeftOver | None
    other_processes: tuple[OtherProcess, ...]
    notes: tuple[str, ...]

    @property
    def mixed_pools(self) -> tuple[Pool, ...]:
        """The KSM pools that guests of different groups share."""
        unmerged = {one.guest.key for one in self.guests if Obstacle.UNMERGED in (one.obstacles or ())}
        return find_mixed(((one.guest, one.xml, one.process) for one in self.guests), unmerged)

    @property
    def of_guests_bytes(self) -> int:
        """What KSM saves on the guests that could be read."""
        return sum(one.account.saved_bytes for one in self.guests if one.account is not None)


def survey(
    host: Connection,
    local: GuestFacts | None,
    freed_kib: Mapping[str, int] | None = None,
    read_unmerged: Callable[[tuple[Guest, ...]], Collection[str]] = lambda _running: (),
) -> Survey:
    """Survey all running guests; `local` is None for a remote host.

    `freed_kib` is what the last pass has estimated that huge pages gave back, by `Guest.key`; None where unknown.
    `read_unmerged` tells which guests were unmerged while they run.

    Raises what the hypervisor raises, and Unsupported on a kernel without KSM; a guest that ends meanwhile is left out.
    """
    listed = host.measured_guests() if local is None else host.running_guests(with_max=False)
    seen, failures = read_guests(host, listed)
    described = [(guest, xml) for guest, xml in seen if xml is not None]
    freed = freed_kib or {}
    running = tuple(replace(guest, freed_kib=freed.get(guest.key, 0)) for guest, _ in described)
    if local is None:
        processes: tuple[GuestProcess | None, ...] = (None,) * len(running)
        ksm, profit_bytes = host.ksm_state(), None
    else:
        running, processes = local.guests(running), local.processes(running)
        ksm = replace(
            host.ksm_state(),
            run=local.ksm_counter("run"),
            ksm_zero_pages=local.ksm_counter("ksm_zero_pages"),
            page_kib=local.page_kib(),
            freed_kib=None if freed_kib is None else sum(guest.freed_kib for guest in running),
        )
        profit_bytes = local.general_profit_bytes()
    unmerged = read_unmerged(running)
    if ksm.saved_kib is None:
        raise no_ksm(host.uri)
    guests = tuple(
        _see(guest, xml, process, ksm, is_unmerged=guest.key in unmerged)
        for guest, (_, xml), process in zip(running, described, processes, strict=True)
    )
    settled = [(one.ksm, one.account) for one in guests if one.ksm is not None and one.account is not None]
    left_over = None
    if settled or not (guests or local is None):
        left_over = find_left_over(settled, ksm, profit_bytes)
    others: tuple[OtherProcess, ...] = ()
    if local is not None and left_over is not None and left_over.merging_pages > 0:
        others = local.merging_processes(running)
    return Survey(
        uri=host.uri,
        source=Source.LIBVIRT if local is None else Source.LOCAL,
        ksm=ksm,
        general_profit_bytes=profit_bytes,
        max_page_sharing=None if local is None else local.ksm_counter("max_page_sharing"),
        guests=guests,
        left_over=left_over,
        other_processes=tuple(sorted(others, key=lambda one: -one.merging_pages)),
        notes=(
            *find_notes(guests, ksm, is_local=local is not None),
            *(() if local is None else local.trouble),
            *(str(failure) for failure in failures),
        ),
    )


def _see(guest: Guest, xml: GuestXml, process: GuestProcess | None, host: KsmState, *, is_unmerged: bool) -> SeenGuest:
    ksm = None if process is None else process.ksm
    return SeenGuest(
        guest=replace(guest, can_merge=not find_obstacles(xml, process, is_unmerged=is_unmerged)),
        xml=xml,
        process=process,
        account=None if ksm is None else settle(ksm, guest, host),
        obstacles=None if xml is UNKNOWN else find_obstacles(xml, process, ksm_run=host.run, is_unmerged=is_unmerged),
    )


def find_notes(guests: Iterable[SeenGuest], host: KsmState, *, is_local: bool) -> list[str]:
    """Return what is unknown and why, each with its remedy."""
    if not is_local:
        return [
            "of another machine libvirt reports only the guests' memory and KSM's pages: run this command there for "
            "each guest's savings and cost"
        ]
    seen = list(guests)
    counted = [one.ksm for one in seen if one.ksm is not None]
    lost = sum(one.process is None for one in seen)
    denied = len(seen) - lost - len(counted)
    overruled = sum(one.ksm is not None and bool(one.ksm.merges_any) and one.xml.is_kept_out for one in seen)
    notes = []
    if overruled:
        notes.append(
            f"nosharepages is overruled for {guests_text(overruled)}: KSM is switched on for the whole process, as by "
            "MemoryKSM= in the unit of libvirt's daemon, which must go before they start again"
        )
    if lost:
        notes.append(
            f"no process was found for {guests_text(lost)}: do they run on this machine, and is all of /proc visible?"
        )
    if denied:
        notes.append(
            f"KSM's counts of {guests_text(denied)} are for root to read (/proc/PID/ksm_stat), as is what split huge "
            "pages gave back: run this as root"
        )
    if any(ksm.merging_pages is None for ksm in counted):
        notes.append("this kernel counts nothing by process: it takes Linux 5.19, and 6.6 for all of it")
    elif any(ksm.rmap_items is None for ksm in counted):
        notes.append("this kernel does not count bookkeeping by process: it takes Linux 6.1")
    if host.ksm_zero_pages is None:
        notes.append("this kernel does not count the zero pages that KSM merges: it takes Linux 6.6")
    return notes


def guests_text(count: int) -> str:
    """Return a number of guests in words."""
    return "1 guest" if count == 1 else f"{count} guests"
