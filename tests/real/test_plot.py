"""`virtksm trace plot` of what a real agent remembers of real guests, with it and without it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from demo.guests import PayloadGuest
from tests.fakes import SAMPLE
from tests.lab.fixtures import GuestFactory
from tests.real.agent_process import PARKING_LAW, AgentFactory, AgentHome
from virtksm.store.history import HistoryFile

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]


def plot(home: AgentHome, *options: str) -> tuple[dict[str, object], str]:
    """Draw, and return what the command says and the picture."""
    path = home.folder / "picture.svg"
    done = home.run("trace", "plot", "--json", "-o", str(path), *options)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told.pop("output") == str(path)
    return told, Path(path).read_text(encoding="utf-8")


def test_what_the_agent_remembers_is_drawn_while_it_runs_and_afterwards(
    start_agent: AgentFactory, agent_home: AgentHome, guest: GuestFactory
) -> None:
    agent_home.state_dir.mkdir()
    earlier = replace(SAMPLE, at_s=time.time() - 600, saved_kib=3 << 20)
    HistoryFile(str(agent_home.state_dir / "local.history")).add([earlier], [], [])
    agent = start_agent(PARKING_LAW)
    guest(PayloadGuest(name="drawn", memory_mib=16), settle=False)
    agent.wait_for_pass("started")
    told, picture = plot(agent.home)
    assert told == {"schema": 1, "samples": 2, "events": 1}
    assert agent.stop() == 0
    alone, same = plot(agent.home, "--last", "1h", "--connect", agent.uri)
    assert alone == told
    for drawn in (picture, same):
        assert "<!-- drawn -->" in drawn, "the guest that has started"
        assert "<!-- saved memory, GiB -->" in drawn
