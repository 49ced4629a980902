"""How soon libvirt is asked again, and whether a failed call means that the connection is lost."""

from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest
import tenacity

from virtksm.agent.connection import MAX_WAIT_S, wait_s
from virtksm.errors import LibvirtRefuses, LibvirtUnreachable, SensingFailed
from virtksm.host.libvirt_connection import LibvirtHost, open_host

MAX_S = 1.5


def waits_after(error: Exception) -> list[float]:
    """Return many drawings of the wait after a long row of attempts that failed."""
    state = tenacity.RetryCallState(cast("Any", None), None, (), {})
    state.attempt_number = 50
    state.set_exception((type(error), error, None))
    return [wait_s(state, MAX_S) for _ in range(500)]


def failed(code: int, domain: int) -> libvirt.libvirtError:
    """Return an error as libvirt raises it."""
    error: Any = libvirt.libvirtError("failed")
    error.err = (code, domain, "failed", 2, None, None, None, 0, 0)
    return cast("libvirt.libvirtError", error)


class Connection:
    """A connection of which each call fails."""

    def __init__(self, error: libvirt.libvirtError, *, is_alive: bool) -> None:
        self._error = error
        self._is_alive = is_alive

    def getURI(self) -> str:  # noqa: N802  # libvirt's name
        return "qemu:///system"

    def isAlive(self) -> int:  # noqa: N802  # libvirt's name
        return int(self._is_alive)

    def lookupByUUIDString(self, _uuid: str) -> None:  # noqa: N802  # libvirt's name
        raise self._error


def test_a_libvirt_that_is_away_is_asked_again_soon() -> None:
    assert MAX_S / 2 < max(waits_after(LibvirtUnreachable("connection refused"))) <= MAX_S


def test_a_libvirt_that_refuses_is_asked_again_within_a_minute() -> None:
    assert MAX_S < max(waits_after(LibvirtRefuses("authentication cancelled"))) <= MAX_WAIT_S


def test_a_uri_that_nothing_serves_is_a_refusal() -> None:
    with pytest.raises(LibvirtRefuses):
        open_host("qemu+nosuch:///system")


@pytest.mark.parametrize(
    ("code", "domain", "is_alive", "expected"),
    [
        (libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC, True, SensingFailed),  # a message that is too large
        (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, True, SensingFailed),
        (libvirt.VIR_ERR_RPC, libvirt.VIR_FROM_RPC, False, LibvirtUnreachable),
        (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, True, LibvirtUnreachable),  # its socket
        (libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_FROM_QEMU, True, LibvirtUnreachable),
        (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_QEMU, True, SensingFailed),
    ],
)
def test_a_call_that_fails_is_not_yet_a_lost_connection(
    code: int, domain: int, is_alive: bool, expected: type[Exception]
) -> None:
    connection = Connection(failed(code, domain), is_alive=is_alive)
    host = LibvirtHost(cast("libvirt.virConnect", connection))
    with pytest.raises(expected) as caught:
        host.guest_xml("uuid")
    assert type(caught.value) is expected


def test_a_right_to_measure_that_the_access_driver_denies_is_a_refusal_and_nothing_about_one_guest() -> None:
    error = failed(libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_FROM_ACCESS)

    def refuse(_seconds: int) -> None:
        raise error

    connection: Any = Connection(error, is_alive=True)
    connection.lookupByUUIDString = lambda _uuid: SimpleNamespace(startDirtyRateCalc=refuse)
    host = LibvirtHost(connection)
    with pytest.raises(LibvirtRefuses):
        host.start_dirty_rate("uuid", 60)
