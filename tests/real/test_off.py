"""`virtksm pause` and private guests, on the real kernel and a real libvirt: off is off; the exposed are named."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import libvirt
import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory, tiny
from tests.lab.hang import HANG_S
from tests.lab.ksm import DEFAULTS, IDLE, Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import STEPPING_LAW, AgentFactory, AgentHome, AgentProcess, Line
from virtksm.guests.xml import NAMESPACE

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

PRIVATE_TENANTS = f'private_guests = ["tenant-*"]\n{STEPPING_LAW}'


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged zero pages are counted here, and no counter tells of those of a split huge page."""
    return small_pages_libvirtd


def merge_twins(ksm: Ksm, guest: GuestFactory) -> None:
    for seed in (1, 2):
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=24, common_mib=8, zero_mib=4, seed=seed))
    ksm.write(use_zero_pages=1)
    ksm.merge_all()
    assert ksm.read("pages_sharing") >= 2000
    assert ksm.read("ksm_zero_pages") > 0


def test_off_parks_at_once_and_nothing_makes_it_scan_until_on(
    ksm: Ksm, guest: GuestFactory, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    assert agent.step()["after"]["pages_to_scan"] == 2
    done = agent.home.run("pause", "--connect", agent.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Changed    pages_to_scan: 2 -> 0 pages" in done.stdout
    assert ksm.settings() == IDLE
    assert len(agent.lines("paused")) == 1

    def answered(trigger: str) -> Line:
        line = agent.wait_for("pass_completed", lambda line: trigger in line["triggers"])
        assert line["decision"]["rule"] == "paused"
        assert ksm.settings() == IDLE
        return line

    guest(tiny("late"), settle=False)
    answered("started")
    agent.poke()
    answered("poke")
    agent.signal(signal.SIGUSR1)
    answered("signal")
    agent.signal(signal.SIGHUP)
    answered("reload")
    assert agent.home.run("retune", "--connect", agent.uri).returncode == 0
    answered("retune")
    assert agent.home.run("retune", "--direct", "--connect", agent.uri).returncode == 0
    assert ksm.settings() == IDLE

    again = agent.home.run("pause", "--json", "--connect", agent.uri)
    told = json.loads(again.stdout)
    assert (again.returncode, told["paused"], told["pass"]["outcome"]) == (0, True, "unchanged")

    done = agent.home.run("resume", "--connect", agent.uri)
    assert done.returncode == 0, done.stderr
    assert ksm.read("pages_to_scan") == 1, "the policy begins anew"
    assert agent.home.run("resume", "--connect", agent.uri).returncode == 0
    assert agent.lines("foreign_value_found") == []
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS


def test_off_survives_the_agents_end_its_crash_and_a_reboot(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    home = agent.home
    assert home.run("pause", "--connect", agent.uri).returncode == 0
    assert agent.stop() == 0
    assert ksm.settings() == IDLE, "what it found would scan"
    assert len(agent.lines("ksmd_idled")) == 1
    done = home.run("restore", "--connect", agent.uri)
    assert (done.returncode, ksm.settings()) == (0, IDLE)
    assert "virtksm is paused" in done.stdout

    agent = start_agent(None)
    assert agent.lines("pass_completed")[0]["decision"]["rule"] == "paused"
    agent.kill()
    assert home.run("restore", "--on-exit", "--connect", agent.uri).returncode == 0
    assert ksm.settings() == IDLE

    shutil.rmtree(home.runtime_dir)  # as a reboot does, which brings the kernel's defaults back
    ksm.write(pages_to_scan=100, sleep_millisecs=20)
    agent = start_agent(None)
    assert ksm.settings() == IDLE
    assert home.run("resume", "--connect", agent.uri).returncode == 0
    assert ksm.read("pages_to_scan") == 1
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS


def test_without_an_agent_off_holds_for_the_hooks_one_shot(
    ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    assert agent_home.run("retune", "--connect", libvirtd.uri).returncode == 0
    assert ksm.read("pages_to_scan") == 1
    assert agent_home.run("pause", "--connect", libvirtd.uri).returncode == 0
    assert ksm.settings() == IDLE
    assert agent_home.run("retune", "--direct", "--coalesce", "--connect", libvirtd.uri).returncode == 0
    assert ksm.settings() == IDLE
    assert agent_home.run("resume", "--connect", libvirtd.uri).returncode == 0
    assert ksm.read("pages_to_scan") == 1
    assert agent_home.run("restore", "--connect", libvirtd.uri).returncode == 0
    assert ksm.settings() == DEFAULTS


def test_a_switch_that_is_damaged_under_the_agent_is_off_and_said(ksm: Ksm, start_agent: AgentFactory) -> None:
    agent = start_agent()
    agent.home.state_dir.mkdir(exist_ok=True)  # the agent's history may be in it already
    agent.home.switch.write_text("{", encoding="utf-8")
    assert agent.step()["decision"]["rule"] == "paused"
    assert ksm.settings() == IDLE
    (warning,) = [line["warning"] for line in agent.lines("warning_raised")]
    assert str(agent.home.switch) in warning
    assert agent.home.run("resume", "--connect", agent.uri).returncode == 0
    assert ksm.read("pages_to_scan") == 1


@pytest.mark.needs("ksm_zero_pages")
def test_verify_fails_until_it_is_off_and_nothing_is_merged(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    merge_twins(ksm, guest)
    verify = ("verify-off", "--connect", libvirtd.uri)
    done = agent_home.run(*verify)
    assert done.returncode == 1
    assert "virtksm is not paused" in done.stdout

    done = agent_home.run("pause", "--connect", libvirtd.uri)
    assert done.returncode == 0
    assert "MiB saved: " in done.stdout
    assert "Unmerge    virtksm unmerge (unmerging needs up to " in done.stdout
    told = json.loads(agent_home.run(*verify, "--json").stdout)
    assert (told["verified"], told["paused"], told["ksm_run"]) == (False, True, 1)
    assert told["merged"]["pages_sharing"] >= 2000
    assert told["merged"]["ksm_zero_pages"] > 0
    assert len(told["doubts"]) == 1
    assert agent_home.run("unmerge", "--check", "--connect", libvirtd.uri).returncode == 0

    ksm.write(run=2)
    wait_until(lambda: ksm.read("pages_shared") == ksm.read("ksm_zero_pages") == 0, HANG_S, "all to be unmerged")
    done = agent_home.run(*verify)
    assert done.returncode == 0, done.stdout
    assert "Verified   KSM is off" in done.stdout
    ksm.write(run=1, pages_to_scan=100)
    assert agent_home.run(*verify).returncode == 1, "somebody else lets ksmd scan"


def exposed(agent: AgentProcess, names: list[str]) -> None:
    """Wait until a pass of the agent's names exactly these."""
    wait_until(lambda: agent.step()["exposed"] == names, HANG_S, f"{names} to be exposed")


def test_private_guests_by_name_are_named_unless_nosharepages_keeps_them_out(
    guest: GuestFactory,
    libvirtd: PrivateLibvirtd,
    libvirt_conn: libvirt.virConnect,
    payload: Path,
    start_agent: AgentFactory,
) -> None:
    apart = guest(tiny("tenant-apart", nosharepages=True), settle=False)
    running = guest(tiny("tenant-open"), settle=False)
    backing = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    shared = libvirt_conn.createXML(tiny("shared").domain_xml(payload, None).replace("<vcpu>", f"{backing}<vcpu>"))
    try:
        assert mergeable_kib(apart.pid) == 0
        assert mergeable_kib(running.pid) >= 16 * 1024
        assert 0 < mergeable_kib(libvirtd.guest_pid("shared")) < 16 * 1024, "what is beside its memory"
        os.kill(running.pid, signal.SIGSTOP)
        agent = start_agent(PRIVATE_TENANTS)
        named = agent.wait_for("private_guest_exposed")
        assert named["guest"] == "tenant-open"
        assert "<nosharepages/>" in named["remedy"]
        exposed(agent, ["tenant-open"])
        assert agent.lines("pass_failed") == agent.lines("guest_xml_unreadable") == []
    finally:
        os.kill(running.pid, signal.SIGCONT)
        shared.destroy()
    running.crash()
    agent.wait_for("pass_completed", lambda line: "stopped" in line["triggers"] and line["sensed"]["guests"] == 1)
    assert agent.step()["exposed"] == []
    guest(tiny("tenant-open"), settle=False)
    exposed(agent, ["tenant-open"])
    assert [line["guest"] for line in agent.lines("private_guest_exposed")] == ["tenant-open"] * 2


def test_a_guest_is_private_by_its_metadata_after_a_retune_and_after_a_reconnect(
    guest: GuestFactory, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    guest(tiny("one"), settle=False)
    agent = start_agent()
    declare_private(agent.uri, "one")
    done = agent.home.run("retune", "--connect", agent.uri)
    assert done.returncode == 0
    assert agent.wait_for("private_guest_exposed")["guest"] == "one"
    exposed(agent, ["one"])
    assert "private guest 'one' can merge" in agent.home.run("retune", "--connect", agent.uri).stdout
    libvirtd.restart()
    agent.wait_for("libvirt_disconnected")
    agent.wait_for_pass("connected")
    exposed(agent, ["one"])
    assert len(agent.lines("private_guest_exposed")) == 1, "it is no news"


def declare_private(uri: str, name: str) -> None:
    """Write virtksm's metadata into a running guest, as the documentation says."""
    change = [NAMESPACE, "--key", "virtksm", "--set", '<guest private="yes"/>', "--live"]
    subprocess.run(["virsh", "-c", uri, "metadata", name, *change], check=True, capture_output=True)


def mergeable_kib(pid: int) -> int:
    """Sum up what a process has offered to KSM (the flag mg of its mappings)."""
    total_kib = size_kib = 0
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("Size:"):
            size_kib = int(line.split()[1])
        if line.startswith("VmFlags:") and "mg" in line.split():
            total_kib += size_kib
    return total_kib
