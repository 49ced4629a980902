"""`virtksm status` of a real agent, and who may ask for it; while libvirt is silent: test_metrics.py."""

from __future__ import annotations

import grp
import json
import signal
import subprocess
from typing import Any

import pytest

from tests.lab.ksm import Ksm
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import STEPPING_LAW, AgentFactory, AgentHome

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


def test_the_group_of_the_configuration_may_read_it_until_a_reload_takes_that_back(start_agent: AgentFactory) -> None:
    agent = start_agent(f'status_group = "{GROUP}"\n{STEPPING_LAW}')
    home, gid = agent.home, grp.getgrnam(GROUP).gr_gid
    home.folder.chmod(0o755)
    told = status_as_nobody(home, gid)
    assert json.loads(told.stdout)["uri"] == agent.uri
    assert json.loads(status_as_nobody(home).stdout)["agent"] is None

    home.configure(f'status_group = "no-such-group"\n{STEPPING_LAW}')
    agent.signal(signal.SIGHUP)
    rejected = agent.wait_for("config_rejected")
    assert (rejected["file"], rejected["key"]) == (str(home.config), "status_group")
    assert status_as_nobody(home, gid).returncode == 0, "the old configuration stays in force"

    home.configure(STEPPING_LAW)
    agent.signal(signal.SIGHUP)
    agent.wait_for("config_reloaded")
    assert json.loads(status_as_nobody(home, gid).stdout)["agent"] is None
    assert agent.stop() == 0
    assert list((home.runtime_dir / "agent").glob("*.sock*")) == []
