"""What a benchmark of the agent needs around it: a private libvirtd, tiny paused guests, the agent as a process.

Everything lies below the private libvirtd's folder. Its path is in the file that VIRTKSM_BENCH_ROOTS names, so that
script/bench can clean up after a benchmark that was killed. SIGTERM ends one in order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import libvirt

from bench.neighbours import Journal
from demo.guests import PayloadGuest, start_guest
from tests.lab.libvirtd import PrivateLibvirtd

REPO = Path(__file__).resolve().parents[1]
PAYLOAD = REPO / "build" / "payload.elf"
QEMU_CACHE = REPO / "build" / "libvirt-cache"
VIRTKSM = str(REPO / ".venv" / "bin" / "virtksm")
MEMORY_MIB = 16
HANG_S = 30.0

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


class AgentFailed(Exception):
    """The agent ended, or did not do in time what the benchmark waited for; carries its log's end."""


@contextmanager
def private_libvirtd(*, huge_pages: bool = True) -> Iterator[PrivateLibvirtd]:
    """Run a libvirtd of the benchmark's own, and end it and its guests also on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    daemon = PrivateLibvirtd(cache=QEMU_CACHE, huge_pages=huge_pages)
    if roots := os.environ.get("VIRTKSM_BENCH_ROOTS"):
        with Path(roots).open("a", encoding="utf-8") as file:
            file.write(f"{daemon.root}\n")
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


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


class Agent:
    """`virtksm agent` as a process, its JSON log in a file. A context manager: entered it has run its first pass.

    `through` is where it writes its log, if not to that file itself.
    """

    def __init__(self, folder: Path, uri: str, config: str, *, through: Journal | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / "log"
        self._through = through
        self.home = home_options(folder, config)
        """The options by which another virtksm uses the same configuration and folders."""
        self.poke_fifo = folder / "run" / "poke"
        self.control_socket = str(folder / "run" / "agent" / "control.sock")
        self._uri = uri
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [VIRTKSM, *self.home, "agent", "--connect", self._uri, "--log-format", "json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log if self._through is None else self._through.end.fileno(),
            )
        try:
            self.wait_until(lambda: bool(self.passes()), "its first pass")
        except AgentFailed:
            self._end()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def passes(self) -> list[Mapping[str, Any]]:
        """Return its `pass_completed` lines so far."""
        return self.lines("pass_completed")

    def lines(self, event: str) -> list[Mapping[str, Any]]:
        """Return its lines of one event so far."""
        lines = self._log.read_text(encoding="utf-8").split("\n")[:-1]
        parsed = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in parsed if line.get("event") == event]

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, checked every 50 ms; raises AgentFailed when it does not come or the agent ends."""
        assert self._process is not None
        deadline = time.monotonic() + HANG_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AgentFailed(f"waited in vain for {what}: {self._log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.05)

    def _end(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def home_options(folder: Path, config: str) -> list[str]:
    """Write a configuration into `folder` and return the options for virtksm to use it, with folders there."""
    file = folder / "virtksm.toml"
    file.write_text(config, encoding="utf-8")
    return ["--config", str(file), "--runtime-dir", str(folder / "run"), "--state-dir", str(folder / "lib")]
