"""The agent on the real libvirt and kernel: what it hears becomes a setting in /sys/kernel/mm/ksm.

Each step of its law adds one page to pages_to_scan (STEPPING_LAW), so the kernel itself counts the passes.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest

from demo.guests import PayloadGuest, memory_device_xml, wait_settled
from tests.lab.fixtures import GuestFactory, tiny
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm
from tests.real.agent_process import AgentFactory, AgentProcess, Line

pytestmark = pytest.mark.real


def heard_pass(agent: AgentProcess, trigger: str, detail: str) -> Line:
    """Wait for one event and for the pass that answers it alone."""
    event = agent.wait_for("event_received")
    assert (event["trigger"], event["detail"]) == (trigger, detail)
    line = agent.wait_for_pass()
    assert line["triggers"] == [trigger]
    return line


def test_a_guest_that_starts_or_ends_in_any_way_changes_the_setting_in_the_kernel(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory, libvirt_conn: libvirt.virConnect, tmp_path: Path
) -> None:
    agent = start_agent()
    steps = itertools.count(2)
    assert ksm.read("pages_to_scan") == 1

    def heard_step(trigger: str, detail: str, guests: int) -> Line:
        line = heard_pass(agent, trigger, detail)
        assert ksm.read("pages_to_scan") == next(steps)
        assert (line["sensed"]["guests"], line["sensed"]["guests_unread"]) == (guests, 0)
        return line

    one = guest(tiny("one"), settle=False)
    line = heard_step("started", "booted", 1)
    assert line["changed"] == {"pages_to_scan": 2}
    assert line["source"] == "local"
    assert line["sensed"]["committed_bytes"] > 16 << 20
    one.domain.destroy()
    assert heard_step("stopped", "destroyed", 0)["sensed"]["committed_bytes"] == 0

    guest(PayloadGuest(name="ends", memory_mib=16, own_mib=1, off_after_s=3), settle=False)
    heard_step("started", "booted", 1)
    heard_step("stopped", "shut down", 0)

    saved = guest(tiny("saved"), settle=False)
    heard_step("started", "booted", 1)
    saved.domain.save(str(tmp_path / "saved"))
    heard_step("stopped", "saved", 0)
    libvirt_conn.restore(str(tmp_path / "saved"))
    heard_step("started", "restored", 1)
    libvirt_conn.lookupByName("saved").destroy()
    heard_step("stopped", "destroyed", 0)

    crashes = guest(tiny("crashes"), settle=False)
    heard_step("started", "booted", 1)
    crashes.crash()
    heard_step("stopped", "failed", 0)


def test_a_change_of_a_guests_memory_re_evaluates_without_a_step_and_a_reboot_is_no_trigger(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    ballooned, plugged, reset = guest.together(
        PayloadGuest(name="balloon", memory_mib=64, own_mib=1, balloon=True),
        PayloadGuest(name="plug", memory_mib=64, own_mib=1, hotplug_mib=256),
        tiny("reset"),
    )
    agent = start_agent()
    ballooned.domain.setMemory(40 * 1024)
    line = heard_pass(agent, "balloon", f"balloon {40 * 1024} KiB")
    assert line["decision"]["rule"] == "hold"
    assert ksm.read("pages_to_scan") == 1
    plugged.domain.attachDevice(memory_device_xml(128))
    event = agent.wait_for("event_received", lambda line: line["guest"] == "plug")
    assert event["trigger"] == "memory_device"
    assert agent.wait_for_pass("memory_device")["decision"]["rule"] == "hold"
    assert agent.step()["after"]["pages_to_scan"] == 2, "and the steps go on from where they were"

    rebooting = guest(PayloadGuest(name="reboots", memory_mib=16, own_mib=1, reboot_after_s=1), settle=False)
    agent.wait_for_pass("started")
    heard = len(agent.lines("event_received"))
    reset.domain.reset()  # the other one does so by itself
    for one in (reset, rebooting):  # they have booted again, so libvirt's events of it were sent long ago
        wait_settled(one.console, HANG_S, times=2)
    agent.step()
    later = [line["guest"] for line in agent.lines("event_received")[heard:]]
    assert {"reset", "reboots"} & {*later} == set()


def test_each_poke_signal_and_retune_is_a_step_and_a_dry_one_none(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    agent.poke()
    agent.wait_for_pass("poke")
    assert (agent.step()["after"]["pages_to_scan"], ksm.read("pages_to_scan")) == (3, 3)
    told = agent.home.told("retune", "--connect", agent.uri)
    assert (told["after"], told["triggers"]) == (agent.wait_for_pass("retune")["after"], ["retune"])
    assert ksm.read("pages_to_scan") == 4

    kept = agent.home.state.read_bytes()
    for uri in (agent.uri, agent.uri.replace("qemu:", "qemu+unix:")):  # the second serves the same, and is not asked
        told = agent.home.told("retune", "--connect", uri, "--dry-run")
        assert (told["outcome"], told["decision"]["target"]["pages_to_scan"]) == ("dry_run", 5)
        assert told["source"] == "local", "the transport unix leads to this machine"
    assert (ksm.read("pages_to_scan"), agent.home.state.read_bytes()) == (4, kept)

    done = agent.home.run("retune", "--direct", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    assert ksm.read("pages_to_scan") == 5
    assert agent.step()["after"]["pages_to_scan"] == 6
    assert agent.lines("foreign_value_found") == [], "its step counts, and is no conflict"


def test_ten_thousand_libvirt_events_cost_a_pass_a_window_and_no_memory_and_the_last_state_counts() -> None:
    """Passes begin a window apart, so that the storm's length bounds their number on a machine of any speed."""
    storm = [sys.executable, str(Path(__file__).with_name("driver_storm.py")), "10000"]
    done = subprocess.run(storm, check=True, capture_output=True, text=True, timeout=HANG_S)
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert told["events"] == 10_001
    connecting, first, last = 1, 1, 1
    assert 1 + connecting <= told["passes"] <= int(told["windows"]) + first + last + connecting
    assert told["guests_seen"] == 0, "the guest was stopped at last"
    kept_of_a_pass_kib = 4  # its decision, of the last day's; on a slow machine the storm is long
    huge_page_kib = 2048  # by which the heap may grow
    assert told["growth_kib"] < 2 * huge_page_kib + kept_of_a_pass_kib * told["passes"]
