"""The adaptive policy on the real kernel with real guests: all that can merge merges, then ksmd rests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import SWEEPING_LAW, AgentFactory, AgentHome, AgentProcess, Line

pytestmark = pytest.mark.real

COMMON_MIB = 16


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged pages are counted here."""
    return small_pages_libvirtd


def twin(seed: int) -> PayloadGuest:
    return PayloadGuest(name=f"twin{seed}", memory_mib=32, common_mib=COMMON_MIB, own_mib=8, seed=seed)


def is_idle(ksm: Ksm) -> bool:
    return (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (0, 10_000)


def wait_until_covered(agent: AgentProcess, guests: int) -> None:
    """Wait until so many guests run and all of their memory, which they have filled, is scanned."""

    def has_no_backlog(line: Line) -> bool:
        decision = line["decision"]
        numbers = decision["numbers"]
        backlog = [numbers[name] for name in ("settling_bytes", "new_bytes", "scanned_once_bytes", "exited_bytes")]
        return decision["rule"] == "idle" and numbers["guests"] == guests and not any(backlog)

    if not has_no_backlog(agent.step()):  # what it says of passes before this one tells nothing
        agent.wait_for("pass_completed", has_no_backlog)


def test_what_guests_have_in_common_is_merged_then_ksmd_rests_and_a_one_shot_goes_on_from_there(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, agent_home: AgentHome
) -> None:
    ksm.write(use_zero_pages=0)
    agent = start_agent(SWEEPING_LAW)
    assert is_idle(ksm), "there is no backlog yet"
    guest.together(*map(twin, (1, 2)))
    wait_until_covered(agent, 2)
    assert is_idle(ksm)
    assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB
    assert agent.lines("foreign_value_found") == []
    agent.kill()
    done = agent_home.run("retune", "--connect", agent.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Decided    idle: " in done.stdout
    assert is_idle(ksm)
    assert start_agent(SWEEPING_LAW).stop() == 0
    assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (100, 20)


def test_with_memory_to_spare_it_leaves_guests_alone(ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory) -> None:
    agent = start_agent('policy = "adaptive"\n[adaptive]\nreserve_percent = 1\n')
    guest(twin(1), settle=False)
    line = agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)
    assert line["decision"]["rule"] == "disengaged"
    assert is_idle(ksm)
    full_scans = ksm.read("full_scans")
    assert agent.step()["decision"]["rule"] == "disengaged"
    assert ksm.read("full_scans") == full_scans


def test_memory_of_other_processes_is_backlog_and_merges_without_any_guest(ksm: Ksm, start_agent: AgentFactory) -> None:
    """Two processes, no guests, that let their memory merge, with an agent that may read so."""
    ksm.write(use_zero_pages=0)
    spec = replace(twin(1), image=7)
    with MergeableProcess(replace(spec, seed=1)), MergeableProcess(replace(spec, seed=2)):
        agent = start_agent(SWEEPING_LAW)
        agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "full_scan")
        line = agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "idle")
        assert is_idle(ksm)
        assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB
        assert line["decision"]["numbers"]["other_processes_bytes"] >= 2 * spec.content_mib << 20
        assert "of other processes" in line["decision"]["reason"]


def test_where_no_guest_may_merge_there_is_no_backlog_after_one_batch(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(SWEEPING_LAW)
    guest(replace(twin(1), nosharepages=True), settle=False)
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "empty")
    line = agent.step()
    assert (line["decision"]["rule"], line["sensed"]["full_scans"]) == ("idle", ksm.read("full_scans"))
    assert line["decision"]["numbers"]["new_bytes"] == 0
    assert is_idle(ksm)
