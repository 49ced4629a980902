"""The agent's own life on the real libvirt: its start without libvirt, a libvirtd that hangs, and every way to end."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import DEFAULTS, IDLE, Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import PARKING_LAW, STEPPING_LAW, AgentFactory, AgentHome

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

ADMINISTRATORS = (123, 45)


class Manager:
    """systemd's side of the notification socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(HANG_S)
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self.heard: list[dict[str, str]] = []

    def wait_for(self, key: str, text: str = "") -> dict[str, str]:
        """Return the next datagram that has `key`, with `text` in its value; raises TimeoutError."""
        while True:
            lines = self._socket.recv(65536).decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            self.heard.append(message)
            if key in message and text in message[key]:
                return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(agent_home: AgentHome) -> Iterator[Manager]:
    listening = Manager(agent_home.folder / "notify")
    yield listening
    listening.close()


def test_it_is_ready_before_libvirt_answers_and_tells_its_manager_what_it_does(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory, manager: Manager
) -> None:
    libvirtd.stop()
    agent = start_agent(environ={**manager.environ, "WATCHDOG_USEC": "400000"}, connected=False)
    assert manager.wait_for("READY")["READY"] == "1"
    manager.wait_for("STATUS", "libvirt unreachable")
    for _ in range(2):
        assert manager.wait_for("WATCHDOG")["WATCHDOG"] == "1"
    agent.wait_for("libvirt_unreachable")
    assert ksm.settings() == DEFAULTS
    libvirtd.start()
    agent.wait_for_pass("connected")
    manager.wait_for("STATUS", "connected to")
    manager.wait_for("STATUS", "boost from 0 to 1 pages")
    told = [line["error"] for line in agent.lines("libvirt_unreachable")]
    assert [before for before, now in pairwise(told) if now == before] == [], "the same failure is told once"
    assert agent.stop() == 0
    assert manager.wait_for("STOPPING")["STOPPING"] == "1"


