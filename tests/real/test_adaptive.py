"""The adaptive policy on the real kernel with real guests: all that can merge merges, then ksmd rests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import HANG_S, SWEEPING_LAW, AgentFactory, AgentHome, AgentProcess
from virtksm.policy.adaptive.full_scans import FED_SLEEPS_MS

pytestmark = pytest.mark.real

COMMON_MIB = 24


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged pages are counted here."""
    return small_pages_libvirtd


def start_twins(guest: GuestFactory, count: int) -> None:
    for seed in range(1, count + 1):
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=48, common_mib=COMMON_MIB, own_mib=16, seed=seed))


def is_idle(ksm: Ksm) -> bool:
    return (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (0, 10_000)


def wait_until_covered(agent: AgentProcess, guests: int) -> None:
    """Wait until so many guests run and all of their memory is scanned; what they fill, they have filled before.

    An "idle" alone tells less: one may fall between two guests, before the second has begun to fill.
    """

    def is_covered() -> bool:
        decision = agent.step()["decision"]
        numbers = decision["numbers"]
        backlog = [numbers[name] for name in ("settling_kib", "new_kib", "scanned_once_kib", "exited_kib")]
        return decision["rule"] == "idle" and numbers["guests"] == guests and not any(backlog)

    wait_until(is_covered, 2 * HANG_S, f"the memory of {guests} guests to be scanned")


def test_what_guests_have_in_common_is_merged_and_then_ksmd_rests(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    ksm.write(use_zero_pages=0)
    agent = start_agent(SWEEPING_LAW)
    assert is_idle(ksm), "there is no backlog yet"
    start_twins(guest, 3)
    wait_until_covered(agent, 3)
    assert is_idle(ksm)
    assert ksm.read("pages_sharing") >= 2 * COMMON_MIB * PAGES_PER_MIB
    full_scans = ksm.read("full_scans")
    start_twins_again = PayloadGuest(name="late", memory_mib=48, common_mib=COMMON_MIB, own_mib=16, seed=9)
    guest(start_twins_again)
    wait_until_covered(agent, 4)
    assert ksm.read("pages_sharing") >= 3 * COMMON_MIB * PAGES_PER_MIB
    assert ksm.read("full_scans") > full_scans
    assert agent.lines("foreign_value_found") == []
    assert agent.stop() == 0
    assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (100, 20)


def test_an_agent_killed_in_a_full_scan_leaves_ksmd_one_batch_a_minute(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, agent_home: AgentHome
) -> None:
    agent = start_agent(SWEEPING_LAW + "cpu_percent = 1\n")
    start_twins(guest, 2)
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "full_scan")
    agent.kill()
    assert ksm.read("pages_to_scan") > 0
    assert ksm.read("sleep_millisecs") in FED_SLEEPS_MS
    assert agent_home.run("restore", "--connect", agent.uri).returncode == 0
    assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (100, 20)


def test_a_one_shot_takes_the_next_step_where_the_agent_was(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, agent_home: AgentHome
) -> None:
    agent = start_agent(SWEEPING_LAW)
    start_twins(guest, 2)
    wait_until_covered(agent, 2)
    agent.kill()
    done = agent_home.run("retune", "--connect", agent.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rule idle" in done.stdout
    assert is_idle(ksm)


def test_with_memory_to_spare_it_leaves_guests_alone(ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory) -> None:
    agent = start_agent('policy = "adaptive"\n[adaptive]\nreserve_percent = 1\n')
    start_twins(guest, 2)
    line = agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 2)
    assert line["decision"]["rule"] == "disengaged"
    assert is_idle(ksm)
    full_scans = ksm.read("full_scans")
    wait_until(lambda: agent.step()["decision"]["rule"] == "disengaged", HANG_S, "another pass")
    assert ksm.read("full_scans") == full_scans


def test_memory_of_other_processes_is_backlog_and_merges_without_any_guest(ksm: Ksm, start_agent: AgentFactory) -> None:
    """Two processes, no guests, that let their memory merge, with an agent that may read so."""
    ksm.write(use_zero_pages=0)
    spec = PayloadGuest(name="other", memory_mib=48, common_mib=COMMON_MIB, own_mib=16, image=7)
    with MergeableProcess(replace(spec, seed=1)), MergeableProcess(replace(spec, seed=2)):
        agent = start_agent(SWEEPING_LAW)
        agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "full_scan")
        line = agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "idle")
        assert is_idle(ksm)
        assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB
        assert line["decision"]["numbers"]["other_processes_kib"] >= 2 * (COMMON_MIB + 16) * 1024
        assert "of other processes" in line["decision"]["reason"]


def test_where_no_guest_may_merge_there_is_no_backlog_after_one_batch(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(SWEEPING_LAW)
    guest(PayloadGuest(name="vault", memory_mib=48, common_mib=COMMON_MIB, own_mib=16, nosharepages=True))
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "empty")
    line = agent.step()
    assert (line["decision"]["rule"], line["sensed"]["full_scans"]) == ("idle", ksm.read("full_scans"))
    assert line["decision"]["numbers"]["new_kib"] == 0
    assert is_idle(ksm)
