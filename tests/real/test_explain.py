"""`virtksm explain` of a real agent with real guests, and of its file once it has ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import STEPPING_LAW, UNSETTLED_LAW, AgentFactory, AgentHome
from virtksm.policy.rules import MEANINGS

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

TWIN = PayloadGuest(name="twin", memory_mib=24, common_mib=8, own_mib=8, seed=1)


def explained(home: AgentHome, *arguments: str) -> list[dict[str, Any]]:
    done = home.run("explain", "--last", "100", "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    decisions = json.loads(done.stdout)["decisions"]
    assert isinstance(decisions, list)
    return decisions


def test_a_full_scan_is_explained_by_its_numbers_while_the_agent_runs_and_after_it(
    start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(UNSETTLED_LAW)
    guest(TWIN)
    line = agent.sweep()
    told = explained(agent.home)
    scans = [one for one in told if one["pass"]["decision"]["rule"] == "full_scan"]
    assert scans[0]["pass"]["decision"]["numbers"] == line["decision"]["numbers"]
    assert scans[0]["rule_means"] == MEANINGS["adaptive"]["full_scan"]
    thresholds = {one["then"]: one for one in scans[0]["pass"]["decision"]["thresholds"]}
    assert set(thresholds) == {"ends the full scan", "gives the full scan up"}
    assert thresholds["ends the full scan"]["present"] == line["sensed"]["full_scans"]
    assert [one["at"] for one in told] == sorted(one["at"] for one in told)

    said = agent.home.run("explain", "--last", "100").stdout
    assert "Threshold  ends the full scan when full_scans rises to" in said
    assert f"Rule       full_scan: {MEANINGS['adaptive']['full_scan']}" in said
    assert agent.stop() == 0
    afterwards = explained(agent.home, "--connect", agent.uri)
    assert afterwards[: len(told)] == told, "the file tells the same"


def test_what_would_change_ksmtuned_is_named_with_the_host_s_own_numbers(start_agent: AgentFactory) -> None:
    """Memory always counts as short here: free memory is below all of it."""
    agent = start_agent(STEPPING_LAW)
    line = agent.step()
    (decision,) = (one["pass"] for one in explained(agent.home) if one["pass"]["triggers"] == ["signal"])
    (threshold,) = decision["decision"]["thresholds"]
    assert (threshold["then"], threshold["quantity"]) == ("eases off (decay)", "free_bytes")
    assert threshold["value"] == line["sensed"]["total_bytes"]
    assert threshold["present"] == line["decision"]["numbers"]["free_bytes"]


def test_retune_says_what_would_change_its_decision_with_and_without_an_agent(
    start_agent: AgentFactory, agent_home: AgentHome
) -> None:
    agent = start_agent('policy = "adaptive"\n[adaptive]\nreserve_percent = 1\n')
    for options in ((), ("--direct",)):
        said = agent_home.run("retune", "--connect", agent.uri, *options).stdout
        assert "Threshold  engages when available memory falls to" in said


def test_whoever_may_not_ask_and_may_not_read_the_file_is_told_so(start_agent: AgentFactory) -> None:
    home = start_agent().home
    home.folder.chmod(0o755)
    done = run_as_nobody("--runtime-dir", str(home.runtime_dir), "--state-dir", str(home.state_dir), "explain")
    assert done.returncode == 1
    assert "you may not ask the agent" in done.stderr