def test_the_administrators_settings_outlive_signals_amid_triggers_a_crash_and_a_change_between_two_agents(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    ksm.write(pages_to_scan=123, sleep_millisecs=45)
    for number in (signal.SIGTERM, signal.SIGINT):
        agent = start_agent()
        agent.step()
        for _ in range(20):
            agent.poke()
        agent.signal(signal.SIGUSR1)
        agent.signal(number)
        assert agent.wait_ended() == 0
        assert ksm.settings() == ADMINISTRATORS
        assert not Path(agent.home.control_socket).exists()

    agent = start_agent()
    pages = agent.step()["after"]["pages_to_scan"]
    agent.kill()
    agent = start_agent()
    assert ksm.read("pages_to_scan") == pages + 1, "its steps go on where the killed one's were"
    assert agent.lines("foreign_value_found") == []
    agent.kill()
    done = agent.home.run("restore", "--connect", agent.uri)
    assert (done.returncode, ksm.settings()) == (0, ADMINISTRATORS)
    assert f"pages_to_scan: {pages + 1} -> 123 pages" in done.stdout
    assert agent.home.run("restore", "--connect", agent.uri).returncode == 0

    start_agent().kill()
    ksm.write(pages_to_scan=321)
    assert start_agent(PARKING_LAW).stop() == 0
    assert ksm.settings() == (321, 45), "the new baseline"


@pytest.mark.parametrize("on_exit", ["idle", "leave"])
def test_on_exit_is_done_at_the_end_and_by_a_restore_that_is_asked_to(
    ksm: Ksm, start_agent: AgentFactory, on_exit: str
) -> None:
    agent = start_agent(f'on_exit = "{on_exit}"\n{STEPPING_LAW}')
    at_end = IDLE if on_exit == "idle" else ksm.settings()
    assert agent.stop() == 0
    assert ksm.settings() == at_end != DEFAULTS
    assert agent.home.run("restore", "--connect", agent.uri).returncode == 0
    assert ksm.settings() == DEFAULTS, "the administrator's values are kept for a restore"

    start_agent(None).kill()
    at_end = IDLE if on_exit == "idle" else ksm.settings()
    assert agent.home.run("restore", "--on-exit", "--connect", agent.uri).returncode == 0
    assert ksm.settings() == at_end != DEFAULTS


def test_while_libvirt_is_away_a_retune_says_so_and_an_agent_that_ends_says_what_it_left(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory, manager: Manager
) -> None:
    agent = start_agent(environ=manager.environ)
    libvirtd.kill()
    agent.wait_for("libvirt_disconnected")
    agent.wait_for("libvirt_unreachable")
    done = agent.home.run("retune", "--connect", agent.uri)
    assert (done.returncode, done.stdout) == (3, "")
    assert "libvirt" in done.stderr
    assert agent.stop() == 3
    assert "virtksm restore" in agent.lines("settings_left")[0]["remedy"]
    manager.wait_for("STOPPING")
    assert [message for message in manager.heard if "WATCHDOG" in message] == [], "without a watchdog none is fed"
    libvirtd.start()
    assert agent.home.run("restore", "--connect", agent.uri).returncode == 0
    assert ksm.settings() == DEFAULTS


def test_a_baseline_that_the_agents_user_has_planted_is_bounded_when_root_restores(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent(PARKING_LAW)
    agent.kill()
    planted = json.loads(agent.home.state.read_text())
    planted["ownership"]["pages_to_scan"]["baseline"] = 2**32 - 1
    planted["ownership"]["sleep_millisecs"]["baseline"] = 45
    agent.home.state.write_text(json.dumps(planted))
    os.chown(agent.home.state.parent, 65534, 65534)
    done = agent.home.run("restore", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    assert ksm.settings() == (DEFAULTS[0], 45)
    assert "Doubted    pages_to_scan" in done.stdout


def test_a_second_agent_on_the_same_folder_and_a_restore_leave_with_a_clear_message(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    first = start_agent()
    for command, message in (("agent", "an agent already runs with"), ("restore", "an agent runs, which restores")):
        done = first.home.run(command, "--connect", first.uri)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert ksm.read("pages_to_scan") == 1
    assert first.step()["after"]["pages_to_scan"] == 2, "the first one is not disturbed"
    assert first.lines("foreign_value_found") == []


def test_a_libvirtd_that_hangs_fails_the_pass_and_not_the_agent(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    agent = start_agent(f"call_timeout_s = {SLOWER}\nkeepalive_s = 3600\n{STEPPING_LAW}")
    libvirtd.pause()
    agent.signal(signal.SIGUSR1)
    failed = agent.wait_for("pass_failed")
    assert (failed["triggers"], failed["level"]) == (["signal"], "error")
    assert f"no answer within {SLOWER} s" in failed["error"]
    assert "guests go on running" in failed["remedy"]
    done = agent.home.run("retune", "--connect", agent.uri)
    assert done.returncode == 3
    # The list that hangs, or the pass that was abandoned for it and has not noticed yet: both limits end together.
    causes = (f"listing the guests: no answer within {SLOWER} s", "pass: still waiting for pass")
    assert any(cause in done.stderr for cause in causes), done.stderr
    libvirtd.resume()
    retune = ("retune", "--connect", agent.uri)
    wait_until(lambda: agent.home.run(*retune).returncode == 0, HANG_S, "the abandoned pass to end")
    assert agent.step()["after"]["pages_to_scan"] == ksm.read("pages_to_scan") > 2
    assert agent.lines("foreign_value_found") == []
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS


def test_a_driver_that_cannot_tune_is_said_once_and_no_crash_loop(start_agent: AgentFactory) -> None:
    agent = start_agent(uri="test:///default", connected=False)
    failed = agent.wait_for("pass_failed")
    assert failed["level"] == "error"
    assert "KSM needs a hypervisor driver" in failed["remedy"]
    agent.signal(signal.SIGUSR1)
    again = agent.wait_for("pass_failed")
    assert (again["triggers"], again["level"]) == (["signal"], "debug")
    assert agent.stop() == 4
