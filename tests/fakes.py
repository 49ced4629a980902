"""Fakes of the ports, for unit tests and for faults that the real thing will not produce on demand.

The contract tests (tests/contract) run the same cases against each of them and its real counterpart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from virtksm.errors import Cause, GuestVanished, SensingFailed, SettingsRefused, StateUnusable
from virtksm.guests.choices import Choice
from virtksm.guests.process import Backend, GuestMerging, GuestProcess, MergeableMemory, OtherProcess
from virtksm.history.samples import MAX_EVENTS, GuestEvent, Sample
from virtksm.host.bounded import Waiting
from virtksm.model.decision import Decision, Pause, Reason, Triggers
from virtksm.model.snapshot import (
    PARAMETERS,
    Guest,
    HostMemory,
    KsmState,
    MergedReading,
    OtherProcesses,
    Settings,
    Snapshot,
)
from virtksm.tuning.cycle import Cycle, Tenure
from virtksm.tuning.ownership import HostState
from virtksm.values import replace

HOST = HostMemory(total_kib=16 * 1024 * 1024, free_kib=8 * 1024 * 1024, buffers_kib=0, cached_kib=1024 * 1024)
BUSY = Settings(pages_to_scan=400, sleep_millisecs=10)
LOCAL_HOST = replace(HOST, available_kib=8 * 1024 * 1024)
SAMPLE = Sample(
    at_s=1_790_000_000.0,
    guests=2,
    committed_kib=4 * 1024 * 1024,
    total_kib=16 * 1024 * 1024,
    available_kib=8 * 1024 * 1024,
    saved_kib=1024 * 1024,
    ksmd_cpu_seconds=10.0,
    run=1,
    pages_to_scan=0,
    sleep_millisecs=10_000,
    rule="idle",
    zero_kib=None,
    freed_kib=None,
)


@dataclass
class FakeHypervisor:
    """A kernel with KSM behind libvirt: takes parameters one by one and stops at the first that it refuses."""

    uri: str = "qemu:///system"
    values: dict[str, int] = field(
        default_factory=lambda: {"pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1}
    )
    pages_shared: int = 0
    advisor_on: bool = False
    host: HostMemory = HOST
    running: tuple[Guest, ...] = ()
    measured: tuple[Guest, ...] = ()
    xml: dict[str, str] = field(default_factory=dict)
    dirty_mib_per_s: dict[str, int] = field(default_factory=dict)
    """What a guest's measurement will find; without it, it has ended."""
    measuring: dict[str, int] = field(default_factory=dict)
    """The guests being measured, and for how many seconds."""
    ever_measured: set[str] = field(default_factory=set)
    read_bytes: dict[str, int] = field(default_factory=dict)
    """What guests have read from disk; without it, a guest has no disk."""
    calls: list[dict[str, int]] = field(default_factory=list)
    before_write: Callable[[str, int], None] = lambda name, value: None
    reading_fails: Exception | None = None
    told_max_kib: dict[str, int | None] = field(default_factory=dict)
    tainted: tuple[str, ...] | None = ()
    """Each guest."""
    stale: set[str | None] = field(default_factory=set)
    late_list: Waiting | None = None

    def ksm_state(self) -> KsmState:
        if self.reading_fails is not None:
            raise self.reading_fails
        return KsmState(
            settings=Settings(**{name: self.values.get(name) for name in PARAMETERS}),
            pages_shared=self.pages_shared,
            pages_sharing=0,
            pages_unshared=0,
            pages_volatile=0,
            full_scans=0,
        )

    def host_memory(self) -> HostMemory:
        return replace(self.host)

    def cpus(self) -> int | None:
        return 8

    def running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        if not with_max:
            return tuple(replace(one, max_kib=None) for one in self.running)
        stale, self.stale = self.stale, set()
        known = {} if None in stale else self.told_max_kib
        self.told_max_kib = {
            one.key: known[one.key] if one.key in known and one.uuid not in stale else one.max_kib
            for one in self.running
        }
        return tuple(replace(one, max_kib=self.told_max_kib[one.key]) for one in self.running)

    def forget_max(self, uuid: str | None = None) -> None:
        self.stale.add(uuid)

    def measured_guests(self) -> tuple[Guest, ...]:
        return self.measured

    def guest_xml(self, uuid: str) -> str:
        if uuid not in self.xml:
            raise GuestVanished(f"guest {uuid} has ended")
        return self.xml[uuid]

    def taints(self, uuid: str) -> tuple[str, ...] | None:
        return self.tainted

    def start_dirty_rate(self, uuid: str, seconds: int) -> None:
        if uuid not in self.dirty_mib_per_s:
            raise GuestVanished(f"guest {uuid} has ended")
        if uuid in self.measuring:
            raise SensingFailed("the dirty rate is already being measured")
        self.measuring[uuid] = seconds
        self.ever_measured.add(uuid)

    def changes(self, uuid: str, *, is_measured: bool) -> tuple[int | None, int | None]:
        if uuid not in self.xml:
            raise GuestVanished(f"guest {uuid} has ended")
        is_over = is_measured and uuid in self.ever_measured - self.measuring.keys()
        return self.dirty_mib_per_s.get(uuid) if is_over else None, self.read_bytes.get(uuid)

    def set_parameters(self, values: Mapping[str, int]) -> None:
        for name, value in values.items():
            if name not in self.values:
                raise SettingsRefused("unknown", parameter=name, cause=Cause.UNSUPPORTED)
            if not 0 <= value < 2**32:
                raise SettingsRefused("out of range", parameter=name, cause=Cause.OUT_OF_RANGE)
        self.calls.append(dict(values))
        for name, value in values.items():
            self.before_write(name, value)
            refused = (
                (name == "pages_to_scan" and self.advisor_on)
                or (name == "merge_across_nodes" and self.pages_shared > 0 and value != self.values[name])
                or (name == "merge_across_nodes" and value > 1)
            )
            if refused:
                raise SettingsRefused(f"failed to set shm_{name}", parameter=name, cause=Cause.UNKNOWN)
            self.values[name] = value


