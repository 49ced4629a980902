"""`virtksm status` of a real agent, and who may ask for it; while libvirt is silent: test_metrics.py."""

import grp
import json
import signal
import subprocess

import pytest

from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import STEPPING_LAW, AgentFactory, AgentHome

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

GROUP = "daemon"


def status_as_nobody(home: AgentHome, *gids: int) -> subprocess.CompletedProcess[str]:
    return run_as_nobody("--runtime-dir", str(home.runtime_dir), "status", "--json", gids=gids)


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
    wait_until(lambda: json.loads(status_as_nobody(home, gid).stdout)["agent"] is None, HANG_S, "the socket to go")
    assert agent.stop() == 0
    assert list((home.runtime_dir / "agent").glob("*.sock*")) == []
