"""The simulated host: the product's ports over ksmd and guests in virtual time.

A `SimHost` is a Hypervisor, `facts` its LocalFacts and `clock` its Clock, so that a real Cycle can be built on it. Time
stands still but for `advance`. Guests are described as the payload's (PayloadGuest).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from bench.sim.ksmd import Ksmd
from bench.sim.memory import SimGuest, make_guest
from bench.steps import Spoil
from demo.guests import PayloadGuest
from virtksm.agent.dirty_rates import min_turn_s
from virtksm.errors import Cause, SettingsRefused
from virtksm.model.snapshot import Guest, HostMemory, KsmState, MergedReading, OtherProcesses, Settings, Traits
from virtksm.values import replace

CPU_TICK_S = 0.01
"""/proc tells CPU time in hundredths of a second."""

CPUS = 8
"""ksmd takes one of them, and nothing else is simulated."""


@dataclass(slots=True, kw_only=True, eq=False)
class SimHost:
    """A host of `total_kib`, of which it uses `own_kib` itself.

    A guest fills at `fill_mib_per_s` (measured: 512 MiB in 2.3 s under software emulation) and its process holds
    `guest_overhead_kib` more (measured: 48 MiB).
    """

    total_kib: int
    own_kib: int = 1024 * 1024
    fill_mib_per_s: float = 220.0
    guest_overhead_kib: int = 48 * 1024
    ksmd: Ksmd = field(default_factory=Ksmd)
    now_s: float = 0.0
    guests_by_name: dict[str, SimGuest] = field(default_factory=dict)
    other_processes_by_name: dict[str, SimGuest] = field(default_factory=dict)
    """Processes that are no guests and let their memory merge (MemoryKSM=, prctl)."""
    hidden: frozenset[str] = frozenset()
    """What nobody tells: names of KSM's files and of vmstat's counters, `ksmd_cpu_seconds`, `dirty_rates`,
    `other_processes` (their files in /proc may not be read), or `local_facts`: the host is another machine."""
    page_kib: int = 4
    tells_images: bool = False
    """Guests' XML tells of which image they are; else they are strangers."""
    spoil: Spoil | None = None
    spoilt: int = 0
    """How often."""
    unmerged: set[str] = field(default_factory=set)
    """The guests (`Guest.key`) that were unmerged while they run."""
    uri: str = "qemu:///system"
    _starts: int = 0

    @property
    def facts(self) -> SimFacts:
        """What this host's /proc and /sys tell."""
        return SimFacts(self)

    def clock(self) -> float:
        """Return the time in seconds, as CLOCK_BOOTTIME."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        self.ksmd.advance(self.now_s)
        spoilers = [self.guests_by_name[name] for name in self.spoil.names] if self.spoil else []
        if self.spoil and all(one.has_merged and self.now_s >= one.low_until_s for one in spoilers):
            self.spoilt += 1
            for one in spoilers:
                one.spoil(self.ksmd.trees, self.now_s, self.spoilt, self.spoil.low_s)

    # Guests

    def start(self, spec: PayloadGuest) -> SimGuest:
        """Start a guest. It does not reboot or power off, and gets no more memory plugged in."""
        guest = self._make(spec)
        self.guests_by_name[spec.name] = guest
        if spec.can_merge:
            self.ksmd.enter(guest)
        return guest

    def start_other(self, spec: PayloadGuest) -> None:
        """Start a process with such memory that libvirt knows nothing of."""
        self.other_processes_by_name[spec.name] = self._make(spec)
        self.ksmd.enter(self.other_processes_by_name[spec.name])

    def _make(self, spec: PayloadGuest) -> SimGuest:
        self._starts += 1
        return make_guest(
            spec,
            uuid=f"00000000-0000-4000-8000-{self._starts:012x}",
            domain_id=self._starts,
            now_s=self.now_s,
            fill_mib_per_s=self.fill_mib_per_s,
            overhead_kib=self.guest_overhead_kib,
            page_kib=self.page_kib,
        )

    def stop(self, name: str) -> None:
        """End a guest."""
        guest = self.guests_by_name.pop(name)
        if guest.spec.can_merge and guest.key not in self.unmerged:
            self.ksmd.leave(guest)

    def keep_out(self, keys: Collection[str]) -> None:
        """Unmerge the guests of these keys (`Guest.key`), and let all others merge that were out."""
        for guest in self.guests_by_name.values():
            if guest.key in keys and guest.key not in self.unmerged:
                self.ksmd.unmerge(guest)
            elif guest.key in self.unmerged and guest.key not in keys:
                self.ksmd.enter(guest)
        self.unmerged.clear()
        self.unmerged.update(keys)

    @property
    def processes(self) -> list[SimGuest]:
        """Return the guests' and all other processes."""
        return [*self.guests_by_name.values(), *self.other_processes_by_name.values()]

    @property
    def saved_pages(self) -> int:
        """Tell what is truly saved now; pages_sharing learns of writes and ended guests at ksmd's next visit."""
        for process in self.processes:
            process.catch_up(self.ksmd.trees, self.now_s)
        return self.ksmd.trees.live.saved

    @property
    def traits(self) -> dict[str, Traits]:
        """Return by `Guest.key` what guests' XML tells."""
        specs = {guest.key: self.guests_by_name[guest.name].spec for guest in self.running_guests(with_max=False)}
        return {
            key: Traits(can_merge=one.can_merge, image=f"image-{one.image}" if self.tells_images else None)
            for key, one in specs.items()
        }

    # Hypervisor

    def ksm_state(self) -> KsmState:
        trees = self.ksmd.trees
        return KsmState(
            settings=Settings(
                pages_to_scan=self.ksmd.pages_to_scan, sleep_millisecs=self.ksmd.sleep_millisecs, merge_across_nodes=1
            ),
            pages_shared=trees.pages_shared,
            pages_sharing=trees.pages_sharing,
            pages_unshared=trees.pages_unshared,
            pages_volatile=trees.pages_volatile,
            full_scans=self.ksmd.full_scans,
        )

    def host_memory(self) -> HostMemory:
        used_kib = self.own_kib + sum(process.rss_kib(self.now_s) for process in self.processes)
        free_kib = max(0, self.total_kib - used_kib + self.page_kib * self.saved_pages)
        return HostMemory(
            total_kib=self.total_kib, free_kib=free_kib, buffers_kib=0, cached_kib=0, available_kib=free_kib
        )

    def cpus(self) -> int | None:
        return CPUS

    def running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        return tuple(
            Guest(
                uuid=guest.uuid,
                name=name,
                domain_id=guest.domain_id,
                max_kib=guest.spec.memory_mib * 1024 if with_max else None,
            )
            for name, guest in self.guests_by_name.items()
        )

    def forget_max(self, uuid: str | None = None) -> None:
        """Nothing is remembered of it."""

    def measured_guests(self) -> tuple[Guest, ...]:
        return self.facts.guests(self.running_guests(with_max=True))

    def set_parameters(self, values: Mapping[str, int]) -> None:
        for name, value in values.items():
            match name:
                case "pages_to_scan":
                    self.ksmd.pages_to_scan = value
                case "sleep_millisecs":
                    self.ksmd.set_sleep(value)
                case _:
                    raise SettingsRefused("not simulated", parameter=name, cause=Cause.UNSUPPORTED)


