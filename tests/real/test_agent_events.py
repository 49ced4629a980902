"""The agent on the real libvirt and kernel: what it hears becomes a setting in /sys/kernel/mm/ksm.

Each step of its law adds one page to pages_to_scan (STEPPING_LAW), so the kernel itself counts the passes.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import libvirt
import pytest

from demo.guests import PayloadGuest, memory_device_xml, wait_settled
from tests.lab.fixtures import GuestFactory, RunningGuest
from tests.lab.ksm import Ksm
from tests.real.agent_process import STEPPING_LAW, AgentFactory, AgentProcess, Line

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]


def tiny(name: str) -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=16, own_mib=1)


def heard_pass(agent: AgentProcess, trigger: str, detail: str) -> Line:
    """Wait for one event and for the pass that answers it alone."""
    event = agent.wait_for("event_received")
    assert (event["trigger"], event["detail"]) == (trigger, detail)
    line = agent.wait_for_pass()
    assert line["triggers"] == [trigger]
    return line


@pytest.fixture
def running(guest: GuestFactory) -> RunningGuest:
    """Start a guest before the agent is there."""
    return guest(tiny("guest"), settle=False)


def test_a_started_guest_changes_the_setting_in_the_kernel(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent()
    assert ksm.read("pages_to_scan") == 1
    guest(tiny("one"), settle=False)
    line = heard_pass(agent, "started", "booted")
    assert ksm.read("pages_to_scan") == 2
    assert line["changed"] == {"pages_to_scan": 2}
    assert line["source"] == "local"
    assert (line["sensed"]["guests"], line["sensed"]["guests_unread"]) == (1, 0)
    assert line["sensed"]["committed_kib"] > 16 * 1024


def test_a_destroyed_guest_changes_the_setting_in_the_kernel(
    ksm: Ksm, running: RunningGuest, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    running.domain.destroy()
    line = heard_pass(agent, "stopped", "destroyed")
    assert ksm.read("pages_to_scan") == 2
    assert line["sensed"]["guests"] == 0
    assert line["sensed"]["committed_kib"] == 0


def test_a_guest_that_powers_itself_off_changes_the_setting_in_the_kernel(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent()
    guest(PayloadGuest(name="ends", memory_mib=16, own_mib=1, off_after_s=1))
    heard_pass(agent, "started", "booted")
    heard_pass(agent, "stopped", "shut down")
    assert ksm.read("pages_to_scan") == 3


def test_a_crashed_guest_changes_the_setting_in_the_kernel(
    ksm: Ksm, running: RunningGuest, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    running.crash()
    line = heard_pass(agent, "stopped", "failed")
    assert ksm.read("pages_to_scan") == 2
    assert line["sensed"]["guests"] == 0


def test_a_saved_and_a_restored_guest_each_change_the_setting_in_the_kernel(
    ksm: Ksm, running: RunningGuest, start_agent: AgentFactory, libvirt_conn: libvirt.virConnect, tmp_path: Path
) -> None:
    agent = start_agent()
    running.domain.save(str(tmp_path / "saved"))
    heard_pass(agent, "stopped", "saved")
    assert ksm.read("pages_to_scan") == 2
    libvirt_conn.restore(str(tmp_path / "saved"))
    try:
        line = heard_pass(agent, "started", "restored")
        assert ksm.read("pages_to_scan") == 3
        assert (line["sensed"]["guests"], line["sensed"]["guests_unread"]) == (1, 0)
    finally:
        libvirt_conn.lookupByName("guest").destroy()


def test_a_guest_that_reports_balloon_sizes_unasked_causes_a_pass_after_the_other_and_no_step(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent()
    guest(PayloadGuest(name="chatters", memory_mib=64, own_mib=1, chatters=True))
    steps = agent.wait_for_pass("balloon")["after"]["pages_to_scan"]
    agent.wait_for_pass("balloon")
    assert ksm.read("pages_to_scan") == steps


def test_a_balloon_change_re_evaluates_without_a_step(ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory) -> None:
    ballooned = guest(PayloadGuest(name="balloon", memory_mib=64, own_mib=1, balloon=True))
    agent = start_agent()
    ballooned.domain.setMemory(40 * 1024)
    line = heard_pass(agent, "balloon", f"balloon {40 * 1024} KiB")
    assert line["decision"]["rule"] == "hold"
    assert ksm.read("pages_to_scan") == 1
    assert agent.step()["after"]["pages_to_scan"] == 2, "and the steps go on from where they were"


def test_a_memory_device_change_re_evaluates_without_a_step(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    plugged = guest(PayloadGuest(name="plug", memory_mib=64, own_mib=1, hotplug_mib=256))
    agent = start_agent()
    plugged.domain.attachDevice(memory_device_xml(128))
    event = agent.wait_for("event_received")
    assert (event["trigger"], event["guest"]) == ("memory_device", "plug")
    line = agent.wait_for_pass("memory_device")
    assert line["decision"]["rule"] == "hold"
    assert ksm.read("pages_to_scan") == 1
    assert agent.step()["after"]["pages_to_scan"] == 2


def test_a_reset_guest_is_no_trigger(ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory) -> None:
    reset = guest(tiny("reset"))
    agent = start_agent()
    reset.domain.reset()
    wait_settled(reset.console, 30.0, times=2)  # it has booted again, so libvirt's event of the reset was sent long ago
    agent.step()
    assert agent.lines("event_received") == []
    assert [line["triggers"] for line in agent.lines("pass_completed")] == [["connected"], ["signal"]]
    assert ksm.read("pages_to_scan") == 2


def test_a_guest_that_reboots_itself_is_no_trigger(ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory) -> None:
    agent = start_agent()
    rebooting = guest(PayloadGuest(name="reboots", memory_mib=16, own_mib=1, reboot_after_s=1), settle=False)
    heard_pass(agent, "started", "booted")
    wait_settled(rebooting.console, 30.0, times=2)
    agent.step()
    assert len(agent.lines("event_received")) == 1
    assert ksm.read("pages_to_scan") == 3


def test_each_of_two_pokes_is_a_step(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    for pages in (2, 3):
        agent.poke()
        agent.wait_for_pass("poke")
        assert ksm.read("pages_to_scan") == pages


def test_sigusr1_is_a_step(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    for pages in (2, 3):
        agent.signal(signal.SIGUSR1)
        agent.wait_for_pass("signal")
        assert ksm.read("pages_to_scan") == pages


def test_the_policys_own_tick_is_a_step(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent(STEPPING_LAW.replace("monitor_interval = 3600", "monitor_interval = 1"))
    for pages in (2, 3):
        agent.wait_for_pass("timer")
        assert ksm.read("pages_to_scan") >= pages


def test_sighup_loads_the_configuration_again(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    agent.home.configure(STEPPING_LAW.replace("npages_min = 1", "npages_min = 50"))
    agent.signal(signal.SIGHUP)
    agent.wait_for("config_reloaded")
    agent.wait_for_pass("reload")
    assert ksm.read("pages_to_scan") == 50


def test_an_invalid_configuration_is_reported_and_the_old_one_kept(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    agent.home.configure(STEPPING_LAW.replace("npages_min = 1", 'npages_min = "many"') + "thres_coeff = 3\n")
    agent.signal(signal.SIGHUP)
    first, second = agent.wait_for("config_rejected"), agent.wait_for("config_rejected")
    assert [line["key"] for line in (first, second)] == ["ksmtuned.npages_min", "ksmtuned.thres_coeff"]
    assert first["file"] == str(agent.home.config)
    assert "the old configuration stays in force" in first["remedy"]
    agent.wait_for_pass("signal")
    assert ksm.read("pages_to_scan") == 2
    agent.step()
    assert ksm.read("pages_to_scan") == 3
    assert agent.lines("config_reloaded") == []


def test_a_retune_goes_through_the_agent_and_prints_its_pass(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    done = agent.home.run("retune", "--connect", agent.uri, "--json")
    assert done.returncode == 0, done.stderr
    line = agent.wait_for_pass("retune")
    printed = json.loads(done.stdout)
    assert printed["after"] == line["after"]
    assert printed["triggers"] == ["retune"]
    assert ksm.read("pages_to_scan") == 2


def test_a_dry_retune_through_the_agent_writes_nothing(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    kept = agent.home.state.read_bytes()
    done = agent.home.run("retune", "--connect", agent.uri, "--json", "--dry-run")
    assert json.loads(done.stdout)["outcome"] == "dry_run"
    assert json.loads(done.stdout)["decision"]["target"]["pages_to_scan"] == 2
    assert ksm.read("pages_to_scan") == 1
    assert agent.home.state.read_bytes() == kept


def test_a_direct_retune_beside_the_agent_is_no_conflict_and_its_step_counts(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    done = agent.home.run("retune", "--direct", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    assert ksm.read("pages_to_scan") == 2
    assert agent.step()["outcome"] == "applied"
    assert ksm.read("pages_to_scan") == 3
    assert agent.lines("foreign_value_found") == []
    assert agent.lines("pass_completed")[-1]["triggers"] == ["signal"]


def test_an_agent_with_another_uri_is_not_asked(start_agent: AgentFactory) -> None:
    agent = start_agent()
    done = agent.home.run("retune", "--connect", agent.uri.replace("qemu:", "qemu+unix:"), "--json", "--dry-run")
    assert json.loads(done.stdout)["source"] == "local", "the transport unix leads to this machine"
    agent.step()
    assert [line["triggers"] for line in agent.lines("pass_completed")] == [["connected"], ["signal"]]
