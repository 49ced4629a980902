"""Faults of the kernel's side: KSM switched off, and everything unmerged, under the agent."""

from __future__ import annotations

import signal

import pytest

from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import SWEEPING_LAW, AgentFactory, Line

pytestmark = pytest.mark.real

COMMON_MIB = 16
IDLE = (0, 10_000)


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged pages are counted here."""
    return small_pages_libvirtd


def test_ksm_switched_off_and_unmerged_under_the_agent_is_said_and_merges_again(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    def wait_off() -> None:
        line = agent.wait_for(
            "pass_completed", lambda line: (line["decision"]["rule"], line["sensed"]["guests"]) == ("off", 2)
        )
        assert "KSM is off" in line["decision"]["reason"]
        assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == IDLE
        assert ksm.read("pages_sharing") == 0

    def wait_merged_again() -> None:
        def is_merged(line: Line) -> bool:
            rule, pages = line["decision"]["rule"], line["sensed"]["pages_sharing"]
            return bool(rule == "idle" and pages >= COMMON_MIB * PAGES_PER_MIB)

        agent.signal(signal.SIGUSR1)
        agent.wait_for("pass_completed", is_merged)

    def warnings() -> int:
        return len([line for line in agent.lines("warning_raised") if "KSM is off" in line["warning"]])

    agent = start_agent(SWEEPING_LAW)
    ksm.write(run=0)
    twins = (
        PayloadGuest(name=f"twin{seed}", memory_mib=32, common_mib=COMMON_MIB, own_mib=8, seed=seed) for seed in (1, 2)
    )
    guest.together(*twins)
    wait_off()
    assert warnings() == 1
    ksm.write(run=1)
    wait_merged_again()  # the backlog of meanwhile was not forgotten
    ksm.write(run=2)
    assert ksm.read("pages_sharing") == 0
    ksm.write(run=1)
    wait_merged_again()  # unmerged, and no pass in between
    ksm.write(run=2)
    agent.signal(signal.SIGUSR1)
    wait_off()
    assert warnings() == 2
    assert agent.lines("settings_refused") == []
