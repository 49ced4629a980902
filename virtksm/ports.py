"""What the cycle needs of the world, as Protocols; adapters implement them, tests hand in fakes.

Every port has one real implementation in `virtksm.adapters` and one fake in `tests/fakes.py`; the contract tests run
the same cases against both.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from virtksm.model import Guest, HostMemory, KsmState
from virtksm.ownership import HostState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGuest:
    """A running domain as libvirt lists it; `domain_id` is new for every start of the guest."""

    uuid: str
    name: str
    domain_id: int
    max_kib: int | None = None


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
        """Read the host's memory (virNodeGetMemoryStats)."""

    def running_guests(self, *, afresh: bool) -> tuple[RunningGuest, ...]:
        """List the running domains (virConnectListAllDomains); `afresh` asks for the maximum of those known, too."""

    def measured_guests(self) -> tuple[Guest, ...]:
        """List the running domains with their RSS (virConnectGetAllDomainStats, 2-5 ms a guest)."""

    def set_parameters(self, values: Mapping[str, int]) -> None:
        """Set parameters in the mapping's order, stopping at the first failure (virNodeSetMemoryParameters).

        Raises SettingsRefused; libvirt names no cause, so `cause` is UNKNOWN unless it was libvirt itself that refused.
        """


class LocalFacts(Protocol):
    """What this host's /proc and /sys tell beyond libvirt."""

    def guests(self, running: tuple[RunningGuest, ...]) -> tuple[Guest, ...]:
        """Return the guests with the RSS of their processes; None where no process was found."""

    def host_memory(self) -> HostMemory:
        """Read the host's memory with MemAvailable (/proc/meminfo); raises SensingFailed."""

    def ksmd_cpu_seconds(self) -> float | None:
        """Return the CPU time that ksmd has used since boot; None where it cannot be seen (containers)."""

    def ksm_counter(self, name: str) -> int | None:
        """Return a number of /sys/kernel/mm/ksm, such as `run`; None where the kernel has no such file."""

    def advisor_mode(self) -> str | None:
        """Return the chosen word of /sys/kernel/mm/ksm/advisor_mode; None before Linux 6.8."""


class StateStore(Protocol):
    """Where a host's state is kept between passes and processes."""

    def locked(self) -> AbstractContextManager[None]:
        """Hold the pass lock; raises AlreadyRunning if another process keeps it for too long."""

    def load(self) -> HostState:
        """Return what was kept, or an empty state; raises StateUnusable if it cannot be understood."""

    def save(self, state: HostState) -> None:
        """Keep `state`, all of it or none; raises StateUnusable."""


class Clock(Protocol):
    """CLOCK_BOOTTIME in seconds."""

    def __call__(self) -> float: ...
