"""One libvirt connection as the Hypervisor port: opens it, reads and sets node memory parameters, lists guests.

This is the only module through which settings reach the kernel: virNodeSetMemoryParameters, which `virsh
node-memory-tune` calls too. libvirt's errors become those of `virtksm.errors` here; `Any` ends here.
"""

from __future__ import annotations

from collections.abc import Mapping

import libvirt

from virtksm.errors import (
    Cause,
    LibvirtUnreachable,
    SensingFailed,
    SettingsRefused,
    Unsupported,
    VirtksmError,
)
from virtksm.model import PARAMETERS, Guest, HostMemory, KsmState, Settings
from virtksm.ports import RunningGuest


class LibvirtHost:
    """The Hypervisor port over one open connection."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self.connection = connection
        self.uri = connection.getURI()
        self._max_kib: dict[tuple[str, int], int | None] = {}

    def ksm_state(self) -> KsmState:
        try:
            values = self.connection.getMemoryParameters()
        except libvirt.libvirtError as error:
            raise self._translated(error, "reading KSM's parameters") from error
        return parse_parameters(values)

    def host_memory(self) -> HostMemory:
        try:
            values = self.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        except libvirt.libvirtError as error:
            raise self._translated(error, "reading the host's memory") from error
        return parse_memory_stats(values)

    def running_guests(self, *, afresh: bool) -> tuple[RunningGuest, ...]:
        try:
            domains = self.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            listed = {(domain.UUIDString(), domain.ID()): domain for domain in domains}
        except libvirt.libvirtError as error:
            raise self._translated(error, "listing the guests") from error
        self._learn_max_kib(listed, {} if afresh else self._max_kib)
        return tuple(
            RunningGuest(uuid=uuid, name=domain.name(), domain_id=domain_id, max_kib=self._max_kib[uuid, domain_id])
            for (uuid, domain_id), domain in listed.items()
        )

    def _learn_max_kib(
        self, listed: Mapping[tuple[str, int], libvirt.virDomain], known: Mapping[tuple[str, int], int | None]
    ) -> None:
        """Ask for the maximum of each guest that is not known yet: 0.1 ms each."""
        kept = {key: max_kib for key, max_kib in known.items() if key in listed}
        for key in listed.keys() - kept.keys():
            try:
                kept[key] = listed[key].maxMemory()
            except libvirt.libvirtError:  # the guest has ended, or the connection has, which the next call will tell
                kept[key] = None
        self._max_kib = kept

    def measured_guests(self) -> tuple[Guest, ...]:
        try:
            stats = self.connection.getAllDomainStats(
                libvirt.VIR_DOMAIN_STATS_BALLOON,
                libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
            )
            return tuple(
                Guest(
                    uuid=domain.UUIDString(),
                    name=domain.name(),
                    domain_id=domain.ID(),
                    rss_kib=_counter(values, "balloon.rss"),
                    max_kib=_counter(values, "balloon.maximum"),
                )
                for domain, values in stats
            )
        except libvirt.libvirtError as error:
            raise self._translated(error, "reading the guests' memory") from error

    def set_parameters(self, values: Mapping[str, int]) -> None:
        try:
            self.connection.setMemoryParameters({f"shm_{name}": value for name, value in values.items()})
        except OverflowError as error:
            raise _refused(values, Cause.OUT_OF_RANGE, error) from error
        except LookupError as error:
            raise _refused(values, Cause.UNSUPPORTED, error) from error
        except libvirt.libvirtError as error:
            cause = _REFUSALS.get(error.get_error_code())
            if cause is None or self._is_broken(error):
                raise self._translated(error, "setting KSM's parameters") from error
            raise _refused(values, cause, error) from error

    def _is_broken(self, error: libvirt.libvirtError) -> bool:
        if error.get_error_domain() == libvirt.VIR_FROM_RPC or error.get_error_code() == libvirt.VIR_ERR_INVALID_CONN:
            return True
        try:
            return self.connection.isAlive() == 0
        except libvirt.libvirtError:
            return True

    def _translated(self, error: libvirt.libvirtError, doing: str) -> VirtksmError:
        message = f"{doing} on {self.uri}: {error.get_error_message()}"
        if self._is_broken(error):
            return LibvirtUnreachable(message, remedy="is libvirt's daemon running? (virsh uri)")
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            return Unsupported(message, remedy="KSM needs a hypervisor driver on a Linux host, such as qemu:///system")
        return SensingFailed(message, remedy="try the same with virsh node-memory-tune, and see the daemon's log")


def open_host(uri: str) -> LibvirtHost:
    """Open a read-write connection; raises LibvirtUnreachable."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors arrive as exceptions, not on stderr
    try:
        return LibvirtHost(libvirt.open(uri))
    except libvirt.libvirtError as error:
        raise LibvirtUnreachable(
            f"{uri}: {error.get_error_message()}", remedy=f"does `virsh --connect {uri} uri` work?"
        ) from error


def parse_parameters(values: Mapping[str, int]) -> KsmState:
    """Turn virNodeGetMemoryParameters' dictionary into a KsmState; what is missing is None."""
    return KsmState(
        settings=Settings(**{name: _counter(values, f"shm_{name}") for name in PARAMETERS}),
        pages_shared=_counter(values, "shm_pages_shared"),
        pages_sharing=_counter(values, "shm_pages_sharing"),
        pages_unshared=_counter(values, "shm_pages_unshared"),
        pages_volatile=_counter(values, "shm_pages_volatile"),
        full_scans=_counter(values, "shm_full_scans"),
    )


def parse_memory_stats(values: Mapping[str, int]) -> HostMemory:
    """Turn virNodeGetMemoryStats' dictionary (KiB) into a HostMemory; raises SensingFailed if one is missing."""
    try:
        return HostMemory(
            total_kib=values["total"],
            free_kib=values["free"],
            buffers_kib=values["buffers"],
            cached_kib=values["cached"],
        )
    except KeyError as error:
        raise SensingFailed(
            f"libvirt does not report the host's {error.args[0]} memory",
            remedy="is the host a Linux machine?",
        ) from error


def _counter(values: Mapping[str, object], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) else None


def _refused(values: Mapping[str, int], cause: Cause, error: Exception) -> SettingsRefused:
    return SettingsRefused(str(error), parameter=next(iter(values)), cause=cause)


_REFUSALS = {
    libvirt.VIR_ERR_SYSTEM_ERROR: Cause.UNKNOWN,
    libvirt.VIR_ERR_OPERATION_DENIED: Cause.READ_ONLY,
    libvirt.VIR_ERR_ACCESS_DENIED: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_AUTH_FAILED: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_AUTH_CANCELLED: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: Cause.NOT_AUTHORIZED,
    libvirt.VIR_ERR_OPERATION_INVALID: Cause.UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG: Cause.OUT_OF_RANGE,
}
