"""Faults of the kernel's side: KSM switched off, and everything unmerged, under the agent."""

from __future__ import annotations

import pytest

from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import SWEEPING_LAW, AgentFactory

pytestmark = pytest.mark.real

COMMON_MIB = 24
IDLE = (0, 10_000)


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged pages are counted here."""
    return small_pages_libvirtd


@pytest.mark.parametrize("run", [0, 2])
def test_ksm_switched_off_under_the_agent_is_said_and_survived(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, run: int
) -> None:
    agent = start_agent(SWEEPING_LAW)
    ksm.write(run=run)
    for seed in (1, 2):
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=48, common_mib=COMMON_MIB, own_mib=16, seed=seed))
    line = agent.wait_for(
        "pass_completed", lambda line: (line["decision"]["rule"], line["sensed"]["guests"]) == ("off", 2)
    )
    assert "KSM is switched off" in line["decision"]["reason"]
    assert len([one for one in agent.lines("warning_raised") if "KSM is off" in one["warning"]]) == 1
    assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == IDLE
    assert ksm.read("pages_sharing") == 0
    ksm.write(run=1)
    agent.step()
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "idle")
    assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB, "the backlog of meanwhile was not forgotten"


def test_what_was_unmerged_under_the_agent_merges_again(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(SWEEPING_LAW)
    for seed in (1, 2):
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=48, common_mib=COMMON_MIB, own_mib=16, seed=seed))
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "full_scan")
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "idle")
    ksm.write(run=2)
    assert ksm.read("pages_sharing") == 0
    ksm.write(run=1)
    agent.step()
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "idle")
    assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB
    assert agent.lines("settings_refused") == []
