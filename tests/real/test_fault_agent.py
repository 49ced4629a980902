"""Faults of the agent itself: killed at every step of a pass, stopped in the middle of one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import STEPPING_LAW, AgentFactory

pytestmark = pytest.mark.real

KILLED_PASS = Path(__file__).with_name("killed_pass.py")
ADMINISTRATORS = (123, 45)


def run_pass(start_agent: AgentFactory, uri: str, *, last_step: int) -> tuple[int, list[str]]:
    """Run a pass of a process of its own; return its exit code and the steps that it has done."""
    home = start_agent.home
    done = subprocess.run(
        [sys.executable, KILLED_PASS, uri, home.config, home.runtime_dir, str(last_step)],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.split("\n")[:-1]


def test_killed_at_every_step_of_a_pass_the_baseline_stays_the_administrators(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    start_agent.home.configure(STEPPING_LAW)
    ksm.write(pages_to_scan=123, sleep_millisecs=45)
    code, steps = run_pass(start_agent, libvirtd.uri, last_step=0)
    assert code == 0
    assert steps.index("save") < steps.index("set pages_to_scan") < steps.index("set sleep_millisecs")
    assert steps[-1] == "save", "what was confirmed is kept"
    first = start_agent()
    assert first.stop() == 0
    for step, name in enumerate(steps, start=1):
        assert ksm.settings() == ADMINISTRATORS
        (start_agent.home.runtime_dir / "agent" / "local.json").unlink()
        code, done = run_pass(start_agent, libvirtd.uri, last_step=step)
        assert (code, done) == (-signal.SIGKILL, steps[:step])
        agent = start_agent()
        assert agent.lines("foreign_value_found") == [], f"killed after {name} (step {step})"
        assert ksm.settings() != ADMINISTRATORS
        assert agent.stop() == 0
        assert ksm.settings() == ADMINISTRATORS, f"killed after {name} (step {step})"


def test_a_sigterm_in_the_middle_of_a_pass_lets_it_end_and_restores(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    ksm.write(pages_to_scan=123, sleep_millisecs=45)
    agent = start_agent()
    libvirtd.pause()
    try:
        agent.signal(signal.SIGUSR1)
        wait_until(lambda: agent.home.is_held("local"), HANG_S, "the pass to have begun")
        agent.signal(signal.SIGTERM)
    finally:
        libvirtd.resume()
    assert agent.wait_ended() == 0
    assert len(agent.lines("pass_completed")) == 2, "the pass was finished"
    assert ksm.settings() == ADMINISTRATORS
