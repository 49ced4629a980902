"""The cycle's needs of the world, as Protocols; `host` and `store` implement them, tests pass fakes.

Every port has one real implementation there and one fake in `tests/fakes.py`; the contract tests run
the same cases against both.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from virtksm.model.decision import Pause
from virtksm.model.snapshot import Guest, HostMemory, KsmState, OtherProcesses
from virtksm.tuning.ownership import HostState


class Hypervisor(Protocol):
    """One libvirt connection.

    Every call raises LibvirtUnreachable when the connection is gone and Unsupported when the driver has no such call.
    """

    @property
    def uri(self) -> str:
        """The connection's own canonical URI (virConnectGetURI)."""

    def ksm_state(self) -> KsmState:
        """Read settings and counters (virNodeGetMemoryParameters); the local-only fields stay None."""

    def host_memory(self) -> HostMemory:
        """Read the host's memory (virNodeGetMemoryStats); each time a value of its own (`Snapshot.is_sensed_with`)."""

    def cpus(self) -> int | None:
        """Return how many CPUs of the host are online (virNodeGetInfo), as the connection was told first."""

    def running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        """List the running domains (virConnectListAllDomains); their `rss_kib` stays None.

        While libvirt waits for guests that start or end, these are those of the last list; LibvirtTimeout in the end.
        `with_max` adds what they may grow to: a call (0.1 ms) for each that is new, or that `forget_max` has named.
        """

    def forget_max(self, uuid: str | None = None) -> None:
        """Ask again what a guest may grow to, as memory devices have come or gone; without a name, of all guests.

        May be called by any thread, at any time: it holds for the next list with maxima that begins.
        """

    def measured_guests(self) -> tuple[Guest, ...]:
        """List the running domains with their RSS (virConnectGetAllDomainStats, 2-5 ms a guest)."""

    def set_parameters(self, values: Mapping[str, int]) -> None:
        """Set parameters in the mapping's order, stopping at the first failure (virNodeSetMemoryParameters).

        Raises SettingsRefused; libvirt names no cause, so `cause` is UNKNOWN unless it was libvirt itself that refused.
        """


class LocalFacts(Protocol):
    """The facts of this host's /proc and /sys, beyond libvirt's."""

    @property
    def trouble(self) -> tuple[str, ...]:
        """Obstacles to reading processes in the last calls, each with its remedy; the same words while it lasts."""

    def guests(self, running: tuple[Guest, ...]) -> tuple[Guest, ...]:
        """Return the same guests with their processes' RSS and its shared part; None where no process could be read."""

    def other_processes_memory(self, running: tuple[Guest, ...]) -> OtherProcesses | None:
        """Return the other processes' mergeable memory, as of the last minute; None where the kernel hides it."""

    def host_memory(self) -> HostMemory:
        """Read the host's memory with MemAvailable and swap (/proc/meminfo), as Hypervisor's; raises SensingFailed."""

    def node_memory(self, node: int) -> tuple[int, int] | None:
        """Return what guests can share of a NUMA node's memory, and what of it is available; None for no such node."""

    def ksmd_cpu_seconds(self) -> float | None:
        """Return the CPU time that ksmd has used since boot; None where ksmd is hidden (containers)."""

    def ksm_counter(self, name: str) -> int | None:
        """Return a number of /sys/kernel/mm/ksm, such as `run`; None where the kernel has no such file."""

    def vm_counters(self, *names: str) -> tuple[int | None, ...]:
        """Return numbers of /proc/vmstat, such as `cow_ksm`, in one reading; None for what is not counted."""

    def cpus(self) -> int | None:
        """Return how many CPUs are online."""

    def page_kib(self) -> int:
        """Return the size of a page of memory."""

    def huge_page_kib(self) -> int | None:
        """Return the size of a transparent huge page; None where the kernel has none."""

    def advisor_mode(self) -> str | None:
        """Return the chosen word of /sys/kernel/mm/ksm/advisor_mode; None before Linux 6.8."""


class StateStore(Protocol):
    """Keeps a host's state between passes and processes."""

    @property
    def is_own(self) -> bool:
        """Whether only this process's user can have written what `load` returns."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold the pass lock; raises AlreadyRunning if another process holds it for too long."""

    def load(self) -> HostState:
        """Return the saved state, or an empty one; raises StateUnusable if it cannot be understood."""

    def save(self, state: HostState) -> None:
        """Save `state`, all of it or none; raises StateUnusable."""


class Switch(Protocol):
    """Whether virtksm is paused for this host; outlives processes and reboots."""

    def read(self) -> Pause | None:
        """Return None while it is on. Never fails: an unreadable switch counts as off."""

    def turn_off(self) -> None:
        """Switch off, for good when this returns; one that is off already keeps its date. Raises StateUnusable."""

    def turn_on(self) -> None:
        """Switch on, for good when this returns; also what is damaged. Raises StateUnusable."""


class Clock(Protocol):
    """CLOCK_BOOTTIME in seconds."""

    def __call__(self) -> float: ...
