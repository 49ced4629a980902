"""Pytest fixtures of the laboratory; tests/conftest.py loads this module (`pytest_plugins`).

They leave nothing behind: KSM is restored and unlocked after each test, guests end with the test that started them,
and the private libvirtd with the session.
"""

import asyncio
import gc
import inspect
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest
import structlog

from demo.embedded import end_all
from demo.guests import PayloadGuest, start_guest, wait_settled
from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import Ksm, lent_ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.signals import end_in_order
from virtksm.paths import RuntimePaths
from virtksm.store.files import ensure_runtime
from virtksm.values import replace

REPO = Path(__file__).resolve().parents[2]
# Where libvirt keeps what it learned of QEMU: it checks itself that this is still true.
QEMU_CACHE = REPO / "build" / "libvirt-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGuest:
    """A guest of a test: libvirt's handle, its QEMU process, its console and what it was started as."""

    domain: libvirt.virDomain
    pid: int
    console: Path
    spec: PayloadGuest

    def crash(self) -> None:
        """Kill its QEMU process (SIGKILL)."""
        os.kill(self.pid, signal.SIGKILL)


def tiny(name: str, *, nosharepages: bool = False) -> PayloadGuest:
    """Describe a guest of 16 MiB that fills 1 MiB."""
    return PayloadGuest(name=name, memory_mib=16, own_mib=1, nosharepages=nosharepages)


class GuestFactory:
    """Starts payload guests on one private libvirtd and ends them all with `close`.

    Unless they are `mergeable`, all of them are kept out of sharing.
    """

    def __init__(self, libvirtd: PrivateLibvirtd, kernel: Path, *, mergeable: bool = True) -> None:
        self._libvirtd = libvirtd
        self._kernel = kernel
        self._mergeable = mergeable
        self._consoles = Path(tempfile.mkdtemp(prefix="con", dir=libvirtd.root))
        self._numbers = itertools.count()
        self._opening = threading.Lock()
        self._connection: libvirt.virConnect | None = None
        self._pids: list[int] = []
        self._names: set[str] = set()

    def __call__(
        self, spec: PayloadGuest, *, paused: bool = False, settle: bool = True, kernel: Path | None = None
    ) -> RunningGuest:
        """Start a guest, and wait until its memory is filled unless it is paused or `settle` is False."""
        if not self._mergeable:
            spec = replace(spec, nosharepages=True)
        with self._opening:
            if self._connection is None or not self._connection.isAlive():
                self._connection = libvirt.open(self._libvirtd.uri)
        console = self._consoles / str(next(self._numbers))
        domain = start_guest(self._connection, spec, kernel=kernel or self._kernel, console=console, paused=paused)
        pid = self._libvirtd.guest_pid(spec.name)
        self._pids.append(pid)
        self._names.add(spec.name)
        if settle and not paused:
            wait_settled(console, HANG_S)
        return RunningGuest(domain=domain, pid=pid, console=console, spec=spec)

    def together(self, *specs: PayloadGuest) -> list[RunningGuest]:
        """Start several guests at the same time."""
        with ThreadPoolExecutor(len(specs)) as pool:
            return list(pool.map(self, specs))

    def close(self) -> None:
        """End all guests and close the connection."""
        self.end_all()
        if self._connection is not None:
            self._connection.close()

    def end_all(self) -> None:
        """End all guests, and wait until a running daemon has taken note."""
        # By process and not by virDomainDestroy: a daemon just restarted, frozen or off refuses that.
        end_all(set(self._pids) & set(self._libvirtd.processes()))
        if self._libvirtd.running:
            self._libvirtd.resume()
            connection = libvirt.open(self._libvirtd.uri)
            try:
                wait_until(lambda: not self._listed(connection), HANG_S, f"libvirtd to drop {sorted(self._names)}")
            finally:
                connection.close()

    def _listed(self, connection: libvirt.virConnect) -> set[str]:
        return self._names & {domain.name() for domain in connection.listAllDomains()}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each test take longer on a machine that is slower."""
    for item in items:
        mark = item.get_closest_marker("timeout")
        limit_s = mark.args[0] if mark else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(SLOWER * limit_s), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def test_…` in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """Let nothing of one test reach the next: wait for the threads that it started, and undo what commands change.

    What a thread does late it does to the next test: with its PATH and its /proc, into its log. One that hangs on
    purpose is let go by its test. A command that runs in this process configures the log, and some switch off the
    garbage collector; an agent takes the signals.
    """
    end_in_order()
    before = set(threading.enumerate())
    yield
    left = still_running(before, HANG_S)
    structlog.reset_defaults()
    gc.enable()
    assert not left, f"threads of this test still run: {left}"


@pytest.fixture
def paths() -> Iterator[RuntimePaths]:
    """Lend an agent's folders, where every user may enter, and a socket's path is short enough (108 characters)."""
    with tempfile.TemporaryDirectory(prefix="vk", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        paths = RuntimePaths(f"{folder}/run", f"{folder}/lib")
        ensure_runtime(paths)
        yield paths


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Lend the socket at which systemd hears of a service."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(HANG_S)
        yield listening


def still_running(before: set[threading.Thread], within_s: float) -> list[str]:
    """Wait for all threads but those of `before`; return the names of those that have not ended by then."""
    ends_s = time.monotonic() + within_s
    while left := [thread for thread in threading.enumerate() if thread not in before]:
        left[0].join(max(ends_s - time.monotonic(), 0.0))
        if left[0].is_alive():
            break
    return [thread.name for thread in left]


@pytest.fixture
def ksm() -> Iterator[Ksm]:
    """Lend the real KSM alone to this test: locked, nothing merged, kernel's defaults, run=1; restored afterwards."""
    with lent_ksm() as lent:
        yield lent


