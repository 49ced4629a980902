"""The hook with the real agent and the real one-shot: a guest's start changes KSM through the hook, agent or not.

Each step of the law adds one page to pages_to_scan (STEPPING_LAW), so the kernel itself counts the passes.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import libvirt
import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.hook import Listener
from tests.lab.hooked_libvirtd import HookedLibvirtd, hooked_libvirtd, killed_when_hanging
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import VIRTKSM, AgentFactory, AgentHome, AgentProcess

pytestmark = pytest.mark.real

HANG_S = 30.0


@pytest.fixture(scope="module")
def hooked() -> Iterator[HookedLibvirtd]:
    with hooked_libvirtd() as lent:
        yield lent


@pytest.fixture
def libvirtd(hooked: HookedLibvirtd) -> Iterator[PrivateLibvirtd]:
    """Stand in for the session's libvirtd, for `guest` and `start_agent` too."""
    if not hooked.daemon.running:
        hooked.daemon.stop()
        hooked.daemon.start()
    with killed_when_hanging(hooked.daemon):
        yield hooked.daemon


class OneShots:
    """The real virtksm where the hook looks for it, and what the passes that it made say."""

    def __init__(self, hooked: HookedLibvirtd, home: AgentHome) -> None:
        self._output = home.folder / "passes"
        self.program = home.folder / "virtksm"
        # The installed program needs no options; here it is told this test's place. A hook's virtksm prints for nobody.
        command = [VIRTKSM, "--config", str(home.config), "--runtime-dir", str(home.runtime_dir)]
        self.program.write_text(
            f"#!/bin/sh\nexport LIBVIRT_DEFAULT_URI={shlex.quote(hooked.daemon.uri)}\n"
            f'exec {shlex.join(command)} "$@" --json >>{shlex.quote(str(self._output))} 2>&1\n',
            encoding="utf-8",
        )
        self.program.chmod(0o755)
        hooked.install(fifo=home.poke_fifo, virtksm=self.program)

    def passes(self) -> list[Mapping[str, Any]]:
        """Read the passes so far; raises ValueError with whatever else a one-shot said."""
        if not self._output.exists():
            return []
        return [json.loads(line) for line in self._output.read_text(encoding="utf-8").splitlines()]

    def wait_guests(self, count: int) -> None:
        """Wait until the last pass has seen so many guests."""

        def seen() -> bool:
            passes = self.passes()
            return bool(passes) and passes[-1]["sensed"]["guests"] == count

        wait_until(seen, HANG_S, f"a pass that sees {count} guests")


@pytest.fixture
def one_shots(
    libvirtd: PrivateLibvirtd,
    hooked: HookedLibvirtd,
    agent_home: AgentHome,
    ksm: Ksm,  # noqa: ARG001 - given back when this has ended
) -> Iterator[OneShots]:
    """Install the hook for this test, with the real one-shot; wait for the last of them before KSM is given back."""
    yield OneShots(hooked, agent_home)
    nowhere = hooked.daemon.root / "nowhere"
    hooked.install(fifo=nowhere, virtksm=nowhere)
    assert libvirtd.running
    wait_until(lambda: not retuning(libvirtd), HANG_S, "the one-shots to end")


