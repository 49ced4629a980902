"""Storms: thousands of triggers cost a pass a window, and the last state is the one acted upon.

Passes begin at least one window (250 ms) apart, so their number is bounded by how many windows the storm has lasted,
on a machine of any speed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libvirt
import pytest

from demo.guests import PayloadGuest, start_guest
from tests.lab.ksm import Ksm
from tests.real.agent_process import STEPPING_LAW, AgentFactory

pytestmark = pytest.mark.real

WINDOW_S = 0.25
WINDOWED_LAW = STEPPING_LAW.replace("coalesce_ms = 20", "coalesce_ms = 250")
MAX_GROWTH_KIB = 2048
DRIVER_STORM = Path(__file__).with_name("driver_storm.py")


def most_passes(windows: float) -> int:
    """Tell how many passes a storm may cost: one a window, the first at once and one after its end."""
    return int(windows) + 2


def test_ten_thousand_libvirt_events_cost_a_pass_a_window_and_no_memory_and_the_last_state_counts() -> None:
    done = subprocess.run(
        [sys.executable, DRIVER_STORM, "10000"], check=True, capture_output=True, text=True, timeout=100
    )
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert told["events"] == 10_001
    connecting = 1
    assert 1 + connecting <= told["passes"] <= most_passes(told["windows"]) + connecting
    assert told["guests_seen"] == 0, "the guest was stopped at last"
    assert told["growth_kib"] < MAX_GROWTH_KIB


def test_a_thousand_pokes_and_signals_cost_a_handful_of_passes(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent(WINDOWED_LAW)
    began = time.monotonic()
    for _ in range(500):
        agent.poke()
        agent.signal(signal.SIGUSR1)
    ended = time.monotonic()
    agent.home.run("retune", "--connect", agent.uri)  # answered after all that came before it
    agent.wait_for("pass_completed", lambda line: "retune" in line["triggers"])
    passes = len(agent.lines("pass_completed"))
    assert ksm.read("pages_to_scan") == passes
    connecting_and_retuning = 2
    assert passes <= most_passes((ended - began) / WINDOW_S) + connecting_and_retuning


@pytest.fixture
def libvirt_conn(libvirt_conn: libvirt.virConnect) -> Iterator[libvirt.virConnect]:
    """Lend the connection, and end all guests with the test."""
    yield libvirt_conn
    for domain in libvirt_conn.listAllDomains():
        domain.destroy()


def test_many_guests_at_once_are_all_acted_upon(
    ksm: Ksm, start_agent: AgentFactory, libvirt_conn: libvirt.virConnect, payload: Path
) -> None:
    agent = start_agent(WINDOWED_LAW)
    specs = [PayloadGuest(name=f"many{number}", memory_mib=16) for number in range(8)]
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        domains = list(pool.map(lambda spec: start_guest(libvirt_conn, spec, kernel=payload), specs))
    # libvirt lists a guest from before its process runs, so a pass for another may count it, unread.
    agent.wait_for(
        "pass_completed", lambda line: (line["sensed"]["guests"], line["sensed"]["guests_unread"]) == (len(specs), 0)
    )
    windows = (time.monotonic() - began) / WINDOW_S
    assert len(agent.lines("pass_completed")) <= min(most_passes(windows), len(specs)) + 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda domain: domain.destroy(), domains))
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 0)
    assert ksm.read("pages_to_scan") == len(agent.lines("pass_completed"))
