"""The adaptive policy on the real kernel with real guests: all that can merge merges, then ksmd rests, or is off."""

from __future__ import annotations

import signal
import time

import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import DEFAULTS, IDLE, Ksm, find_ksmd, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import HANG_S, SWEEPING_LAW, UNSETTLED_LAW, AgentFactory, AgentHome, AgentProcess, Line
from virtksm.values import replace

pytestmark = pytest.mark.real

COMMON_MIB = 16


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged pages are counted here."""
    return small_pages_libvirtd


def twin(seed: int) -> PayloadGuest:
    return PayloadGuest(name=f"twin{seed}", memory_mib=32, common_mib=COMMON_MIB, own_mib=8, seed=seed)


def ksmd_ticks() -> int:
    """Read the CPU time that ksmd has used since boot, in clock ticks (10 ms)."""
    fields = (find_ksmd() / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


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
    assert ksm.settings() == IDLE, "there is no backlog yet"
    ticks = ksmd_ticks()
    guest.together(*map(twin, (1, 2)))
    wait_until_covered(agent, 2)
    assert ksmd_ticks() > ticks
    ticks = ksmd_ticks()
    time.sleep(2.0)
    assert ksmd_ticks() - ticks < 2
    assert [agent.step()["outcome"] for _ in range(2)] == ["unchanged", "unchanged"]
    assert ksm.settings() == IDLE
    assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB
    assert agent.lines("foreign_value_found") == []
    agent.kill()
    done = agent_home.run("retune", "--connect", agent.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Decided    idle: " in done.stdout
    assert ksm.settings() == IDLE
    assert start_agent(SWEEPING_LAW).stop() == 0
    assert ksm.settings() == DEFAULTS


def test_memory_of_other_processes_is_backlog_and_merges_without_any_guest(ksm: Ksm, start_agent: AgentFactory) -> None:
    """Two processes, no guests, that let their memory merge, with an agent that may read so."""
    ksm.write(use_zero_pages=0)
    spec = replace(twin(1), image=7)
    with MergeableProcess(replace(spec, seed=1)), MergeableProcess(replace(spec, seed=2)):
        agent = start_agent(UNSETTLED_LAW)
        agent.sweep()
        line = agent.step()
        assert ksm.settings() == IDLE
        assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB
        assert line["decision"]["numbers"]["other_processes_bytes"] >= 2 * spec.content_mib << 20
        assert "of other processes" in line["decision"]["reason"]


def test_where_no_guest_may_merge_there_is_no_backlog_after_one_batch(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(UNSETTLED_LAW)
    guest(replace(twin(1), nosharepages=True))
    agent.reload()
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "empty")
    line = agent.step()
    assert (line["decision"]["rule"], line["sensed"]["full_scans"]) == ("idle", ksm.read("full_scans"))
    assert line["decision"]["numbers"]["new_bytes"] == 0
    assert ksm.settings() == IDLE


def test_ksm_off_and_unmerged_under_the_agent_is_said_and_merges_again(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    def wait_off() -> None:
        line = agent.wait_for(
            "pass_completed", lambda line: (line["decision"]["rule"], line["sensed"]["guests"]) == ("off", 2)
        )
        assert "KSM is off" in line["decision"]["reason"]
        assert ksm.settings() == IDLE
        assert ksm.read("pages_sharing") == 0

    def wait_merged_again() -> None:
        def is_merged(line: Line) -> bool:
            rule, pages = line["decision"]["rule"], line["sensed"]["pages_sharing"]
            return bool(rule == "idle" and pages >= COMMON_MIB * PAGES_PER_MIB)

        agent.reload()
        wait_until(lambda: is_merged(agent.step()), HANG_S, "all to be merged")

    def warnings() -> int:
        return len([line for line in agent.lines("warning_raised") if "KSM is off" in line["warning"]])

    agent = start_agent(UNSETTLED_LAW)
    ksm.write(run=0)
    guest.together(*map(twin, (1, 2)))
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
