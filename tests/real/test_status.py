"""`virtksm status` of a real agent: it answers at once, whatever libvirt does, and says what that leaves behind."""

from __future__ import annotations

import grp
import json
import signal
import subprocess
from typing import Any

import pytest

from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import HANG_S, PARKING_LAW, STEPPING_LAW, AgentFactory, AgentHome

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

GROUP = "daemon"


def status_of(home: AgentHome) -> dict[str, Any]:
    done = home.run("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    assert isinstance(status, dict)
    return status


def status_as_nobody(home: AgentHome, *gids: int) -> subprocess.CompletedProcess[str]:
    return run_as_nobody("--runtime-dir", str(home.runtime_dir), "status", "--json", gids=gids)


def test_it_tells_the_last_pass_and_the_next_one(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    line = agent.step()
    status = status_of(agent.home)
    assert status["libvirt"] == {
        "connected": True,
        "answers": True,
        "silent_since": None,
        "silent_s": None,
        "waiting_for": None,
        "error": None,
    }
    assert status["last_pass"]["triggers"] == ["signal"]
    assert status["last_pass"]["after"] == line["after"]
    assert status["last_pass"]["after"]["pages_to_scan"] == ksm.read("pages_to_scan")
    assert 0 < status["next_pass_s"] <= 3600
    assert status["stranded"]["possible"] is False


def test_while_libvirt_hangs_it_says_so_and_what_may_be_stranded(
    libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    agent = start_agent(f"call_timeout_s = 1\nkeepalive_s = 3600\n{STEPPING_LAW}")
    libvirtd.pause()
    try:
        agent.signal(signal.SIGUSR1)
        agent.wait_for("pass_failed")
        wait_until(lambda: not status_of(agent.home)["libvirt"]["answers"], HANG_S, "the silence to be told")
        status = status_of(agent.home)
        assert status["libvirt"]["waiting_for"] == "pass"
        assert status["libvirt"]["silent_s"] > 2
        assert "no answer within 1 s" in status["libvirt"]["error"]
        assert status["stranded"]["possible"] is True
        assert status["stranded"]["worst_core_percent"] > 0
    finally:
        libvirtd.resume()
    wait_until(lambda: bool(status_of(agent.home)["libvirt"]["answers"]), HANG_S, "libvirt to answer again")
    assert status_of(agent.home)["stranded"]["possible"] is False


def test_while_libvirt_is_away_it_says_since_when_and_parked_nothing_is_stranded(
    libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    agent = start_agent(PARKING_LAW)
    libvirtd.stop()
    agent.wait_for("libvirt_unreachable")
    status = status_of(agent.home)
    assert (status["libvirt"]["connected"], status["libvirt"]["answers"]) == (False, False)
    assert status["libvirt"]["silent_since"].endswith("+00:00")
    assert status["libvirt"]["error"]
    assert status["next_pass_s"] is None
    assert (status["stranded"]["possible"], status["stranded"]["worst_core_percent"]) == (False, 0.0)


def test_the_group_of_the_configuration_may_read_it_until_a_reload_takes_that_back(start_agent: AgentFactory) -> None:
    agent = start_agent(f'status_group = "{GROUP}"\n{STEPPING_LAW}')
    home, gid = agent.home, grp.getgrnam(GROUP).gr_gid
    home.folder.chmod(0o755)
    told = status_as_nobody(home, gid)
    assert json.loads(told.stdout)["uri"] == agent.uri
    assert "you may not ask the agent" in status_as_nobody(home).stderr

    home.configure(f'status_group = "no-such-group"\n{STEPPING_LAW}')
    agent.signal(signal.SIGHUP)
    rejected = agent.wait_for("config_rejected")
    assert (rejected["file"], rejected["key"]) == (str(home.config), "status_group")
    assert status_as_nobody(home, gid).returncode == 0, "the old configuration stays in force"

    home.configure(STEPPING_LAW)
    agent.signal(signal.SIGHUP)
    agent.wait_for("config_reloaded")
    assert "you may not ask the agent" in status_as_nobody(home, gid).stderr
    assert agent.stop() == 0
    assert list((home.runtime_dir / "agent").glob("*.sock*")) == []
