"""A journal that hangs: the real agent with a standard error that nobody reads, or not yet."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import STEPPING_LAW, AgentHome
from virtksm.agent.control_client import ask

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

PASSES = 60
"""More than the journal's stream takes that nobody reads."""


@dataclass
class Journal:
    """The agent's standard error, as journald has it: a stream socket, read when the test says so."""

    reading: socket.socket
    process: subprocess.Popen[bytes]

    def read_to_the_end(self) -> list[dict[str, object]]:
        """Read all that was written, once the agent has ended."""
        with self.reading.makefile(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]


@contextmanager
def agent_with_a_silent_journal(home: AgentHome, uri: str, *options: str, is_full: bool = False) -> Iterator[Journal]:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        if is_full:  # soon: of the least that the kernel has, a dozen lines
            there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        process = subprocess.Popen(
            home.command("agent", "--connect", uri, "--log-format", "json", *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=there.fileno(),
        )
        there.close()
        try:
            yield Journal(here, process)
        finally:
            process.kill()
            process.wait(HANG_S)


def ask_agent(home: AgentHome, op: str, uri: str) -> dict[str, object]:
    """Ask an agent; {} where none serves yet."""
    socket_path = home.runtime_dir / "agent" / "control.sock"
    return ask(str(socket_path), {"op": op, "uri": uri}, timeout_s=HANG_S) or {}


def uri_of(home: AgentHome, libvirtd: PrivateLibvirtd) -> str:
    wait_until(lambda: ask_agent(home, "retune", libvirtd.uri).get("ok") is True, HANG_S, "the first pass")
    return libvirtd.uri


def test_a_journal_that_hangs_costs_no_pass_no_answer_and_no_end(
    ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    ksm.write(pages_to_scan=123, sleep_millisecs=45)
    with agent_with_a_silent_journal(agent_home, libvirtd.uri, "--log-level", "debug", is_full=True) as journal:
        uri = uri_of(agent_home, libvirtd)
        before = ksm.read("pages_to_scan")
        for _ in range(PASSES):
            assert ask_agent(agent_home, "retune", uri)["ok"] is True
        assert ksm.read("pages_to_scan") == before + PASSES, "each pass was made"
        assert ask_agent(agent_home, "status", uri)["ok"] is True
        journal.process.send_signal(signal.SIGTERM)
        assert journal.process.wait(HANG_S) == 0
        assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (123, 45), "on_exit has happened"


def test_a_reload_changes_what_is_logged(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    agent_home.configure(f'log_level = "error"\n{STEPPING_LAW}')
    with agent_with_a_silent_journal(agent_home, libvirtd.uri) as journal:
        uri = uri_of(agent_home, libvirtd)
        agent_home.configure(f'log_level = "info"\n{STEPPING_LAW}')
        assert ask_agent(agent_home, "reload", uri)["ok"] is True
        assert ask_agent(agent_home, "retune", uri)["ok"] is True
        journal.process.send_signal(signal.SIGTERM)
        lines = journal.read_to_the_end()
        assert journal.process.wait(HANG_S) == 0
    assert lines[0]["event"] == "config_reloaded"
    assert "pass_completed" in [line["event"] for line in lines]


def test_what_cannot_be_removed_at_the_end_keeps_nothing_else_from_it(
    libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    agent_home.configure(f'status_group = "daemon"\n{STEPPING_LAW}')
    folder = agent_home.runtime_dir / "agent"
    with agent_with_a_silent_journal(agent_home, libvirtd.uri) as journal:
        uri_of(agent_home, libvirtd)
        assert (folder / "status.sock").exists()
        (folder / "control.sock").unlink()
        (folder / "control.sock").mkdir()
        journal.process.send_signal(signal.SIGTERM)
        assert journal.process.wait(HANG_S) == 0
    assert not (folder / "status.sock").exists()
