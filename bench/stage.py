"""What a benchmark of the agent needs around it: a private libvirtd, tiny paused guests, the agent as a process.

Everything lies below the private libvirtd's folder. SIGTERM ends a benchmark in order; what it has started ends with
it, however it has died.
"""

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import libvirt

from demo.guests import PayloadGuest, start_guest
from tests.lab.fixtures import QEMU_CACHE, REPO
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import AgentHome, AgentProcess

PAYLOAD = REPO / "build" / "payload.elf"
MEMORY_MIB = 16

STEPPING_LAW = """\
policy = "ksmtuned"
[ksmtuned]
monitor_interval = 86400
thres_coef = 100
npages_boost = 1
npages_min = 1
npages_max = 1000000
"""
"""Memory always counts as short, so every pass changes pages_to_scan by exactly one page, and no timer makes one."""


@contextmanager
def private_libvirtd(*, huge_pages: bool = True) -> Iterator[PrivateLibvirtd]:
    """Run a libvirtd of the benchmark's own, and end it and its guests also on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    with PrivateLibvirtd(cache=QEMU_CACHE, huge_pages=huge_pages) as daemon:
        yield daemon


class Guests:
    """Paused guests of 16 MiB on a connection of their own; `close` leaves them to the libvirtd's end."""

    def __init__(self, uri: str) -> None:
        self._connection = libvirt.open(uri)
        self.running = 0

    def grow_to(self, count: int) -> None:
        """Start guests until `count` run, two at a time."""

        def start_one(number: int) -> None:
            self.start(f"idle{number}")

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(start_one, range(self.running, count)))
        self.running = max(self.running, count)

    def start(self, name: str) -> None:
        start_guest(
            self._connection, PayloadGuest(name=name, memory_mib=MEMORY_MIB), kernel=PAYLOAD.resolve(), paused=True
        )

    def stop(self, name: str) -> None:
        self._connection.lookupByName(name).destroy()

    def close(self) -> None:
        self._connection.close()


@contextmanager
def running_agent(
    folder: Path, uri: str, config: str, *, log: IO[bytes] | None = None, stderr: int | None = None
) -> Iterator[AgentProcess]:
    """Run an agent with its files in `folder` from its first pass on; `log` and `stderr` are AgentProcess's."""
    home = home_in(folder, config)
    agent = AgentProcess(home, uri, options=(), log=log, stderr=stderr)
    try:
        agent.wait_for_pass("connected")
        yield agent
        agent.stop()
    finally:
        agent.close()


def home_in(folder: Path, config: str) -> AgentHome:
    """Make a folder for an agent, with this configuration."""
    folder.mkdir(exist_ok=True)
    home = AgentHome(folder)
    home.configure(config)
    return home
