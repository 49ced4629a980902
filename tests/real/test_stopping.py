"""Nothing locks root out: what stops virtksm, and what looks, ends and says so, whatever hangs, is broken or is away.

The table is the promise: each row is a command, each column what it meets. A command that hangs fails by a guard; how
long it takes is not judged. None of it reaches libvirt, so KSM is not touched.
"""

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.hang import SLOWER
from tests.lab.ksm import DEFAULTS, IDLE, Ksm
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.listening import listening
from tests.real.agent_process import STEPPING_LAW, AgentFactory, AgentHome
from virtksm.paths import RuntimePaths
from virtksm.store.state import StateFile

pytestmark = pytest.mark.real

SHORT = f"call_timeout_s = {SLOWER}\n"
BROKEN = f'{SHORT}policy = "best"\n'
SWITCHED = "paused, but no pass was possible yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What is wrong with the world that a command meets; without any of it, neither libvirt nor an agent is there."""

    libvirtd_is_wedged: bool = False
    agent_is_wedged: bool = False
    config_is_broken: bool = False

    @contextmanager
    def run(self, command: str) -> Iterator[tuple[AgentHome, subprocess.CompletedProcess[str]]]:
        """Run a command in a world of its own that is in this trouble."""
        with ExitStack() as stack:
            home = AgentHome(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="va", dir="/tmp"))))
            home.configure(BROKEN if self.config_is_broken else SHORT)
            sock = home.folder / "libvirt"
            if self.libvirtd_is_wedged:
                stack.enter_context(listening(sock))
            if self.agent_is_wedged:
                stack.enter_context(listening(Path(RuntimePaths(str(home.runtime_dir)).control_socket)))
            yield home, home.run(*command.split(), "--connect", f"qemu:///system?socket={sock}", hurried=True)


TROUBLES = {
    "no libvirtd": Trouble(),
    "wedged libvirtd": Trouble(libvirtd_is_wedged=True),
    "wedged agent": Trouble(agent_is_wedged=True),
    "broken configuration": Trouble(config_is_broken=True),
    "all of it": Trouble(libvirtd_is_wedged=True, agent_is_wedged=True, config_is_broken=True),
}
CODES = {
    "pause": (3, 3, 3, 3, 3),
    "pause --direct": (3, 3, 3, 3, 3),
    "resume": (3, 3, 3, 2, 2),
    "restore": (3, 3, 3, 3, 3),
    "restore --on-exit": (3, 3, 3, 3, 3),
    "verify-off": (1, 1, 1, 1, 1),
    "unmerge --check": (0, 0, 0, 0, 0),
    "retune": (3, 3, 1, 2, 1),
    "guests": (3, 3, 3, 2, 2),
    "headroom": (3, 3, 3, 2, 2),
    "doctor": (1, 1, 1, 1, 1),
    "status": (1, 1, 1, 1, 1),
}
"""Exit codes in the order of TROUBLES: 1 failed or not verified, 2 configuration, 3 libvirt."""


@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_command_ends_and_says_by_its_exit_code_what_it_met(trouble: str) -> None:
    """All commands at once, as some wait for their limit."""

    def meet(command: str) -> tuple[str, int]:
        with TROUBLES[trouble].run(command) as (home, done):
            assert "Traceback" not in done.stderr
            if command in ("pause", "pause --direct"):
                assert home.switch.exists(), done.stderr
                assert SWITCHED in done.stderr
            if TROUBLES[trouble].config_is_broken and command in ("pause", "resume", "restore", "restore --on-exit"):
                assert done.stderr.count(f"{home.config}: policy: is 'best'") == 1
            return command, done.returncode

    with ThreadPoolExecutor(len(CODES)) as beside:
        found = dict(beside.map(meet, CODES))
    column = list(TROUBLES).index(trouble)
    assert found == {command: codes[column] for command, codes in CODES.items()}


def run_in_turn(home: AgentHome, uri: str, *commands: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run one after the other: what holds the host's lock may not keep the next from meeting what it should."""
    return {command: home.run(*command.split(), "--connect", uri, hurried=True) for command in commands}


def test_a_real_libvirtd_that_is_frozen_holds_no_command_and_off_holds_when_it_goes_on(
    ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    agent_home.configure(f"{SHORT}{STEPPING_LAW}")
    assert agent_home.run("retune", "--connect", libvirtd.uri).returncode == 0
    libvirtd.pause()
    try:
        commands = ("pause", "restore", "restore --on-exit", "retune", "guests", "headroom")
        ended = run_in_turn(agent_home, libvirtd.uri, *commands)
    finally:
        libvirtd.resume()
    for command, done in ended.items():
        assert (command, done.returncode) == (command, 3)
        assert "systemctl restart libvirtd" in done.stderr
    assert SWITCHED in ended["pause"].stderr
    assert "ksmd goes on scanning on this machine until a pass is possible" in ended["pause"].stderr
    assert "echo 0 > /sys/kernel/mm/ksm/run" in ended["pause"].stderr
    agent_home.configure(STEPPING_LAW)
    assert agent_home.run("retune", "--connect", libvirtd.uri).returncode == 0
    assert ksm.settings() == IDLE


def test_a_frozen_agent_keeps_nobody_from_switching_off_and_on(
    ksm: Ksm, agent_home: AgentHome, start_agent: AgentFactory
) -> None:
    agent = start_agent(f"call_timeout_s = {5 * SLOWER}\n{STEPPING_LAW}")  # a busy machine's pass needs no more
    agent.signal(signal.SIGSTOP)
    try:
        off = agent_home.run("pause", "--connect", agent.uri, hurried=True)
        assert (off.returncode, ksm.settings()) == (0, IDLE)
        assert "the agent could not do it" in off.stderr
        assert "this is done without it" in off.stderr
    finally:
        agent.signal(signal.SIGCONT)
    assert agent.step()["decision"]["rule"] == "paused"
    assert ksm.settings() == IDLE
    on = agent_home.run("resume", "--connect", agent.uri)
    assert (on.returncode, on.stderr) == (0, "")
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS


def test_a_pass_that_never_ends_keeps_nobody_from_the_switch(
    ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    ksm.write(pages_to_scan=7)
    with StateFile(RuntimePaths(str(agent_home.runtime_dir)), "local").locked():
        ended = run_in_turn(agent_home, libvirtd.uri, "pause", "pause --direct")
    for done in ended.values():
        assert done.returncode == 1
        assert f"{SWITCHED}: another virtksm pass holds" in done.stderr
        assert "ksmd goes on scanning" in done.stderr
    assert agent_home.switch.exists()


def test_a_broken_configuration_keeps_nobody_from_off_restore_and_their_proof(
    ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    assert agent_home.run("retune", "--connect", libvirtd.uri).returncode == 0
    agent_home.configure("[[")
    off = agent_home.run("pause", "--connect", libvirtd.uri)
    assert (off.returncode, ksm.settings()) == (0, IDLE)
    assert off.stderr.startswith("virtksm: warning: the configuration has faults")
    assert len(off.stderr.splitlines()) == 1
    assert agent_home.run("unmerge", "--check").returncode == 0
    verified = agent_home.run("verify-off", "--json")
    assert (verified.returncode, json.loads(verified.stdout)["doubts"]) == (0, [])
    on = agent_home.run("resume", "--connect", libvirtd.uri)
    assert (on.returncode, ksm.settings()) == (2, IDLE)
    restored = agent_home.run("restore", "--on-exit", "--json", "--connect", libvirtd.uri)
    assert (restored.returncode, json.loads(restored.stdout)["action"]) == (0, "restore")
    assert ksm.settings() == DEFAULTS
