"""`virtksm explain` of a real agent with real guests, and of its file once it has ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.real.agent_process import UNSETTLED_LAW, AgentFactory, AgentHome
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
