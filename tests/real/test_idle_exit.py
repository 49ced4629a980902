"""A daemon of libvirt's that systemd starts at a connection, and that ends when nobody needs it (`--timeout`)."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import libvirt
import pytest

from tests.lab import activation
from tests.lab.fixtures import QEMU_CACHE, GuestFactory, tiny
from tests.lab.hang import HANG_S
from tests.lab.ksm import DEFAULTS, Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import AgentFactory

pytestmark = pytest.mark.real


class ActivatedLibvirtd(PrivateLibvirtd):
    """One that is started at a connection, and ends after a second without a client; what runs always is its socket."""

    def __init__(self) -> None:
        super().__init__(cache=QEMU_CACHE)

    @property
    def serving_pid(self) -> int | None:
        """Tell the daemon's pid; None while there is none."""
        with suppress(FileNotFoundError):
            return int(self.pid_file.read_text(encoding="ascii") or 0) or None
        return None

    def wait_ready(self, timeout_s: float = HANG_S) -> None:
        super().wait_ready(timeout_s)
        libvirt.open(self.uri).close()

    def wait_unused(self) -> None:
        """Wait until the daemon has ended.

        libvirt 11.3 misses now and then (once in 50 times) that it has done all to end: once something wakes it, it
        ends within 30 s ("Make forcefull daemon shutdown").
        """
        try:
            wait_until(lambda: self.serving_pid is None, HANG_S / 10, f"{self.name} to end without clients")
        except TimeoutError:
            with socket.socket(socket.AF_UNIX) as waking:
                waking.connect(str(self.socket_path))
            wait_until(lambda: self.serving_pid is None, HANG_S, f"{self.name} to end without clients, once woken")

    def _command(self) -> list[str]:
        keeper = [sys.executable, "-I", "-S", activation.__file__, f"{self.name}.socket", str(self.socket_path)]
        return [*keeper, *super()._command(), "--timeout", "1"]


@pytest.fixture
def libvirtd() -> Iterator[ActivatedLibvirtd]:
    with ActivatedLibvirtd() as daemon:
        yield daemon


def test_an_agent_starts_an_unused_daemon_keeps_it_and_is_the_same_after_its_restart(
    ksm: Ksm, libvirtd: ActivatedLibvirtd, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    libvirtd.wait_unused()
    agent = start_agent()
    first = libvirtd.serving_pid
    with ActivatedLibvirtd() as another:
        another.wait_unused()
    assert libvirtd.serving_pid == first is not None, "one that nobody used has ended meanwhile"
    assert agent.stop() == 0
    libvirtd.wait_unused()

    agent = start_agent()
    restarted = libvirtd.serving_pid
    assert restarted not in (None, first)
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = libvirtd.serving_pid
        assert before is not None
        os.kill(before, number)
        agent.wait_for("libvirt_disconnected")
        agent.wait_for("libvirt_connected")
        assert libvirtd.serving_pid not in (None, before)
    running = guest(tiny("guest"))
    agent.wait_for("event_received", lambda line: line["trigger"] == "started")
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)
    running.domain.destroy()
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 0)
    assert agent.lines("foreign_value_found") == []
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS
