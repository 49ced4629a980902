"""Other writers and refusals on the real kernel: who set what is told apart, said once, and never fought for ever."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import libvirt
import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PayloadGuest
from tests.fakes import TargetPolicy
from tests.lab.ksm import DEFAULTS, Ksm, wait_until
from tests.real.agent_process import HANG_S, AgentFactory, AgentHome
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


def virsh_sets(uri: str, pages: int) -> None:
    """Set pages_to_scan as an administrator does."""
    command = ["virsh", "-c", uri, "node-memory-tune", "--shm-pages-to-scan", str(pages)]
    subprocess.run(command, check=True, capture_output=True)


def cycle_over(
    connection: libvirt.virConnect, home: AgentHome, tenure: Tenure | None = None, **target: int
) -> Cycle[int]:
    """Put a pass together whose decision the test has made."""
    wanted = {"pages_to_scan": 400, "sleep_millisecs": 10, **target}
    return Cycle(
        hypervisor=LibvirtHost(connection),
        local=ProcFacts(boottime_s),
        policy=TargetPolicy(target=Settings(**wanted)),
        store=StateFile(RuntimePaths(str(home.runtime_dir)), "local"),
        switch=SwitchFile(str(home.switch)),
        clock=boottime_s,
        on_conflict="reassert",
        tenure=tenure or Tenure(),
    )


def test_another_writer_is_told_once_a_change_and_overruled_three_times_until_a_retune_takes_it_back(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    for ours, foreign in ((1, 771), (2, 772), (3, 773)):
        virsh_sets(agent.uri, foreign)
        assert agent.step()["outcome"] == "applied"
        told = agent.lines("foreign_value_found")[-1]
        assert (told["parameter"], told["ours"], told["found"]) == ("pages_to_scan", ours, foreign)
        assert ksm.read("pages_to_scan") == ours + 1
    virsh_sets(agent.uri, 774)
    assert [agent.step()["outcome"] for _ in range(3)] == ["yielded"] * 3
    assert ksm.read("pages_to_scan") == 774
    assert len(agent.lines("conflict_yielded")) == 1
    assert len(agent.lines("foreign_value_found")) == 4
    done = agent.home.run("retune", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    line = agent.wait_for_pass("retune")
    assert ksm.read("pages_to_scan") == line["decision"]["target"]["pages_to_scan"]
    assert len(agent.lines("conflict_ended")) == 1
    virsh_sets(agent.uri, 777)
    assert agent.stop() == 0
    assert agent.lines("settings_restored")[0]["left"] == ["pages_to_scan"]
    assert ksm.settings() == (777, 20)


@pytest.mark.needs("advisor_mode")
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
    ksm: Ksm, libvirt_conn: libvirt.virConnect, agent_home: AgentHome
) -> None:
    found = ksm.read("merge_across_nodes")
    cycle = cycle_over(libvirt_conn, agent_home, Tenure(), sleep_millisecs=10_000, merge_across_nodes=1 - found)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(MergeableProcess(PayloadGuest(name="", memory_mib=16, common_mib=8)))
        ksm.merge_all()
        report = cycle.run(SIGNAL)
        assert [(one.parameter, one.cause) for one in report.refusals] == [("merge_across_nodes", Cause.PAGES_SHARED)]
        assert "echo 2 > /sys/kernel/mm/ksm/run" in report.refusals[0].remedy
        assert (ksm.settings(), ksm.read("merge_across_nodes")) == ((400, 10_000), found)
        assert cycle.run(SIGNAL).outcome is Outcome.HELD
        ksm.write(run=2)
        wait_until(lambda: ksm.read("pages_shared") == 0, HANG_S, "all pages to be unmerged")
        assert cycle.run(SIGNAL).outcome is Outcome.APPLIED
        assert ksm.read("merge_across_nodes") == 1 - found
        assert cycle.restore().refusals == ()
        assert ksm.read("merge_across_nodes") == found


def test_a_value_out_of_range_and_a_read_only_connection_are_refused_with_their_cause(
    ksm: Ksm, agent_home: AgentHome, libvirt_conn: libvirt.virConnect
) -> None:
    connection = libvirt.openReadOnly(libvirt_conn.getURI())
    try:
        (refused,) = cycle_over(connection, agent_home).run(SIGNAL).refusals
    finally:
        connection.close()
    assert (refused.cause, "read-write" in refused.remedy) == (Cause.READ_ONLY, True)
    (refused,) = cycle_over(libvirt_conn, agent_home, pages_to_scan=2**32).run(SIGNAL).refusals
    assert refused.cause is Cause.OUT_OF_RANGE
    assert ksm.settings() == DEFAULTS
    (refused,) = cycle_over(libvirt_conn, agent_home, merge_across_nodes=2).run(SIGNAL).refusals
    assert (refused.parameter, refused.cause) == ("merge_across_nodes", Cause.OUT_OF_RANGE)
    assert ksm.read("pages_to_scan") == 400


def test_it_needs_no_writable_sys(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent(prefix=["unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro /sys && exec "$@"', "sh"])
    mounts = Path(f"/proc/{agent.pid}/mountinfo").read_text(encoding="utf-8")
    assert any(line.split()[4:6][0] == "/sys" and line.split()[5].startswith("ro") for line in mounts.splitlines())
    agent.step()
    assert ksm.read("pages_to_scan") == 2
    assert agent.stop() == 0
    assert ksm.read("pages_to_scan") == 100
