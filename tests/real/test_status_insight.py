"""`virtksm status` on real guests: what is saved, with an agent and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import PARKING_LAW, AgentFactory, AgentHome

pytestmark = pytest.mark.real


def look(home: AgentHome, *arguments: str, code: int = 0, hurried: bool = False) -> dict[str, Any]:
    done = home.run("status", "--json", *arguments, hurried=hurried)
    assert (done.returncode, done.stderr) == (code, "")
    status = json.loads(done.stdout)
    assert isinstance(status, dict)
    return status


def start_twins(guest: GuestFactory) -> None:
    for seed in (1, 2):
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=24, common_mib=16, seed=seed))


def test_what_twins_save_is_told_by_the_agent_and_after_it_without_a_trace(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, tmp_path: Path
) -> None:
    agent = start_agent(PARKING_LAW)
    start_twins(guest)
    ksm.merge_all()
    agent.step()
    status = look(agent.home)
    now = status["now"]
    assert (status["agent"], now["origin"], now["guests"], now["guests_unread"]) == (True, "local", 2, 0)
    pages = now["pages_sharing"] + (now["ksm_zero_pages"] or 0)  # counted since Linux 6.6
    assert now["saved_bytes"] == pages * now["page_bytes"] + now["freed_bytes"]
    assert now["saved_bytes"] >= 15 << 20, "one of two copies of what they have in common"
    assert now["saved_percent"] == pytest.approx(100 * now["saved_bytes"] / now["committed_bytes"], abs=0.01)
    assert now["ksm_run"] == 1
    assert now["settings"]["pages_to_scan"] == ksm.read("pages_to_scan"), "the kernel's, as it is"
    assert status["paused"] is False
    assert [(event["domain"], event["kind"]) for event in status["events"]] == [
        ("twin1", "started"),
        ("twin2", "started"),
    ]
    assert status["saved_hour"]["saved_bytes"][-1] == now["saved_bytes"]
    assert status["ksmd"]["cpu_seconds"] > 0
    told = agent.home.run("status").stdout
    for text in ("Agent      running, ", "Guests     2 running, ", "Saved      ", "Events     ", "Reason     "):
        assert text in told

    assert agent.stop() == 0
    alone = AgentHome(tmp_path)
    alone.configure(PARKING_LAW)
    status = look(alone, "--connect", agent.uri, code=1)
    now = status["now"]
    assert (status["agent"], status["libvirt"]["answers"], status["last_pass"]) == (False, True, None)
    assert (now["origin"], now["guests"]) == ("local", 2)
    assert now["saved_bytes"] >= 15 << 20
    assert now["committed_bytes"] > 32 << 20
    assert not alone.runtime_dir.exists()
    assert not alone.state_dir.exists()


def test_without_an_agent_a_libvirtd_that_hangs_costs_seconds_and_the_kernel_is_told(
    libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    libvirtd.pause()
    try:
        status = look(agent_home, "--connect", libvirtd.uri, code=1, hurried=True)
    finally:
        libvirtd.resume()
    assert status["libvirt"]["answers"] is False
    assert "no answer within 1 s" in status["libvirt"]["error"]
    assert status["now"]["ksm_run"] is not None
    assert status["now"]["guests"] is None
