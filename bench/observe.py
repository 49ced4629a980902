"""The benchmark's own eyes: when libvirt delivered an event to it, and when a value in the kernel changed.

Both times are CLOCK_MONOTONIC in nanoseconds, taken in this process: the event's first thing in the callback, the
value's right after the read that showed it, so that what lies between is never told too short by the polling. The
connection is the benchmark's own; it is to be opened before the agent's, because libvirtd sends an event to its clients
in the order in which they registered.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import libvirt

PAGES_TO_SCAN = Path("/sys/kernel/mm/ksm/pages_to_scan")
POLL_S = 0.0002
KINDS = {libvirt.VIR_DOMAIN_EVENT_STARTED: "started", libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A lifecycle event as libvirt delivered it; `kind` is "started" or "stopped"."""

    kind: str
    guest: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value seen in the kernel for the first time."""

    value: int
    at_ns: int


class Events:
    """Starts and stops of guests, one after the other, from a connection that does nothing else."""

    def __init__(self, uri: str) -> None:
        """Open the connection; libvirt's event loop must run already."""
        self._deliveries: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._connection = libvirt.open(uri)
        self._connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._take, None)

    def next(self, timeout_s: float) -> Delivery:
        """Wait for the next start or stop; raises TimeoutError."""
        try:
            return self._deliveries.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no event within {timeout_s:g} s") from None

    def take_all(self) -> list[Delivery]:
        """Return what was delivered since the last call, without waiting."""
        taken = []
        while not self._deliveries.empty():
            taken.append(self._deliveries.get())
        return taken

    def close(self) -> None:
        self._connection.close()

    def _take(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, event: int, _detail: int, _opaque: object
    ) -> None:
        at_ns = time.monotonic_ns()
        if event in KINDS:
            self._deliveries.put(Delivery(kind=KINDS[event], guest=domain.name(), at_ns=at_ns))


class KernelValue:
    """One number below /sys, read over one descriptor (about 2 microseconds a look)."""

    def __init__(self, path: Path = PAGES_TO_SCAN) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        return int(os.pread(self._descriptor, 32, 0))

    def put_back(self, value: int) -> None:
        """Write a value, so that what the benchmark itself changed is as the agent left it."""
        self._path.write_text(str(value), encoding="ascii")

    def wait_changed(self, known: int, timeout_s: float) -> Change:
        """Wait until it differs from `known`; raises TimeoutError."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while True:
            value, at_ns = self.read(), time.monotonic_ns()
            if value != known:
                return Change(value=value, at_ns=at_ns)
            if at_ns > deadline_ns:
                raise TimeoutError(f"{self._path} still {known} after {timeout_s:g} s")
            time.sleep(POLL_S)

    def close(self) -> None:
        os.close(self._descriptor)


class Recorder:
    """Records every change of a value in a thread, between entering and leaving; `last` is None until the first."""

    def __init__(self, value: KernelValue) -> None:
        self._value = value
        self._known = value.read()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._record, name="recorder")
        self.changes: list[Change] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def last(self) -> Change | None:
        return self.changes[-1] if self.changes else None

    def _record(self) -> None:
        while not self._ending.is_set():
            value, at_ns = self._value.read(), time.monotonic_ns()
            if value != self._known:
                self._known = value
                self.changes.append(Change(value=value, at_ns=at_ns))
            time.sleep(POLL_S)
