"""Other writers and refusals on the real kernel: who set what is told apart, said once, and never fought for ever."""

from __future__ import annotations

import subprocess
from pathlib import Path

import libvirt
import pytest

from demo.guests import PayloadGuest
from tests.fakes import TargetPolicy
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm, wait_until
from tests.real.agent_process import STEPPING_LAW, AgentFactory, AgentHome
from virtksm.errors import Cause
from virtksm.host.clock import boottime_s
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.host.local_facts import ProcFacts
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import Outcome
from virtksm.model.snapshot import Settings
from virtksm.paths import RuntimePaths
from virtksm.store.state import StateFile
from virtksm.store.switch import SwitchFile
from virtksm.tuning.cycle import Cycle, Tenure

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

SIGNAL = Triggers(kinds=frozenset({Trigger.SIGNAL}))
BUSY = Settings(pages_to_scan=400, sleep_millisecs=10)


def virsh_sets(uri: str, pages: int) -> None:
    """Set pages_to_scan as an administrator does."""
    command = ["virsh", "-c", uri, "node-memory-tune", "--shm-pages-to-scan", str(pages)]
    subprocess.run(command, check=True, capture_output=True)


def cycle_over(
    connection: libvirt.virConnect,
    home: AgentHome,
    target: Settings,
    *,
    local: bool = True,
    tenure: Tenure | None = None,
) -> Cycle[int]:
    """Put a pass together whose decision the test has made."""
    return Cycle(
        hypervisor=LibvirtHost(connection),
        local=ProcFacts(boottime_s) if local else None,
        policy=TargetPolicy(target=target),
        store=StateFile(RuntimePaths(str(home.runtime_dir)), "local"),
        switch=SwitchFile(str(home.switch)),
        clock=boottime_s,
        on_conflict="reassert",
        tenure=tenure or Tenure(),
    )


