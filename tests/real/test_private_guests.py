"""Private guests are unmerged by the agent while they run: the kernel's own files say what has come of it."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import libvirt
import pytest

from demo.guests import memory_device_xml
from tests.lab.fixtures import GuestFactory
from tests.lab.guest_memory import merged_kib
from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import SWEEPING_LAW, AgentFactory, AgentProcess
from tests.real.test_guest import BESIDE_KIB, COMMON_MIB, DIMM_MIB, OCCUPIED, TAINTED, taints, twin
from tests.real.test_off import declare_private
from virtksm.agent.guest_switches import MAX_HANGING

pytestmark = pytest.mark.real


def enforcing(patterns: Sequence[str], *, call_timeout_s: int = 20 * SLOWER) -> str:
    """Return a configuration whose policy leaves KSM to others, so that the test has ksmd merge."""
    names = ", ".join(f'"{one}"' for one in patterns)
    law = f'on_conflict = "yield"\ncoalesce_ms = 20\ncall_timeout_s = {call_timeout_s}\n'
    keys = f'private_enforce = "unmerge"\nprivate_guests = [{names}]\n'
    return f'{law}{keys}[adaptive]\nengage = "never"\n'


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    return small_pages_libvirtd


class Merged:
    """What the kernel has merged of each guest, once ksmd has been over all of it."""

    def __init__(self, ksm: Ksm, daemon: PrivateLibvirtd) -> None:
        self._ksm, self._daemon = ksm, daemon

    def __call__(self, *names: str) -> list[bool]:
        self._ksm.merge_all()
        found = [merged_kib(self._daemon.guest_pid(name)) for name in names]
        assert all(kib < BESIDE_KIB or kib >= COMMON_MIB * 1024 for kib in found)
        return [kib >= COMMON_MIB * 1024 for kib in found]


@pytest.fixture
def merged(ksm: Ksm, libvirtd: PrivateLibvirtd) -> Merged:
    return Merged(ksm, libvirtd)


def wait_known(agent: AgentProcess, unmerged: Sequence[str], exposed: Sequence[str] = ()) -> None:
    """Wait until the agent has these guests as unmerged, and these as private and able to merge."""

    def known() -> tuple[list[str], list[str]]:
        switched = agent.home.told("status")["switched"]
        return sorted(one["name"] for one in switched["unmerged"]), agent.step()["exposed"]

    wait_until(lambda: known() == ([*unmerged], [*exposed]), HANG_S, f"{unmerged} to be unmerged, {exposed} not")


def told_failed(agent: AgentProcess) -> list[dict[str, str]]:
    failed: list[dict[str, str]] = agent.home.told("status")["switched"]["failed"]
    return failed


def switches(agent: AgentProcess) -> list[str]:
    return [line["guest"] for line in agent.lines("guest_unmerged") + agent.lines("guest_merging")]


def test_a_private_guest_is_unmerged_once_a_run_and_merges_again_when_it_is_private_no_longer(
    guest: GuestFactory, libvirtd: PrivateLibvirtd, merged: Merged, start_agent: AgentFactory
) -> None:
    agent = start_agent(enforcing(["vault"]))
    names = ("one", "two", "vault")
    *_, vault = guest.together(*(twin(name, seed) for seed, name in enumerate(names)))
    assert agent.wait_for("guest_unmerged")["guest"] == "vault"
    assert merged(*names) == [True, True, False]
    assert TAINTED in taints(vault.domain)
    wait_known(agent, ["vault"])
    by_name = {one["name"]: one for one in agent.home.told("guests", "--connect", libvirtd.uri)["guests"]}
    assert (by_name["vault"]["obstacles"], by_name["one"]["obstacles"]) == (["unmerged"], [])
    judged = agent.home.told("doctor", "--only", "private_guests", "--connect", libvirtd.uri)
    assert judged["worst"] == "PASS", judged
    events = agent.home.told("status")["events"]
    assert ("vault", "unmerged", "private") in [(one["domain"], one["kind"], one["detail"]) for one in events]

    agent.kill()
    agent = start_agent(None)
    wait_known(agent, ["vault"])
    libvirtd.restart()
    agent.wait_for("libvirt_disconnected")
    agent.wait_for_pass("connected")
    wait_known(agent, ["vault"])
    assert switches(agent) == [], "it is known what was done"
    assert merged(*names) == [True, True, False]

    agent.home.configure(enforcing(["*", "!one", "!vault"]))
    agent.reload()
    assert agent.wait_for("guest_merging")["guest"] == "vault"
    wait_known(agent, ["two"])
    assert merged(*names) == [True, False, True]

    agent.home.configure(enforcing([]))
    agent.reload()
    wait_known(agent, [])
    declare_private(libvirtd.uri, "one")
    assert agent.wait_for("guest_unmerged")["guest"] == "one", "nobody has asked for a pass"
    wait_known(agent, ["one"])
    assert merged(*names) == [False, True, True]
    assert agent.home.run("guest", "merge", "one", "--connect", libvirtd.uri).stderr == ""
    wait_known(agent, [], ["one"])
    assert merged(*names) == [True, True, True], "what a command has chosen holds for that run"


def test_a_guest_that_is_restored_has_forgotten_it_and_is_unmerged_again(
    guest: GuestFactory,
    libvirtd: PrivateLibvirtd,
    libvirt_conn: libvirt.virConnect,
    merged: Merged,
    start_agent: AgentFactory,
    tmp_path: Path,
) -> None:
    agent = start_agent(enforcing(["vault"]))
    _, vault = guest.together(twin("one", 1), twin("vault", 2))
    agent.wait_for("guest_unmerged")
    vault.domain.save(str(tmp_path / "saved"))
    libvirt_conn.restore(str(tmp_path / "saved"))
    try:
        agent.wait_for("guest_unmerged")
        assert merged("vault") == [False]
        wait_known(agent, ["vault"])
    finally:
        os.kill(libvirtd.guest_pid("vault"), signal.SIGKILL)


def test_memory_that_is_plugged_into_a_private_guest_is_unmerged_too(
    guest: GuestFactory, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    agent = start_agent(enforcing(["vault"]))
    vault = guest(twin("vault", 1, hotplug_mib=2 * DIMM_MIB))
    agent.wait_for("guest_unmerged")
    vault.domain.attachDevice(memory_device_xml(DIMM_MIB))
    agent.wait_for("guest_unmerged")
    shown = agent.home.told("guest", "show", "vault", "--backends", "--connect", libvirtd.uri)
    assert [one["merge"] for one in shown["qemu"]["backends"]] == [False, False]
    assert shown["mergeable_bytes"] < BESIDE_KIB * 1024


def test_a_guest_that_hangs_costs_no_other_and_an_agent_killed_meanwhile_leaves_it_to_the_next(
    guest: GuestFactory, libvirt_conn: libvirt.virConnect, merged: Merged, start_agent: AgentFactory
) -> None:
    hung, other, _ = guest.together(twin("vault-1", 1), twin("vault-2", 2), twin("one", 3))
    os.kill(hung.pid, signal.SIGSTOP)
    agent = start_agent(enforcing(["vault-*"], call_timeout_s=3 * SLOWER))
    wait_known(agent, ["vault-2"], ["vault-1"])
    domain = libvirt_conn.lookupByUUIDString(hung.domain.UUIDString())
    wait_until(lambda: domain.controlInfo()[0] == OCCUPIED, HANG_S, "its monitor to be asked")
    agent.kill()
    os.kill(hung.pid, signal.SIGCONT)
    agent = start_agent(None)
    wait_known(agent, ["vault-1", "vault-2"])
    assert switches(agent) == ["vault-1"]
    assert merged("vault-1", other.spec.name) == [False, False]


@pytest.mark.usefixtures("ksm")
def test_guests_whose_monitors_hang_hold_up_no_list_of_the_guests(
    guest: GuestFactory, start_agent: AgentFactory
) -> None:
    """libvirtd reads no more of a client that has five calls out: monitors, and dirty rates that wait for them."""
    hung = guest.together(*(twin(f"vault-{number}", number) for number in range(5)))
    for one in hung:
        os.kill(one.pid, signal.SIGSTOP)
    keys = 'private_enforce = "unmerge"\nprivate_guests = ["vault-*"]\n'
    agent = start_agent(f"call_timeout_s = {3 * SLOWER}\n{keys}{SWEEPING_LAW}")
    try:
        wait_until(lambda: len(told_failed(agent)) == MAX_HANGING, HANG_S, "monitors to hang")
        agent.home.configure(f"call_timeout_s = 600\n{keys}{SWEEPING_LAW}")
        agent.reload()
        before = agent.lines("pass_failed")
        guest(twin("other", 9), settle=False)
        agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 6)
        agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "idle")
    finally:
        for one in hung:
            os.kill(one.pid, signal.SIGCONT)
    assert agent.lines("pass_failed") == before, "none but what a busy machine may have made late"