@dataclass
class FakeMonitor:
    """The monitors of guests' QEMU, by UUID; one that is not there has ended."""

    guests: dict[str, GuestMerging] = field(default_factory=dict)
    refuses: Exception | None = None
    asked: int = 0
    sets: list[tuple[str, bool]] = field(default_factory=list)
    """The guests that were switched, and how."""

    def merging(self, guest_uuid: str) -> GuestMerging:
        self.asked += 1
        if self.refuses is not None:
            raise self.refuses
        if guest_uuid not in self.guests:
            raise GuestVanished(f"guest {guest_uuid} has ended")
        return self.guests[guest_uuid]

    def set_merging(self, guest_uuid: str, *, merge: bool) -> None:
        told = self.merging(guest_uuid)
        self.sets.append((guest_uuid, merge))
        self.guests[guest_uuid] = replace(told, backends=tuple(replace(one, merges=merge) for one in told.backends))


def merging_guest(*sizes_mib: int, qemu: tuple[int, int, int] = (7, 2, 22)) -> GuestMerging:
    """Return what a QEMU says whose backends, of such sizes, all merge."""
    backends = (Backend(name=f"ram-node{at}", size_kib=mib * 1024, merges=True) for at, mib in enumerate(sizes_mib))
    return GuestMerging(qemu=qemu, backends=tuple(backends))


@dataclass
class FakeFacts:
    """This host's own facts, as told."""

    memory: HostMemory = LOCAL_HOST
    run: int | None = 1
    advisor: Callable[[], str | None] = lambda: "none"
    rss_kib: Mapping[str, int] = field(default_factory=dict)
    shared_kib: int = 0
    """Of each guest's."""
    of_guests: dict[str, GuestProcess] = field(default_factory=dict)
    runs: dict[str, str | None] = field(default_factory=dict)
    """Guests' processes by UUID; those not in it have one for each run."""
    living: set[str] = field(default_factory=set)
    """Processes of guests that may not be listed."""
    mergeable: Callable[[], MergeableMemory | None] = lambda: None
    readings: Mapping[str, MergedReading] = field(default_factory=dict)
    """What is merged, by guests' UUID."""
    counters: Mapping[str, int | None] = field(default_factory=dict)
    huge_kib: int | None = 2048
    profit_bytes: int | None = 0
    other_processes: tuple[OtherProcess, ...] = ()
    other_processes_kib: int = 0
    trouble: tuple[str, ...] = ()

    def guests(self, running: tuple[Guest, ...]) -> tuple[Guest, ...]:
        return tuple(
            replace(one, rss_kib=self.rss_kib[one.uuid], shared_kib=self.shared_kib)
            if one.uuid in self.rss_kib
            else one
            for one in running
        )

    def processes(self, running: tuple[Guest, ...]) -> tuple[GuestProcess | None, ...]:
        return tuple(self.of_guests.get(one.uuid) for one in running)

    def identities(self, running: tuple[Guest, ...]) -> tuple[str | None, ...]:
        return tuple(self.runs.get(one.uuid, f"process of {one.key}") for one in running)

    def lives(self, identity: str) -> bool:
        return identity in self.living

    def mergeable_memory(self, guest: Guest) -> MergeableMemory | None:
        return self.mergeable()

    def merged(self, running: tuple[Guest, ...]) -> Iterator[tuple[str, MergedReading]]:
        return ((one.key, self.readings[one.uuid]) for one in running if one.uuid in self.readings)

    def merging_processes(self, running: tuple[Guest, ...]) -> tuple[OtherProcess, ...]:
        return self.other_processes

    def other_processes_memory(self, running: tuple[Guest, ...]) -> OtherProcesses | None:
        return OtherProcesses(kib=self.other_processes_kib, processes=int(self.other_processes_kib > 0), unread=0)

    def host_memory(self) -> HostMemory:
        return replace(self.memory)

    def node_memory(self, node: int) -> tuple[int, int] | None:
        return (self.memory.total_kib, self.memory.free_kib) if node == 0 else None

    def ksmd_cpu_seconds(self) -> float | None:
        return 1.5

    def ksm_counter(self, name: str) -> int | None:
        return self.run if name == "run" else self.counters.get(name, 0)

    def general_profit_bytes(self) -> int | None:
        return self.profit_bytes

    def vm_counters(self, *names: str) -> tuple[int | None, ...]:
        return (0,) * len(names)

    def cpus(self) -> int | None:
        return 8

    def page_kib(self) -> int:
        return 4

    def huge_page_kib(self) -> int | None:
        return self.huge_kib

    def advisor_mode(self) -> str | None:
        return self.advisor()


