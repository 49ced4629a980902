"""QEMU's monitor through libvirt: whether a running guest's memory may merge, asked and set.

This is the only module that sends monitor commands (virDomainQemuMonitorCommand). libvirt marks the domain as tainted
(custom-monitor) for the first one, even if it only asks, and demands the right to change the guest. So nothing here
runs unless somebody has asked for it. QEMU's answers are a stranger's: only their expected form is taken.
"""

from __future__ import annotations

import json
import time
from typing import Any

import libvirt

from virtksm.errors import GuestVanished, MonitorFailed, MonitorRefused, Unsupported
from virtksm.guests.process import Backend, GuestMerging
from virtksm.host.libvirt_connection import LibvirtHost

BACKENDS = "child<memory-backend-"
"""The beginning of a memory backend's type below /objects; behind it is ram, file, memfd or epc."""
MAX_BACKENDS = 1024
"""More than any guest has: QEMU takes 256 memory devices and 128 NUMA nodes."""
NOTED_WITHIN_S = 2.0
"""libvirt needs so long at most to note that a QEMU has ended (chosen)."""
_DENIED = {
    libvirt.VIR_ERR_ACCESS_DENIED: "libvirt's access driver must allow this user org.libvirt.api.domain.write for this "
    "guest: 40-virtksm-monitor.rules (docs/security.md)",
    libvirt.VIR_ERR_OPERATION_DENIED: "connect read-write",
}


class LibvirtMonitor:
    """The port Monitor over an open connection."""

    def __init__(self, host: LibvirtHost) -> None:
        self._host = host

    def merging(self, guest_uuid: str) -> GuestMerging:
        with self._host.guest(guest_uuid, "asking a guest's QEMU") as domain:
            version = self._ask(domain, "query-version")
            return GuestMerging(
                qemu=parse_version(version),
                backends=tuple(
                    Backend(
                        name=name,
                        size_kib=_kib(self._get(domain, name, "size")),
                        merges=self._get(domain, name, "merge") is True,
                    )
                    for name in self._backends(domain)
                ),
            )

    def set_merging(self, guest_uuid: str, *, merge: bool) -> None:
        with self._host.guest(guest_uuid, "switching a guest's merging") as domain:
            for name in self._backends(domain):
                self._ask(domain, "qom-set", path=f"/objects/{name}", property="merge", value=merge)

    def _backends(self, domain: libvirt.virDomain) -> tuple[str, ...]:
        return parse_backends(self._ask(domain, "qom-list", path="/objects"))

    def _get(self, domain: libvirt.virDomain, name: str, what: str) -> object:
        return self._ask(domain, "qom-get", path=f"/objects/{name}", property=what)

    def _ask(self, domain: libvirt.virDomain, command: str, **arguments: object) -> object:
        from libvirt_qemu import qemuMonitorCommand

        try:
            reply = qemuMonitorCommand(domain, json.dumps({"execute": command, "arguments": arguments}), 0)
        except libvirt.libvirtError as error:
            code, message = error.get_error_code(), f"{command} of a guest's QEMU: {error.get_error_message()}"
            if code in _DENIED:
                raise MonitorRefused(message, remedy=_DENIED[code]) from error
            if code == libvirt.VIR_ERR_NO_SUPPORT:
                raise Unsupported(message, remedy="only guests of QEMU have this monitor") from error
            if self._host.is_broken(error, domain.connect()):
                raise
            if _ends(domain):
                raise GuestVanished(f"guest {domain.UUIDString()} has ended") from error
            raise MonitorFailed(message, remedy="see QEMU's log in /var/log/libvirt/qemu, and libvirt's own") from error
        return parse_reply(reply, command)


def _ends(domain: libvirt.virDomain) -> bool:
    """Return whether a guest whose monitor failed has ended, which libvirt notes some milliseconds later."""
    until_s = time.monotonic() + NOTED_WITHIN_S
    while time.monotonic() < until_s:
        try:
            if not domain.isActive():
                return True
        except libvirt.libvirtError:  # a transient domain that has ended
            return True
        time.sleep(0.01)
    return False


def parse_reply(text: str, command: str) -> object:
    """Return what QEMU returns in an answer of its monitor; raises MonitorFailed for an error, or no answer at all."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MonitorFailed(f"{command} of a guest's QEMU: its answer is no JSON") from error
    match reply:
        case {"return": returned}:
            return returned
        case {"error": {"desc": str() as reason}}:
            raise MonitorFailed(f"{command} of a guest's QEMU: {reason}")
    raise MonitorFailed(f"{command} of a guest's QEMU: its answer is neither a result nor an error")


def parse_version(returned: object) -> tuple[int, int, int]:
    """Return the three numbers of query-version; raises MonitorFailed."""
    match returned:
        case {"qemu": {"major": int() as major, "minor": int() as minor, "micro": int() as micro}}:
            return major, minor, micro
    raise MonitorFailed("query-version of a guest's QEMU: no version")


def parse_backends(returned: object) -> tuple[str, ...]:
    """Return the names of the memory backends in qom-list's answer, sorted; raises MonitorFailed for none."""
    listed: list[Any] = returned if isinstance(returned, list) else []
    names = []
    for one in listed:
        match one:
            case {"name": str() as name, "type": str() as kind} if kind.startswith(BACKENDS):
                names.append(name)
    if not 0 < len(names) <= MAX_BACKENDS:
        raise MonitorFailed(
            f"qom-list of a guest's QEMU: {len(names)} memory backends", remedy="QEMU before 5.0 has no backend"
        )
    return tuple(sorted(names))


def _kib(size: object) -> int | None:
    return size // 1024 if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None