@pytest.fixture(scope="session")
def payload() -> Path:
    """Build the payload guest, if need be."""
    subprocess.run([REPO / "bench" / "guest" / "build"], check=True, stdout=subprocess.DEVNULL)
    return REPO / "build" / "payload.elf"


@pytest.fixture(scope="session")
def session_libvirtd() -> Iterator[PrivateLibvirtd]:
    """Run one private libvirtd for all tests; tests use `libvirtd`."""
    with PrivateLibvirtd(cache=QEMU_CACHE) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def session_small_pages_libvirtd() -> Iterator[PrivateLibvirtd]:
    """Run one for all tests whose guests have small pages; tests use `small_pages_libvirtd`."""
    with PrivateLibvirtd(cache=QEMU_CACHE, huge_pages=False) as daemon:
        yield daemon


def ready(daemon: PrivateLibvirtd) -> PrivateLibvirtd:
    """Return a daemon that runs, whatever the test before has done to it."""
    if not daemon.running:
        daemon.stop()
        daemon.start()
    daemon.resume()
    return daemon


@pytest.fixture
def libvirtd(session_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Lend the private libvirtd, running."""
    return ready(session_libvirtd)


@pytest.fixture
def small_pages_libvirtd(session_small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Lend a private libvirtd whose guests have no huge pages: every page of theirs merges at its second visit.

    What ksmd splits of huge pages, and khugepaged puts together again, may wait for a third. A module whose tests count
    merged pages puts it in the place of `libvirtd`.
    """
    return ready(session_small_pages_libvirtd)


@pytest.fixture
def libvirt_conn(libvirtd: PrivateLibvirtd) -> Iterator[libvirt.virConnect]:
    """Lend a connection of this test's own; no event loop runs for it."""
    connection = libvirt.open(libvirtd.uri)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def guest(request: pytest.FixtureRequest, libvirtd: PrivateLibvirtd, payload: Path) -> Iterator[GuestFactory]:
    """Lend a factory of guests, which end with the test.

    A test without KSM's lock runs beside one that holds it: there its guests' memory would be scanned and counted.
    """
    factory = GuestFactory(libvirtd, payload, mergeable="ksm" in request.fixturenames)
    try:
        yield factory
    finally:
        factory.close()
