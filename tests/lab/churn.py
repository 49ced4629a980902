"""Guests that come and go as fast as libvirt can, whatever its daemon does meanwhile."""

import contextlib
import threading
from pathlib import Path

import libvirt

from demo.embedded import end_all
from demo.guests import PayloadGuest, start_guest
from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import wait_until
from tests.lab.libvirtd import PrivateLibvirtd

KEPT = 2
NOTICE_S = 10.0 * SLOWER
"""How long libvirt may take to notice that its guests' processes have ended."""


class Churn(threading.Thread):
    """Starts tiny guests and ends all but the youngest two; `end` stops it. Who started it ends the guests left over.

    `started` counts the guests that libvirt said to have started.
    """

    def __init__(self, uri: str, kernel: Path) -> None:
        super().__init__(daemon=True)
        self._uri = uri
        self._kernel = kernel
        self._over = threading.Event()
        self._tried = 0
        self.started = 0

    def run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(libvirt.libvirtError):  # the daemon is gone: once more, with a new connection
                connection = libvirt.open(self._uri)
                try:
                    while not self._over.is_set():
                        self._turn(connection)
                finally:
                    connection.close()
            self._over.wait(0.02)

    def end(self) -> None:
        """Stop after the guest that is being started, and wait for that."""
        self._over.set()
        self.join(HANG_S)

    def _turn(self, connection: libvirt.virConnect) -> None:
        self._tried += 1
        start_guest(connection, PayloadGuest(name=f"churn{self._tried}", memory_mib=16), kernel=self._kernel)
        self.started += 1
        ours = [domain for domain in connection.listAllDomains() if domain.name().startswith("churn")]
        for domain in sorted(ours, key=lambda one: one.ID())[:-KEPT]:
            domain.destroy()


def end_guests(libvirtd: PrivateLibvirtd) -> None:
    """End all guests of the running daemon, also those that it half knows since it was killed while they started.

    It may list such a one for ever, without a process.
    """
    end_all(set(libvirtd.processes()) - {libvirtd.pid})
    try:
        wait_until(lambda: not _lists_guests(libvirtd.uri), NOTICE_S, "the daemon to notice")
    except TimeoutError:
        libvirtd.stop()
        libvirtd.forget_guests()
        libvirtd.start()


def _lists_guests(uri: str) -> bool:
    connection = libvirt.open(uri)
    try:
        return bool(connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
    finally:
        connection.close()