class SimFacts:
    """LocalFacts of a SimHost."""

    trouble: tuple[str, ...] = ()

    def __init__(self, host: SimHost) -> None:
        self._host = host

    def guests(self, running: tuple[Guest, ...]) -> tuple[Guest, ...]:
        now_s = self._host.now_s
        seen = {guest.uuid: guest for guest in self._host.guests_by_name.values()}
        for guest in seen.values() if "dirty_rates" not in self._host.hidden else ():
            guest.measure_dirty(now_s, min_turn_s(len(seen)))

        def measured(one: Guest) -> Guest:
            guest = seen.get(one.uuid)
            if guest is None:
                return one
            rss_kib = guest.rss_kib(now_s)
            shared_kib = rss_kib - guest.overhead_kib if guest.spec.is_shared else 0
            return replace(one, rss_kib=rss_kib, shared_kib=shared_kib, dirty_kib_per_s=guest.dirty_kib_per_s)

        return tuple(map(measured, running))

    def merged(self, running: tuple[Guest, ...]) -> Iterator[tuple[str, MergedReading]]:
        host, seen = self._host, {guest.uuid: guest for guest in self._host.guests_by_name.values()}
        for one in running:
            seen[one.uuid].catch_up(host.ksmd.trees, host.now_s)
            counted_kib, mapped_kib = (host.page_kib * pages for pages in seen[one.uuid].merged_pages())
            yield one.key, MergedReading(taken_s=host.now_s, counted_kib=counted_kib, mapped_kib=mapped_kib)

    def other_processes_memory(self, running: tuple[Guest, ...]) -> OtherProcesses | None:
        other_processes_kib = [
            process.rss_kib(self._host.now_s) for process in self._host.other_processes_by_name.values()
        ]
        if "other_processes" in self._host.hidden:
            return OtherProcesses(kib=0, processes=0, unread=len(other_processes_kib))
        return OtherProcesses(kib=sum(other_processes_kib), processes=len(other_processes_kib), unread=0)

    def host_memory(self) -> HostMemory:
        return self._host.host_memory()

    def node_memory(self, node: int) -> tuple[int, int] | None:
        return None

    def ksmd_cpu_seconds(self) -> float | None:
        if "ksmd_cpu_seconds" in self._host.hidden:
            return None
        return int(self._host.ksmd.cpu_seconds / CPU_TICK_S + 1e-9) * CPU_TICK_S

    def ksm_counter(self, name: str) -> int | None:
        ksmd = self._host.ksmd
        has_smart_scan = ksmd.rules.smart_scan
        files = {
            "run": 1,
            "pages_to_scan": ksmd.pages_to_scan,
            "sleep_millisecs": ksmd.sleep_millisecs,
            "merge_across_nodes": 1,
            "full_scans": ksmd.full_scans,
            "pages_shared": ksmd.trees.pages_shared,
            "pages_sharing": ksmd.trees.pages_sharing,
            "pages_unshared": ksmd.trees.pages_unshared,
            "pages_volatile": ksmd.trees.pages_volatile,
            "pages_scanned": ksmd.pages_scanned,
            "pages_skipped": ksmd.pages_skipped if has_smart_scan else None,
            "smart_scan": 1 if has_smart_scan else None,
            "use_zero_pages": 0,
            "ksm_zero_pages": 0,
        }
        return None if name in self._host.hidden else files.get(name)

    def vm_counters(self, *names: str) -> tuple[int | None, ...]:
        host = self._host
        for process in host.processes:
            process.catch_up(host.ksmd.trees, host.now_s)
        known = {"cow_ksm": host.ksmd.trees.cow_ksm}
        return tuple(None if name in host.hidden else known.get(name) for name in names)

    def cpus(self) -> int | None:
        return CPUS

    def page_kib(self) -> int:
        return self._host.page_kib

    def huge_page_kib(self) -> int | None:
        return None  # it has none

    def advisor_mode(self) -> str | None:
        return None if "advisor_mode" in self._host.hidden else "none"
