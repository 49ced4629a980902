"""Guests that come and go as fast as libvirt can, whatever its daemon does meanwhile."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import libvirt

from virtksm.demo.guests import PayloadGuest, start_guest

KEPT = 2
HANG_S = 60.0


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
