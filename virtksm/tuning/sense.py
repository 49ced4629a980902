"""Sensing: one snapshot of the host from a libvirt connection and, where the host is this one, from /proc and /sys.

The list of guests always comes from libvirt. Where local, memory comes from /proc: the host's, since every call of
libvirt wakes its threads a dozen times, and the guests' (1 ms for 150), since there it costs 2-5 ms a guest. KSM's
state comes from /sys, once libvirt has shown the same settings. Otherwise all comes from libvirt: the snapshot names
the source.
Raises what the hypervisor raises, and Unsupported on a kernel without KSM; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from virtksm.errors import SensingFailed, Unsupported
from virtksm.model.snapshot import (
    LIBVIRT_COUNTERS,
    LOCAL_COUNTERS,
    NO_TRAITS,
    PARAMETERS,
    VM_COUNTERS,
    Guest,
    HostMemory,
    KsmState,
    MergedReading,
    NodeMemory,
    Settings,
    Snapshot,
    Source,
    Traits,
)
from virtksm.tuning.freed import Freed
from virtksm.tuning.ports import Hypervisor, LocalFacts
from virtksm.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtksm.model.current import CurrentKsm


class GuestNotes:
    """What the agent notes of guests beside passes, by `Guest.key`; in one step each, as a pass may read meanwhile."""

    def __init__(self) -> None:
        self.dirty_kib_per_s: dict[str, float] = {}
        """How much of its memory each writes to in a second, as far as that was measured."""
        self.merged: dict[str, MergedReading] = {}
        """What of each was merged, as last read."""
        self.traits: dict[str, Traits] = {}
        """What their configuration says, where it says anything, as far as it was read."""
        self.unmerged: set[str] = set()
        """Those that the agent or a command has unmerged while they run."""


NO_NOTES = GuestNotes()


def sense(
    hypervisor: Hypervisor,
    local: LocalFacts | None,
    now_s: float,
    *,
    with_max: bool = False,
    with_other_processes: bool = False,
    files_agree: bool = False,
    known: Snapshot | None = None,
) -> Snapshot:
    """Read the host's state; `now_s` is CLOCK_BOOTTIME seconds, `local` None for a remote host.

    `with_max` asks what guests may grow to, `with_other_processes` for their memory, where local; `files_agree`: this
    machine's files show the same settings as libvirt, which saves two calls that wake its threads thirty times.
    `known` is a snapshot of a moment ago: all but KSM's state is taken from it, until a full scan has ended.
    """
    ksm = sense_ksm(local) if files_agree and local is not None else None
    if ksm is None or not any(ksm.settings.items()):
        ksm = hypervisor.ksm_state()
        ksm = ksm if local is None else _with_local_facts(ksm, local)
    if not any(ksm.settings.items()):  # libvirt leaves out what /sys/kernel/mm/ksm has no file for
        raise no_ksm(hypervisor.uri)
    if known is not None and known.ksm.full_scans == ksm.full_scans:
        return replace(known, taken_s=now_s, ksm=ksm)
    if local is None:
        return Snapshot(
            taken_s=now_s,
            source=Source.LIBVIRT,
            host=hypervisor.host_memory(),
            ksm=ksm,
            guests=hypervisor.measured_guests(),
            cpus=hypervisor.cpus(),
        )
    guests = local.guests(hypervisor.running_guests(with_max=with_max))
    return Snapshot(
        taken_s=now_s,
        source=Source.LOCAL,
        host=local.host_memory(),
        ksm=ksm,
        guests=guests,
        other_processes=local.other_processes_memory(guests) if with_other_processes else None,
        cpus=local.cpus(),
    )


def with_estimates(snapshot: Snapshot, freed: Freed | None, notes: GuestNotes = NO_NOTES) -> Snapshot:
    """Add what no single reading tells: what huge pages gave back, and what is noted of guests.

    At once, as each guest that is made anew takes a hundredth of a millisecond (measured).
    """
    if freed is not None:
        snapshot = replace(snapshot, ksm=replace(snapshot.ksm, freed_kib=sum(freed.kib.values())))
    freed_kib = {} if freed is None else freed.kib
    known = {*freed_kib, *notes.dirty_kib_per_s, *notes.traits, *notes.unmerged, *notes.merged}
    if not known:
        return snapshot

    def estimated(guest: Guest) -> Guest:
        key = guest.key
        if key not in known:
            return guest
        one = notes.traits.get(key, NO_TRAITS)
        return replace(
            guest,
            freed_kib=freed_kib.get(key, 0),
            dirty_kib_per_s=notes.dirty_kib_per_s.get(key, guest.dirty_kib_per_s),
            can_merge=one.can_merge and key not in notes.unmerged,
            image=one.image,
            merged=notes.merged.get(key),
        )

    return replace(snapshot, guests=tuple(map(estimated, snapshot.guests)))


def with_bound(snapshot: Snapshot, local: LocalFacts, traits: Mapping[str, Traits]) -> Snapshot:
    """Add the memory of the NUMA nodes that guests are bound to, by `Guest.key`.

    Of a guest with several sets of nodes each counts for an equal part.
    """
    potential_kib: dict[tuple[int, ...], int] = {}
    for guest in snapshot.guests if any(one.bound_to for one in traits.values()) else ():
        sets = traits.get(guest.key, NO_TRAITS).bound_to
        for nodes in sets:
            potential_kib[nodes] = potential_kib.get(nodes, 0) + guest.potential_kib // len(sets)
    read = ((read_nodes(nodes, snapshot.host, local), kib) for nodes, kib in potential_kib.items())
    found = tuple(replace(memory, potential_kib=kib) for memory, kib in read if memory is not None)
    return replace(snapshot, bound=found) if found else snapshot


def read_nodes(nodes: Iterable[int], host: HostMemory, local: LocalFacts) -> NodeMemory | None:
    """Read the memory of NUMA nodes, of which ZFS's cache counts as spread evenly; None where none of them is there."""
    memory = {node: one for node in nodes if (one := local.node_memory(node)) is not None}
    if not memory:
        return None
    usable_kib, available_kib = (sum(kinds) for kinds in zip(*memory.values(), strict=True))
    available_kib += (host.arc_kib or 0) * usable_kib // max(host.usable_kib, 1)
    return NodeMemory(usable_kib, available_kib, nodes=tuple(memory))


