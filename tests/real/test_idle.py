"""Idle and switched off, on the real kernel: ksmd uses no CPU, and the agent says when KSM does nothing."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm, wait_until
from tests.real.agent_process import HANG_S, PARKING_LAW, AgentFactory

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

RESTING_S = 2.0


def ksmd_ticks() -> int:
    """Read the CPU time that ksmd has used since boot, in clock ticks (10 ms)."""
    pid = next(process.pid for process in psutil.process_iter() if process.name() == "ksmd")
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_idle_ksmd_uses_no_cpu_keeps_what_is_merged_and_is_not_written_to_again(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    twins = (PayloadGuest(name=f"twin{seed}", memory_mib=32, common_mib=8, own_mib=8, seed=seed) for seed in (1, 2))
    guest.together(*twins)
    ksm.merge_all()
    merged = ksm.read("pages_sharing")
    ksm.write(pages_to_scan=2000, sleep_millisecs=0)
    scanning = ksmd_ticks()
    wait_until(lambda: ksmd_ticks() > scanning, HANG_S, "ksmd to work, or this test measures nothing")

    agent = start_agent(PARKING_LAW)
    assert (ksm.read("run"), ksm.read("pages_to_scan")) == (1, 0)
    assert ksm.read("sleep_millisecs") >= 1000
    idle = ksmd_ticks()
    time.sleep(RESTING_S)
    assert ksmd_ticks() - idle < 2
    assert agent.lines("pass_completed")[0]["decision"]["idle"] is True
    assert ksm.read("pages_sharing") >= merged - 256, "guests write to a few of their pages"
    assert [agent.step()["outcome"] for _ in range(2)] == ["unchanged", "unchanged"]


def test_ksm_switched_off_is_said_once_with_its_remedy_and_again_when_it_recurs(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    ksm.write(run=0)
    agent = start_agent()
    agent.step()
    agent.step()
    said = [line["warning"] for line in agent.lines("warning_raised")]
    assert len(said) == 1
    assert "KSM is off on this host (run=0)" in said[0]
    assert "(virtksm doctor)" in said[0]
    ksm.write(run=1)
    agent.step()
    ksm.write(run=0)
    agent.step()
    assert len(agent.lines("warning_raised")) == 2
    assert ksm.read("run") == 0, "the switch is the administrator's"
