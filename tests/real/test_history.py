"""A real agent's history of real guests: it outlives the agent, also one that is killed."""

import argparse
import stat
import time
from pathlib import Path

import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.real.agent_process import PARKING_LAW, AgentFactory, AgentHome
from virtksm.cli.history import Excerpt, read_decisions, read_history
from virtksm.cli.main import parse
from virtksm.store.history import HistoryFile

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

HOUR_S = 3600.0


def options_of(home: AgentHome, uri: str | None = None) -> argparse.Namespace:
    return parse(home.command("status", *([] if uri is None else ["--connect", uri]))[1:])


def excerpt(home: AgentHome, uri: str | None = None) -> Excerpt:
    return read_history(options_of(home, uri), seconds=HOUR_S)


def file_of(home: AgentHome) -> Path:
    return home.state_dir / "local.history"


def test_a_guest_whose_balloon_chatters_fills_neither_the_log_nor_the_history(
    start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent(PARKING_LAW)
    guest(PayloadGuest(name="other", memory_mib=16), settle=False)
    agent.wait_for_pass("started")
    guest(PayloadGuest(name="loud", memory_mib=64, own_mib=1, chatters=True))
    agent.wait_for_pass("started")
    for _ in range(2):
        agent.wait_for_pass("balloon")
    chatter = [
        line
        for line in (*agent.lines("event_received"), *agent.lines("pass_completed"))
        if line.get("trigger") == "balloon" or line.get("triggers") == ["balloon"]
    ]
    heard = agent.lines("event_received")
    assert len(chatter) >= 4
    assert {line["level"] for line in chatter} == {"debug"}
    events = excerpt(agent.home).events
    assert [(event.kind, event.domain) for event in events if event.kind != "balloon"] == [
        ("started", "other"),
        ("started", "loud"),
    ]
    assert len(events) < len(heard), "of those in a minute the last is kept"
    asked = [line.triggers.names for line in read_decisions(options_of(agent.home, agent.uri), 100)]
    assert (len(asked), asked[0]) == (3, ["connected"])
    assert all("started" in triggers for triggers in asked[1:]), "a balloon's may have come with it"


def test_it_outlives_the_agent_also_one_that_is_killed(start_agent: AgentFactory, guest: GuestFactory) -> None:
    began_s = time.time()
    agent = start_agent(PARKING_LAW)
    one = guest(PayloadGuest(name="kept", memory_mib=16), settle=False)
    agent.wait_for("event_received")
    agent.wait_for_pass("started")
    seen = excerpt(agent.home)
    assert [(event.kind, event.domain, event.uuid, event.detail) for event in seen.events] == [
        ("started", "kept", one.domain.UUIDString(), "booted")
    ]
    assert seen.samples[-1].guests == 1
    assert seen.samples[-1].committed_kib > 0
    assert seen.samples[-1].run == 1
    assert all(began_s <= sample.at_s <= seen.now_s for sample in seen.samples)
    assert agent.stop() == 0
    assert stat.S_IMODE(file_of(agent.home).stat().st_mode) == 0o600

    alone = excerpt(agent.home, agent.uri)
    assert alone.events == seen.events, "the file tells without an agent"
    assert len(alone.samples) >= len(seen.samples), "one is taken every ten seconds"
    decisions = read_decisions(options_of(agent.home, agent.uri), 100)
    assert [line.triggers.names for line in decisions] == [["connected"], ["started"]]

    second = start_agent(PARKING_LAW)
    second.reload()  # has what waits written at once
    history = HistoryFile(str(file_of(agent.home)))
    wait_until(lambda: len(history.decisions(100)) >= 3, HANG_S, "the second agent's first write")
    second.kill()
    assert excerpt(agent.home, agent.uri).events == seen.events

    third = start_agent(PARKING_LAW)
    assert excerpt(third.home).events[0] == seen.events[0]
    triggers = [line.triggers.names for line in read_decisions(options_of(third.home), 100)]
    assert triggers[:3] == [["connected"], ["started"], ["connected"]]
    assert triggers[3:] in ([["connected"]], [["reload"], ["connected"]]), "the last minute may be lost"
