"""The agent's own life on the real libvirt: its start without libvirt, libvirt's death, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import HANG_S, PARKING_LAW, STEPPING_LAW, AgentFactory, AgentHome

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

BASELINE = (100, 20)


def settings(ksm: Ksm) -> tuple[int, int]:
    return ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")


def tiny(name: str) -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=16, own_mib=1)


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
            if text in message.get(key, "\0"):
                return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(agent_home: AgentHome) -> Iterator[Manager]:
    listening = Manager(agent_home.folder / "notify")
    yield listening
    listening.close()


def test_after_a_crash_or_a_restart_of_libvirtd_it_connects_lists_and_runs_a_pass_again(
    ksm: Ksm, libvirtd: PrivateLibvirtd, guest: GuestFactory, start_agent: AgentFactory
) -> None:
    stays, goes = guest(tiny("stays"), settle=False), guest(tiny("goes"), settle=False)
    agent = start_agent()
    assert agent.lines("pass_completed")[0]["sensed"]["guests"] == 2
    libvirtd.kill()
    agent.wait_for("libvirt_disconnected")
    goes.crash()
    libvirtd.start()
    agent.wait_for("libvirt_connected")
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)

    with pytest.raises(libvirt.libvirtError):
        stays.domain.info()  # so that the factory notices that its connection has died with the daemon
    guest(tiny("new"), settle=False)
    agent.wait_for("event_received", lambda line: (line["guest"], line["trigger"]) == ("new", "started"))
    line = agent.wait_for_pass()
    assert (line["sensed"]["guests"], line["sensed"]["guests_unread"]) == (2, 0)
    assert ksm.read("pages_to_scan") == line["after"]["pages_to_scan"] == len(agent.lines("pass_completed")) >= 3
    libvirtd.restart()
    agent.wait_for("libvirt_disconnected")
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 2)
    assert agent.lines("foreign_value_found") == []


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
    assert settings(ksm) == BASELINE
    libvirtd.start()
    agent.wait_for_pass("connected")
    manager.wait_for("STATUS", "connected to")
    manager.wait_for("STATUS", "boost from 0 to 1 pages")
    assert len(agent.lines("libvirt_unreachable")) == 1, "the same failure is told once, however often it tries"
    assert agent.stop() == 0
    assert manager.wait_for("STOPPING")["STOPPING"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_restores_what_it_found_on_exit_also_amid_triggers(
    ksm: Ksm, start_agent: AgentFactory, number: signal.Signals
) -> None:
    ksm.write(pages_to_scan=123, sleep_millisecs=45)
    agent = start_agent()
    agent.step()
    assert settings(ksm)[0] == 2
    for _ in range(20):
        agent.poke()
    agent.signal(signal.SIGUSR1)
    agent.signal(number)
    assert agent.wait_ended() == 0
    assert settings(ksm) == (123, 45)
    assert not (agent.home.runtime_dir / "agent" / "control.sock").exists()


@pytest.mark.parametrize("on_exit", ["idle", "leave"])
def test_on_exit_is_done_at_the_end_and_by_a_restore_that_is_asked_to(
    ksm: Ksm, start_agent: AgentFactory, on_exit: str
) -> None:
    def expected() -> tuple[int, int]:
        return (0, 10_000) if on_exit == "idle" else settings(ksm)

    agent = start_agent(f'on_exit = "{on_exit}"\n{STEPPING_LAW}')
    at_end = expected()
    assert agent.stop() == 0
    assert settings(ksm) == at_end != BASELINE
    assert agent.home.run("restore", "--connect", agent.uri).returncode == 0
    assert settings(ksm) == BASELINE, "the administrator's values are kept for a restore"

    start_agent(None).kill()
    at_end = expected()
    assert agent.home.run("restore", "--on-exit", "--connect", agent.uri).returncode == 0
    assert settings(ksm) == at_end != BASELINE


def test_while_libvirt_is_away_a_retune_says_so_and_an_agent_that_ends_says_what_it_left(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory, manager: Manager
) -> None:
    agent = start_agent(environ=manager.environ)
    libvirtd.kill()
    agent.wait_for("libvirt_disconnected")
    agent.wait_for("libvirt_unreachable")
    done = agent.home.run("retune", "--connect", agent.uri)
    assert done.returncode == 3
    assert "libvirt" in done.stderr
    assert done.stdout == ""
    assert agent.stop() == 3
    assert "virtksm restore" in agent.lines("settings_left")[0]["remedy"]
    manager.wait_for("STOPPING")
    assert [message for message in manager.heard if "WATCHDOG" in message] == [], "without a watchdog none is fed"
    libvirtd.start()
    assert agent.home.run("restore", "--connect", agent.uri).returncode == 0
    assert settings(ksm) == BASELINE


def test_restore_gives_back_what_a_killed_agent_left(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    agent.step()
    agent.kill()
    assert settings(ksm)[0] == 2
    done = agent.home.run("restore", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    assert settings(ksm) == BASELINE
    assert "pages_to_scan: 2 -> 100 pages" in done.stdout
    again = agent.home.run("restore", "--connect", agent.uri)
    assert (again.returncode, settings(ksm)) == (0, BASELINE)


def test_a_baseline_that_the_agents_user_has_planted_is_bounded_when_root_restores(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent(PARKING_LAW)
    agent.kill()
    planted = json.loads(agent.home.state.read_text())
    planted["parameters"]["pages_to_scan"]["baseline"] = 2**32 - 1
    planted["parameters"]["sleep_millisecs"]["baseline"] = 45
    agent.home.state.write_text(json.dumps(planted))
    os.chown(agent.home.state.parent, 65534, 65534)
    done = agent.home.run("restore", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    assert settings(ksm) == (BASELINE[0], 45)
    assert "Doubted    pages_to_scan" in done.stdout


def test_after_a_crash_a_new_agent_keeps_the_administrators_baseline(ksm: Ksm, start_agent: AgentFactory) -> None:
    ksm.write(pages_to_scan=123, sleep_millisecs=45)
    killed = start_agent()
    killed.step()
    killed.kill()
    agent = start_agent()
    assert ksm.read("pages_to_scan") == 3, "its steps go on where the killed one's were"
    assert agent.lines("foreign_value_found") == []
    assert agent.stop() == 0
    assert settings(ksm) == (123, 45)


def test_what_was_changed_between_two_agents_is_the_new_baseline(ksm: Ksm, start_agent: AgentFactory) -> None:
    start_agent().kill()
    ksm.write(pages_to_scan=321)
    agent = start_agent(PARKING_LAW)
    assert agent.stop() == 0
    assert settings(ksm) == (321, 20)


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


def test_a_poke_fifo_that_is_none_costs_the_pokes_and_nothing_else(ksm: Ksm, start_agent: AgentFactory) -> None:
    start_agent.home.runtime_dir.mkdir()
    start_agent.home.poke_fifo.write_text("a file\n")
    agent = start_agent()
    assert "not a FIFO" in agent.lines("poke_unavailable")[0]["error"]
    agent.step()
    assert ksm.read("pages_to_scan") == 2


def test_a_runtime_folder_that_cannot_be_made_is_one_error(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    agent_home.runtime_dir.write_text("a file\n")
    done = agent_home.run("agent", "--connect", libvirtd.uri)
    assert done.returncode == 1
    line, hint = done.stderr.splitlines()
    assert line == f"virtksm: error: {agent_home.runtime_dir} is not a folder"
    assert hint == f"hint: ls -ld {agent_home.runtime_dir}"


def test_a_libvirtd_that_hangs_fails_the_pass_and_not_the_agent(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    agent = start_agent(f"call_timeout_s = 1\nkeepalive_s = 3600\n{STEPPING_LAW}")
    libvirtd.pause()
    agent.signal(signal.SIGUSR1)
    failed = agent.wait_for("pass_failed")
    assert (failed["triggers"], failed["level"]) == (["signal"], "error")
    assert "no answer within 1 s" in failed["error"]
    assert "guests go on running" in failed["remedy"]
    done = agent.home.run("retune", "--connect", agent.uri)
    assert done.returncode == 3
    assert "still waiting for pass" in done.stderr
    libvirtd.resume()
    retune = ("retune", "--connect", agent.uri)
    wait_until(lambda: agent.home.run(*retune).returncode == 0, HANG_S, "the abandoned pass to end")
    assert agent.step()["after"]["pages_to_scan"] == ksm.read("pages_to_scan") > 2
    assert agent.lines("foreign_value_found") == []
    assert agent.stop() == 0
    assert settings(ksm) == BASELINE


def test_a_libvirtd_that_hangs_at_rest_is_noticed_by_keepalive_and_found_again(
    libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    agent = start_agent(f"keepalive_s = 1\n{STEPPING_LAW}")
    libvirtd.pause()
    try:
        assert agent.wait_for("libvirt_disconnected")["reason"] == "keepalive timeout"
    finally:
        libvirtd.resume()
    agent.wait_for("libvirt_connected")
    agent.wait_for_pass("connected")


def test_a_driver_that_cannot_tune_is_said_once_and_no_crash_loop(start_agent: AgentFactory) -> None:
    agent = start_agent(uri="test:///default", connected=False)
    failed = agent.wait_for("pass_failed")
    assert failed["level"] == "error"
    assert "KSM needs a hypervisor driver" in failed["remedy"]
    agent.signal(signal.SIGUSR1)
    again = agent.wait_for("pass_failed")
    assert (again["triggers"], again["level"]) == (["signal"], "debug")
    assert agent.stop() == 4
