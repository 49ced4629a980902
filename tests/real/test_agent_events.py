"""The agent on the real libvirt and kernel: what it hears becomes a setting in /sys/kernel/mm/ksm.

Each step of its law adds one page to pages_to_scan (STEPPING_LAW), so the kernel itself counts the passes.
"""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import libvirt
import pytest

from demo.guests import PayloadGuest, memory_device_xml, wait_settled
from tests.lab.fixtures import GuestFactory
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

    guest(PayloadGuest(name="ends", memory_mib=16, own_mib=1, off_after_s=1), settle=False)
    heard_step("started", "booted", 1)
    heard_step("stopped", "shut down", 0)

    crashes = guest(tiny("crashes"), settle=False)
    heard_step("started", "booted", 1)
    crashes.crash()
    heard_step("stopped", "failed", 0)

    saved = guest(tiny("saved"), settle=False)
    heard_step("started", "booted", 1)
    saved.domain.save(str(tmp_path / "saved"))
    heard_step("stopped", "saved", 0)
    libvirt_conn.restore(str(tmp_path / "saved"))
    try:
        heard_step("started", "restored", 1)
    finally:
        libvirt_conn.lookupByName("saved").destroy()


def test_a_change_of_a_guests_memory_re_evaluates_without_a_step(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    ballooned, plugged = guest.together(
        PayloadGuest(name="balloon", memory_mib=64, own_mib=1, balloon=True),
        PayloadGuest(name="plug", memory_mib=64, own_mib=1, hotplug_mib=256),
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
    assert ksm.read("pages_to_scan") == 1
    assert agent.step()["after"]["pages_to_scan"] == 2, "and the steps go on from where they were"

    # One that reports sizes unasked causes a pass after the other, and no step.
    guest(PayloadGuest(name="chatters", memory_mib=64, own_mib=1, chatters=True), settle=False)
    steps = agent.wait_for_pass("balloon")["after"]["pages_to_scan"]
    agent.wait_for_pass("balloon")
    assert ksm.read("pages_to_scan") == steps


def test_a_guest_that_reboots_itself_or_is_reset_is_no_trigger(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    reset = guest(tiny("reset"))
    agent = start_agent()
    rebooting = guest(PayloadGuest(name="reboots", memory_mib=16, own_mib=1, reboot_after_s=1), settle=False)
    heard_pass(agent, "started", "booted")
    reset.domain.reset()
    for one in (reset, rebooting):  # they have booted again, so libvirt's events of it were sent long ago
        wait_settled(one.console, 30.0, times=2)
    agent.step()
    assert len(agent.lines("event_received")) == 1
    assert [line["triggers"] for line in agent.lines("pass_completed")] == [["connected"], ["started"], ["signal"]]
    assert ksm.read("pages_to_scan") == 3


def test_each_poke_signal_and_retune_is_a_step_and_a_dry_one_none(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    for pages in (2, 3):
        agent.poke()
        agent.wait_for_pass("poke")
        assert ksm.read("pages_to_scan") == pages
    for pages in (4, 5):
        agent.signal(signal.SIGUSR1)
        agent.wait_for_pass("signal")
        assert ksm.read("pages_to_scan") == pages

    done = agent.home.run("retune", "--connect", agent.uri, "--json")
    assert done.returncode == 0, done.stderr
    line = agent.wait_for_pass("retune")
    printed = json.loads(done.stdout)
    assert printed["after"] == line["after"]
    assert printed["triggers"] == ["retune"]
    assert ksm.read("pages_to_scan") == 6

    kept = agent.home.state.read_bytes()
    done = agent.home.run("retune", "--connect", agent.uri, "--json", "--dry-run")
    assert json.loads(done.stdout)["outcome"] == "dry_run"
    assert json.loads(done.stdout)["decision"]["target"]["pages_to_scan"] == 7
    assert ksm.read("pages_to_scan") == 6
    assert agent.home.state.read_bytes() == kept


def test_a_retune_that_is_not_through_the_agent_is_no_conflict_and_its_step_counts(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    done = agent.home.run("retune", "--direct", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    assert ksm.read("pages_to_scan") == 2
    assert agent.step()["outcome"] == "applied"
    assert ksm.read("pages_to_scan") == 3
    other_uri = agent.uri.replace("qemu:", "qemu+unix:")  # which is not asked whether it serves the same
    done = agent.home.run("retune", "--connect", other_uri, "--json", "--dry-run")
    assert json.loads(done.stdout)["source"] == "local", "the transport unix leads to this machine"
    agent.step()
    assert agent.lines("foreign_value_found") == []
    assert [line["triggers"] for line in agent.lines("pass_completed")] == [["connected"], ["signal"], ["signal"]]


def test_sighup_loads_the_configuration_again_and_an_invalid_one_is_reported_and_the_old_one_kept(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    agent.home.configure(STEPPING_LAW.replace("npages_min = 1", 'npages_min = "many"') + "thres_coeff = 3\n")
    agent.signal(signal.SIGHUP)
    first, second = agent.wait_for("config_rejected"), agent.wait_for("config_rejected")
    assert [line["key"] for line in (first, second)] == ["ksmtuned.npages_min", "ksmtuned.thres_coeff"]
    assert first["file"] == str(agent.home.config)
    assert "the old configuration stays in force" in first["remedy"]
    agent.wait_for_pass("signal")
    assert ksm.read("pages_to_scan") == 2
    assert agent.lines("config_reloaded") == []

    ticking = STEPPING_LAW.replace("monitor_interval = 3600", "monitor_interval = 1")
    agent.home.configure(ticking.replace("npages_min = 1", "npages_min = 50"))
    agent.signal(signal.SIGHUP)
    agent.wait_for("config_reloaded")
    assert agent.wait_for_pass("reload")["after"]["pages_to_scan"] == 50
    for pages in (51, 52):  # the policy's own tick is a step
        agent.wait_for_pass("timer")
        assert ksm.read("pages_to_scan") >= pages