@dataclass
class FakeStore:
    """A state store in memory. `saved` is every state ever kept."""

    state: HostState = field(default_factory=HostState)
    saved: list[HostState] = field(default_factory=list)
    is_full: bool = False
    is_own: bool = True

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def load(self) -> HostState:
        return self.state

    def save(self, state: HostState) -> None:
        if self.is_full:
            raise StateUnusable("no space left on device")
        self.state = state
        self.saved.append(state)


@dataclass
class FakeChoices:
    """Choices in memory."""

    kept: dict[str, Choice] = field(default_factory=dict)
    is_full: bool = False

    def read(self) -> dict[str, Choice]:
        return dict(self.kept)

    def note(self, uuid: str, choice: Choice) -> None:
        self.exchange(uuid, self.kept.get(uuid), choice)

    def exchange(self, uuid: str, old: Choice | None, new: Choice | None) -> bool:
        if self.is_full:
            raise StateUnusable("no space left on device")
        if self.kept.get(uuid) != old:
            return False
        self.kept.pop(uuid, None)
        if new is not None:
            self.kept[uuid] = new
        return True


@dataclass
class FakeSwitch:
    """A switch in memory; `damage` is what a damaged file says."""

    off: Pause | None = None
    is_full: bool = False

    def read(self) -> Pause | None:
        return self.off

    def turn_off(self) -> None:
        if self.off is not None and not self.off.damage:
            return
        if self.is_full:
            raise StateUnusable("no space left on device")
        self.off = Pause(since="2026-01-02T03:04:05Z")

    def turn_on(self) -> None:
        self.off = None


@dataclass
class FakeHistory:
    """A history in memory that drops nothing; `aside` is what the next write has to set aside first."""

    kept_samples: list[Sample] = field(default_factory=list)
    kept_events: list[GuestEvent] = field(default_factory=list)
    kept_decisions: list[str] = field(default_factory=list)
    is_full: bool = False
    aside: str | None = None
    writes: int = 0

    def add(self, samples: Sequence[Sample], events: Sequence[GuestEvent], decisions: Sequence[str]) -> str | None:
        if self.is_full:
            raise StateUnusable("no space left on device")
        self.writes += 1
        self.kept_samples += samples
        self.kept_events += events
        self.kept_decisions += decisions
        aside, self.aside = self.aside, None
        return aside

    def samples(self, since_s: float) -> tuple[Sample, ...]:
        return tuple(one for one in self.kept_samples if one.at_s >= since_s)

    def events(self, since_s: float, limit: int = MAX_EVENTS) -> tuple[GuestEvent, ...]:
        return tuple(one for one in self.kept_events if one.at_s >= since_s)[-limit:]

    def decisions(self, limit: int) -> tuple[str, ...]:
        return tuple(self.kept_decisions[-limit:])


@dataclass
class FakeClock:
    """A clock that goes when told."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class TargetPolicy:
    """A policy whose answer the test chooses; its state counts its steps."""

    target: Settings = BUSY
    name: str = "target"
    only_observes: bool = False
    wants_maxima: bool = False
    wants_other_processes: bool = False
    next_pass_s: float | None = 60.0
    is_routine: bool = False

    def first_state(self, snapshot: Snapshot) -> int:  # the port's signature
        return 0

    def load_state(self, kept: Mapping[str, object]) -> int:
        steps = kept.get("steps")
        if not isinstance(steps, int):
            raise ValueError("no steps")  # the port promises ValueError
        return steps

    def dump_state(self, state: int) -> dict[str, object]:
        return {"steps": state}

    def quantities(self, snapshot: Snapshot, state: int, decision: Decision) -> tuple[()]:
        return ()

    def decide(self, snapshot: Snapshot, state: int, triggers: Triggers) -> tuple[Decision, int]:
        decision = Decision(
            target=self.target,
            reason=Reason(rule="told", text="as told", numbers={"free_kib": snapshot.host.free_kib}),
            next_pass_s=self.next_pass_s,
            is_routine=self.is_routine,
        )
        return decision, state + triggers.is_step


def fake_cycle(**parts: object) -> Cycle[Any]:
    """Return a cycle over fakes, and over the parts given."""
    made: dict[str, Any] = {
        "hypervisor": FakeHypervisor(),
        "local": FakeFacts(),
        "policy": TargetPolicy(),
        "store": FakeStore(),
        "switch": FakeSwitch(),
        "clock": FakeClock(),
        "on_conflict": "reassert",
        "tenure": Tenure(),
    }
    return Cycle(**(made | parts))
