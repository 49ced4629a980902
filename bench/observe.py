"""When libvirt delivered an event, and when a value in the kernel changed.

Both times are CLOCK_MONOTONIC in nanoseconds, taken in this process: the event's first thing in the callback, the
value's right after the read that showed it, so that polling never makes what lies between seem shorter. The
connection is the benchmark's own. It is to be opened before the agent's, because libvirtd sends an event to its clients
in the order in which they registered.
"""

import os
import queue
import time
from dataclasses import dataclass
from pathlib import Path

import libvirt

PAGES_TO_SCAN = Path("/sys/kernel/mm/ksm/pages_to_scan")
POLL_S = 0.0002
KINDS = {libvirt.VIR_DOMAIN_EVENT_STARTED: "started", libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped"}
VIRSH_ADDS = 500_000
"""More than the agent's steps ever come to, so that a value tells who wrote it."""
VIRSH_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value seen in the kernel for the first time."""

    value: int
    at_ns: int


class Events:
    """Starts and stops of guests, one after the other, from a connection that does nothing else."""

    def __init__(self, uri: str) -> None:
        """Open the connection; libvirt's event loop must run already."""
        self._deliveries: queue.SimpleQueue[tuple[str, str, int]] = queue.SimpleQueue()
        self._connection = libvirt.open(uri)
        self._connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._take, None)

    def next(self, kind: str, guest: str, timeout_s: float) -> int:
        """Wait for the next start or stop and return its time; raises TimeoutError, also if another came."""
        try:
            *found, at_ns = self._deliveries.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no event within {timeout_s:g} s") from None
        if found != [kind, guest]:
            raise TimeoutError(f"not {kind} but {found}")
        return at_ns

    def take_all(self) -> list[int]:
        """Return the times of what was delivered since the last call, without waiting."""
        taken = []
        while not self._deliveries.empty():
            taken.append(self._deliveries.get()[2])
        return taken

    def close(self) -> None:
        self._connection.close()

    def _take(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, event: int, _detail: int, _opaque: object
    ) -> None:
        at_ns = time.monotonic_ns()
        if event in KINDS:
            self._deliveries.put((KINDS[event], domain.name(), at_ns))


class KernelValue:
    """pages_to_scan, read over one descriptor (about 2 microseconds a read)."""

    def __init__(self) -> None:
        self._descriptor = os.open(PAGES_TO_SCAN, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        return int(os.pread(self._descriptor, 32, 0))

    def wait_changed(self, known: int, timeout_s: float) -> Change:
        """Wait until it differs from `known`; raises TimeoutError."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while True:
            value, at_ns = self.read(), time.monotonic_ns()
            if value != known:
                return Change(value=value, at_ns=at_ns)
            if at_ns > deadline_ns:
                raise TimeoutError(f"{PAGES_TO_SCAN} still {known} after {timeout_s:g} s")
            time.sleep(POLL_S)


def time_virsh(uri: str, kernel: KernelValue, *, to_exit: bool = False) -> float:
    """Time `virsh node-memory-tune` in ms, to the changed value or to its exit, and put the value back.

    Raises RuntimeError when it fails.
    """
    known = kernel.read()
    command = ["virsh", "-q", "-c", uri, "node-memory-tune", "--shm-pages-to-scan", str(known + VIRSH_ADDS)]
    began_ns = time.monotonic_ns()
    pid = os.posix_spawnp(command[0], command, os.environ)
    change = None if to_exit else kernel.wait_changed(known, VIRSH_TIMEOUT_S)
    _, status = os.waitpid(pid, 0)
    ended_ns = time.monotonic_ns() if change is None else change.at_ns
    if status != 0 or kernel.read() != known + VIRSH_ADDS:
        raise RuntimeError(f"{command} ended with {status:#x}, pages_to_scan is {kernel.read()}")
    PAGES_TO_SCAN.write_text(str(known), encoding="ascii")
    return (ended_ns - began_ns) / 1e6