def no_ksm(uri: str) -> Unsupported:
    """Return the error that the kernel behind a connection has no KSM."""
    return Unsupported(f"the kernel of {uri} has no KSM", remedy="grep CONFIG_KSM /boot/config-$(uname -r)")


def sense_settings(local: LocalFacts) -> Settings:
    """Read KSM's settings from this machine's kernel."""
    return Settings(**{name: local.ksm_counter(name) for name in PARAMETERS})


def sense_ksm(local: LocalFacts) -> KsmState:
    """Read KSM's state from this machine's kernel alone."""
    counters = {name: local.ksm_counter(name) for name in LIBVIRT_COUNTERS}
    return _with_local_facts(replace(KsmState(settings=sense_settings(local)), **counters), local)


def sense_current(local: LocalFacts, snapshot: Snapshot | None) -> CurrentKsm:
    """Read KSM and memory as they are; guests are the snapshot's, and what huge pages gave back from pass to pass."""
    from virtksm.model.current import CurrentKsm, Origin  # start-up time, and no pass asks

    try:
        host = local.host_memory()
    except SensingFailed:  # a pass reports it, with the remedy
        host = None
    ksm = sense_ksm(local)
    if snapshot is None:
        return CurrentKsm(Origin.LOCAL, ksm, host)
    return CurrentKsm(Origin.LOCAL, replace(ksm, freed_kib=snapshot.ksm.freed_kib), host).counting(snapshot)


def _with_local_facts(ksm: KsmState, local: LocalFacts) -> KsmState:
    """Add the facts that libvirt does not report."""
    counters = {name: local.ksm_counter(name) for name in LOCAL_COUNTERS}
    counters |= dict(zip(VM_COUNTERS, local.vm_counters(*VM_COUNTERS), strict=True))
    return replace(
        ksm,
        **counters,
        advisor_mode=local.advisor_mode(),
        ksmd_cpu_seconds=local.ksmd_cpu_seconds(),
        page_kib=local.page_kib(),
        huge_page_kib=local.huge_page_kib() or ksm.huge_page_kib,
    )