def retuning(libvirtd: PrivateLibvirtd) -> list[int]:
    """Find the one-shots that hooks have started: they live in libvirtd's mount namespace."""
    found = []
    for pid in libvirtd.processes():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if b"--coalesce" in arguments:
            found.append(pid)
    return found


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds a flock on this file, without taking part."""
    if not path.exists():
        return False
    held = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    return any(lock[5].endswith(f":{path.stat().st_ino}") for lock in held if lock[1] == "FLOCK")


def wait_poked(agent: AgentProcess, guests: int) -> None:
    """Wait for a pass that a poke asked for, and until the agent's last pass has seen so many guests.

    It may be the same pass or a later one: a poke comes a moment before or after libvirt's own event.
    """
    agent.wait_for("pass_completed", lambda line: "poke" in line["triggers"])

    def seen() -> bool:
        return bool(agent.lines("pass_completed")[-1]["sensed"]["guests"] == guests)

    wait_until(seen, HANG_S, f"a pass that sees {guests} guests")


def tiny(name: str) -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=16, own_mib=1)


def test_without_an_agent_a_start_a_stop_and_a_restored_guest_change_the_setting_in_the_kernel(
    ksm: Ksm, one_shots: OneShots, guest: GuestFactory, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    assert ksm.read("pages_to_scan") == 100
    running = guest(tiny("one"), settle=False)
    one_shots.wait_guests(1)
    assert ksm.read("pages_to_scan") == 1

    running.domain.save(str(tmp_path / "saved"))
    one_shots.wait_guests(0)
    assert ksm.read("pages_to_scan") == 2
    assert [made["changed"].get("pages_to_scan") for made in one_shots.passes()] == [1, 2]
    assert [made["triggers"] for made in one_shots.passes()] == [["retune"], ["retune"]]

    connection = libvirt.open(libvirtd.uri)
    try:
        connection.restore(str(tmp_path / "saved"))
        one_shots.wait_guests(1)
        wait_until(lambda: not retuning(libvirtd), HANG_S, "the one-shots to end")
        assert ksm.read("pages_to_scan") == len(one_shots.passes())
    finally:
        connection.lookupByName("one").destroy()
        connection.close()


def test_without_an_agent_the_last_pass_of_a_burst_sees_every_guest(
    ksm: Ksm, one_shots: OneShots, guest: GuestFactory, libvirtd: PrivateLibvirtd
) -> None:
    guest(tiny("first"), paused=True)  # opens the factory's connection
    with ThreadPoolExecutor(4) as together:
        list(together.map(lambda number: guest(tiny(f"burst{number}"), paused=True), range(5)))
    wait_until(lambda: not retuning(libvirtd), HANG_S, "the one-shots to end")
    made = one_shots.passes()
    assert made[-1]["sensed"]["guests"] == 6
    assert ksm.read("pages_to_scan") == len(made)


def test_while_one_shot_waits_for_its_hook_it_stands_for_every_guest(
    ksm: Ksm, one_shots: OneShots, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    with (
        subprocess.Popen(["sleep", "60"]) as hook,
        subprocess.Popen(
            [one_shots.program, "retune", "--direct", "--coalesce"],
            env={**os.environ, "VIRTKSM_HOOK_PID": str(hook.pid)},
        ) as waiting,
    ):
        wait_until(lambda: is_locked(agent_home.runtime_dir / "agent" / "coalesce.lock"), HANG_S, "it to wait")
        for name in ("one", "two", "three"):
            guest(tiny(name), paused=True)
        wait_until(lambda: not retuning(libvirtd), HANG_S, "the guests' own one-shots to leave")
        assert one_shots.passes() == []
        assert ksm.read("pages_to_scan") == 100
        hook.kill()
        hook.wait()  # the hook's parent is libvirt, which buries it at once, too
        assert waiting.wait(HANG_S) == 0
    assert [made["sensed"]["guests"] for made in one_shots.passes()] == [3]
    assert ksm.read("pages_to_scan") == 1


def test_without_an_agent_a_libvirtd_that_comes_back_is_asked_once_it_answers(
    ksm: Ksm, one_shots: OneShots, guest: GuestFactory, libvirtd: PrivateLibvirtd
) -> None:
    running = guest(tiny("one"), settle=False)
    one_shots.wait_guests(1)
    wait_until(lambda: not retuning(libvirtd), HANG_S, "the one-shot to end")
    libvirtd.kill()
    libvirtd.start()
    wait_until(lambda: len(one_shots.passes()) == 2, HANG_S, "the pass after the reconnect")
    assert one_shots.passes()[-1]["sensed"]["guests"] == 1
    assert ksm.read("pages_to_scan") == 2
    assert libvirtd.guest_pid("one") == running.pid


def test_an_agent_hears_the_hook_and_no_one_shot_is_started(
    ksm: Ksm, one_shots: OneShots, start_agent: AgentFactory, guest: GuestFactory, libvirtd: PrivateLibvirtd
) -> None:
    agent = start_agent()
    running = guest(tiny("one"), settle=False)
    wait_poked(agent, 1)
    running.domain.destroy()
    wait_poked(agent, 0)
    assert retuning(libvirtd) == []
    assert one_shots.passes() == []
    assert agent.stop() == 0
    assert ksm.read("pages_to_scan") == 100


def test_a_stopped_agent_whose_fifo_is_full_holds_nobody_up_and_hears_of_it_later(
    ksm: Ksm, one_shots: OneShots, start_agent: AgentFactory, guest: GuestFactory, tmp_path: Path
) -> None:
    agent = start_agent()
    agent.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, agent.pid, os.WSTOPPED | os.WNOWAIT)
    with Listener(agent.home.poke_fifo) as other:
        other.fill()
    running = guest(tiny("one"), settle=False)
    assert running.domain.isActive() == 1
    running.domain.save(str(tmp_path / "saved"))
    guest(tiny("two"), settle=False)
    assert ksm.read("pages_to_scan") == 1, "the agent is not stopped"

    agent.signal(signal.SIGCONT)
    wait_poked(agent, 1)
    assert ksm.read("pages_to_scan") > 1
    assert one_shots.passes() == []


def test_after_the_agents_death_one_shots_go_on_where_it_was_until_the_next_agent(
    ksm: Ksm, one_shots: OneShots, start_agent: AgentFactory, guest: GuestFactory, libvirtd: PrivateLibvirtd
) -> None:
    start_agent().kill()
    assert ksm.read("pages_to_scan") == 1
    assert start_agent.home.poke_fifo.is_fifo()
    guest(tiny("one"), settle=False)
    one_shots.wait_guests(1)
    assert ksm.read("pages_to_scan") == 2

    agent = start_agent()
    guest(tiny("two"), settle=False)
    wait_poked(agent, 2)
    assert retuning(libvirtd) == []
    assert len(one_shots.passes()) == 1
