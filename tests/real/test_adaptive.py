"""The adaptive policy on the real kernel with real guests: all that can merge merges, then ksmd rests, or is off."""

import signal
import time
from typing import cast

import psutil
import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.ksm import DEFAULTS, IDLE, Ksm, find_ksmd, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import QEMUS_OWN_BYTES, SWEEPING_LAW, UNSETTLED_LAW, AgentFactory, AgentHome, Line
from virtksm.values import replace

pytestmark = pytest.mark.real

COMMON_MIB = 16
MIB = 1 << 20


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


def test_what_guests_have_in_common_is_merged_then_ksmd_rests_and_a_one_shot_goes_on_from_there(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, agent_home: AgentHome
) -> None:
    ksm.write(use_zero_pages=0)
    agent = start_agent(SWEEPING_LAW)
    assert ksm.settings() == IDLE, "there is no backlog yet"
    ticks = ksmd_ticks()
    guest.together(*map(twin, (1, 2)))
    assert agent_home.told("wait", "--settled", "--timeout", f"{HANG_S:.0f}")["result"] == "settled"
    assert ksmd_ticks() > ticks

    def rests() -> bool:
        before = ksmd_ticks()
        time.sleep(2.0)
        return ksmd_ticks() - before < 2

    def is_left_idle() -> bool:
        return [agent.step()["outcome"] for _ in range(2)] == ["unchanged"] * 2 and ksm.settings() == IDLE

    wait_until(rests, HANG_S, "ksmd to rest")
    wait_until(is_left_idle, HANG_S, "passes that leave ksmd idle")
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

        def both_are_known() -> bool:  # up to Linux 6.12 one is only once ksmd has come by
            return int(agent.step()["decision"]["numbers"]["other_processes_bytes"]) >= 2 * spec.content_mib << 20

        wait_until(both_are_known, HANG_S, "both processes' memory to be known")
        wait_until(lambda: agent.step()["decision"]["rule"] == "idle", HANG_S, "it to be scanned")
        assert "of other processes" in agent.step()["decision"]["reason"]
        assert ksm.settings() == IDLE
        assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB


def test_where_no_guest_may_merge_there_is_no_backlog_after_one_batch(
    ksm: Ksm, libvirtd: PrivateLibvirtd, guest: GuestFactory, agent_home: AgentHome
) -> None:
    """A one-shot reads no XML, which would tell."""

    def retune() -> Line:
        told = agent_home.told("retune", "--direct", "--connect", libvirtd.uri)
        return cast("Line", told["decision"])

    agent_home.configure(UNSETTLED_LAW)
    guest(replace(twin(1), nosharepages=True))
    wait_until(lambda: retune()["rule"] == "empty", HANG_S, "the batch to be over")
    full_scans = ksm.read("full_scans")
    decision = retune()
    assert decision["rule"] == "idle"
    assert decision["numbers"]["new_bytes"] < QEMUS_OWN_BYTES
    assert (ksm.settings(), ksm.read("full_scans")) == (IDLE, full_scans)


def test_what_cannot_merge_grows_beside_others_and_no_full_scan_begins(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, agent_home: AgentHome
) -> None:
    """Their memory settles for longer than it takes to read their XML, after the pass that first sees them."""

    def resident_mib() -> float:
        return sum(psutil.Process(one.pid).memory_info().rss for one in running) / MIB

    agent = start_agent(UNSETTLED_LAW)
    guest.together(*map(twin, (1, 2)))
    agent.sweep()
    agent_home.configure(SWEEPING_LAW.replace("settle_s = 1", "settle_s = 600"))
    scanned_bytes = agent.reload()["decision"]["numbers"]["memory_bytes"]
    full_scans = ksm.read("full_scans")
    grows = PayloadGuest(name="", memory_mib=128, own_mib=8, grow_mib_per_min=600)
    running = guest.together(
        replace(grows, name="shared", is_shared=True), replace(grows, name="apart", nosharepages=True)
    )
    has_grown_mib = resident_mib() + 32

    def settling_bytes() -> int:
        return int(agent.step()["decision"]["numbers"]["settling_bytes"])

    wait_until(lambda: settling_bytes() < QEMUS_OWN_BYTES, HANG_S, "their XML to be read")
    wait_until(lambda: resident_mib() > has_grown_mib, HANG_S, "them to grow")
    line = agent.step()
    numbers = line["decision"]["numbers"]
    assert (line["decision"]["rule"], numbers["guests"]) == ("idle", 4)
    backlog = [numbers[name] for name in ("settling_bytes", "new_bytes", "exited_bytes")]
    assert sum(backlog) < QEMUS_OWN_BYTES, backlog
    assert numbers["memory_bytes"] < scanned_bytes + 32 * MIB
    assert ksm.read("full_scans") == full_scans
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
