"""`virtksm wait` of real guests: it returns when their memory is scanned, also over an agent that is started anew."""

from __future__ import annotations

import json

import pytest

from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm, wait_until
from tests.lab.pseudo_terminal import PseudoTerminal
from tests.real.agent_process import HANG_S, SWEEPING_LAW, AgentFactory

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

COMMON_MIB = 8


def twin(number: int) -> PayloadGuest:
    return PayloadGuest(name=f"twin{number}", memory_mib=24, common_mib=COMMON_MIB, seed=number)


def test_it_returns_when_what_guests_have_in_common_is_merged_and_ksmd_is_idle(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(SWEEPING_LAW)
    guest.together(*map(twin, (1, 2)))
    done = agent.home.run("wait", "--settled", "--timeout", f"{HANG_S:.0f}", "--json")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, "settled")
    assert ksm.read("pages_to_scan") == 0
    assert ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB


def test_an_agent_that_is_killed_meanwhile_is_waited_for(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(SWEEPING_LAW.replace("settle_s = 1", "settle_s = 600"))
    guest(twin(1))
    agent.step()
    assert agent.home.run("wait", "--timeout", "0").returncode == 5
    terminal = PseudoTerminal(agent.home.command("wait", "--settled", "--timeout", f"{HANG_S:.0f}"))
    try:
        wait_until(lambda: "waiting for " in terminal.said, HANG_S, "the agent's first answer")
        agent.kill()
        start_agent(SWEEPING_LAW)
        assert terminal.wait_ended() == 0
        assert "Settled    all " in terminal.said
    finally:
        terminal.close()
    assert ksm.read("pages_to_scan") == 0
