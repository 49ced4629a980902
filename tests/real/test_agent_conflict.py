"""Other writers and refusals on the real kernel: who set what is told apart, said once, and never fought for ever."""

import subprocess
from pathlib import Path

import pytest

from tests.lab.ksm import Ksm
from tests.real.agent_process import AgentFactory

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]


def virsh_sets(uri: str, pages: int) -> None:
    """Set pages_to_scan as an administrator does."""
    command = ["virsh", "-c", uri, "node-memory-tune", "--shm-pages-to-scan", str(pages)]
    subprocess.run(command, check=True, capture_output=True)


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
    assert ksm.read("sleep_millisecs") == 20, "given back: the advisor scans at it"
    ksm.write(advisor_mode="none")
    line = agent.step()
    assert line["outcome"] == "applied"
    assert ksm.read("pages_to_scan") == line["decision"]["target"]["pages_to_scan"]


def test_it_needs_no_writable_sys(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent(prefix=["unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro /sys && exec "$@"', "sh"])
    mounts = Path(f"/proc/{agent.pid}/mountinfo").read_text(encoding="utf-8")
    assert any(line.split()[4:6][0] == "/sys" and line.split()[5].startswith("ro") for line in mounts.splitlines())
    agent.step()
    assert ksm.read("pages_to_scan") == 2
    assert agent.stop() == 0
    assert ksm.read("pages_to_scan") == 100