def test_another_writer_is_told_once_a_change_and_overruled(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    for ours, foreign in ((1, 777), (2, 888)):
        virsh_sets(agent.uri, foreign)
        line = agent.step()
        assert line["outcome"] == "applied"
        told = agent.lines("foreign_value_found")[-1]
        assert (told["parameter"], told["ours"], told["found"]) == ("pages_to_scan", ours, foreign)
        assert ksm.read("pages_to_scan") == ours + 1
    agent.step()
    assert len(agent.lines("foreign_value_found")) == 2
    assert agent.lines("conflict_yielded") == []


def test_after_three_reassertions_it_yields_with_one_warning_until_a_retune_takes_it_back(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    for foreign in (771, 772, 773, 774):  # once more than it is set again
        virsh_sets(agent.uri, foreign)
        agent.step()
    for _ in range(2):
        assert agent.step()["outcome"] == "yielded"
    assert ksm.read("pages_to_scan") == 774
    assert len(agent.lines("conflict_yielded")) == 1
    assert [line["found"] for line in agent.lines("foreign_value_found")] == [771, 772, 773, 774]
    done = agent.home.run("retune", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    line = agent.wait_for_pass("retune")
    assert line["outcome"] == "applied"
    assert ksm.read("pages_to_scan") == line["decision"]["target"]["pages_to_scan"]
    assert len(agent.lines("conflict_ended")) == 1
    assert agent.step()["outcome"] == "applied"


def test_yield_mode_writes_nothing_until_the_value_is_ours_again(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent(f'on_conflict = "yield"\n{STEPPING_LAW}')
    virsh_sets(agent.uri, 777)
    assert [agent.step()["outcome"] for _ in range(2)] == ["yielded", "yielded"]
    assert ksm.read("pages_to_scan") == 777
    assert len(agent.lines("foreign_value_found")) == len(agent.lines("conflict_yielded")) == 1
    virsh_sets(agent.uri, 1)
    line = agent.step()
    assert line["outcome"] == "applied"
    assert ksm.read("pages_to_scan") == line["decision"]["target"]["pages_to_scan"]
    assert len(agent.lines("conflict_ended")) == 1


def test_what_another_has_set_is_left_to_it_at_the_end(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    virsh_sets(agent.uri, 777)
    assert agent.stop() == 0
    assert agent.lines("settings_restored")[0]["left"] == ["pages_to_scan"]
    assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (777, 20)


def test_with_the_kernels_advisor_on_it_says_so_once_and_works_again_when_it_is_off(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    ksm.write(advisor_mode="scan-time")
    assert agent.step()["outcome"] == "refused"
    refused = agent.lines("settings_refused")[0]
    assert (refused["parameter"], refused["cause"]) == ("pages_to_scan", "advisor_on")
    assert "advisor_mode" in refused["remedy"]
    assert [agent.step()["outcome"] for _ in range(3)] == ["held"] * 3
    assert len(agent.lines("settings_refused")) == 1, "nothing is tried again while the advisor is on"
    ksm.write(advisor_mode="none")
    line = agent.step()
    assert line["outcome"] == "applied"
    assert ksm.read("pages_to_scan") == line["decision"]["target"]["pages_to_scan"]


def test_merge_across_nodes_is_refused_while_pages_are_shared_and_the_rest_arrives(
    ksm: Ksm, guest: GuestFactory, libvirt_conn: libvirt.virConnect, agent_home: AgentHome
) -> None:
    guest.together(*(PayloadGuest(name=f"twin{seed}", memory_mib=16, common_mib=8, seed=seed) for seed in (1, 2)))
    ksm.merge_all()
    assert ksm.read("pages_shared") >= 2048
    found = ksm.read("merge_across_nodes")
    wanted = Settings(pages_to_scan=400, sleep_millisecs=10_000, merge_across_nodes=1 - found)
    tenure = Tenure()
    cycle = cycle_over(libvirt_conn, agent_home, wanted, tenure=tenure)

    report = cycle.run(SIGNAL)
    assert [(error.parameter, error.cause) for error in report.refusals] == [("merge_across_nodes", Cause.PAGES_SHARED)]
    assert "echo 2 > /sys/kernel/mm/ksm/run" in report.refusals[0].remedy
    assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (400, 10_000)
    assert ksm.read("merge_across_nodes") == found
    assert cycle.run(SIGNAL).outcome is Outcome.HELD

    ksm.write(run=2)
    wait_until(lambda: ksm.read("pages_shared") == 0, 30.0, "all pages to be unmerged")
    assert cycle.run(SIGNAL).outcome is Outcome.APPLIED
    assert ksm.read("merge_across_nodes") == 1 - found
    assert cycle.restore().refusals == ()
    assert ksm.read("merge_across_nodes") == found


@pytest.mark.parametrize("local", [True, False])
def test_a_value_out_of_range_is_refused_with_its_cause(
    ksm: Ksm, libvirt_conn: libvirt.virConnect, agent_home: AgentHome, local: bool
) -> None:
    report = cycle_over(libvirt_conn, agent_home, Settings(pages_to_scan=2**32, sleep_millisecs=10), local=local).run(
        SIGNAL
    )
    assert [error.cause for error in report.refusals] == [Cause.OUT_OF_RANGE]
    assert ksm.read("pages_to_scan") == 100


def test_a_merge_across_nodes_that_no_kernel_takes_is_out_of_range(
    ksm: Ksm, libvirt_conn: libvirt.virConnect, agent_home: AgentHome
) -> None:
    wanted = Settings(pages_to_scan=400, sleep_millisecs=10, merge_across_nodes=2)
    report = cycle_over(libvirt_conn, agent_home, wanted).run(SIGNAL)
    assert [(error.parameter, error.cause) for error in report.refusals] == [("merge_across_nodes", Cause.OUT_OF_RANGE)]
    assert ksm.read("pages_to_scan") == 400


def test_a_read_only_connection_is_refused_with_its_cause(
    ksm: Ksm, agent_home: AgentHome, libvirt_conn: libvirt.virConnect
) -> None:
    connection = libvirt.openReadOnly(libvirt_conn.getURI())
    try:
        report = cycle_over(connection, agent_home, BUSY).run(SIGNAL)
    finally:
        connection.close()
    assert [error.cause for error in report.refusals] == [Cause.READ_ONLY]
    assert "read-write" in report.refusals[0].remedy
    assert (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (100, 20)


def test_it_needs_no_writable_sys(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent(prefix=["unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro /sys && exec "$@"', "sh"])
    mounts = Path(f"/proc/{agent.pid}/mountinfo").read_text(encoding="utf-8")
    assert any(line.split()[4:6][0] == "/sys" and line.split()[5].startswith("ro") for line in mounts.splitlines())
    agent.step()
    assert ksm.read("pages_to_scan") == 2
    assert agent.stop() == 0
    assert ksm.read("pages_to_scan") == 100
