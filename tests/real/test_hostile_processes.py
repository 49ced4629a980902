"""Strangers' processes under a pass: they hold the lock that reading them takes, and call themselves guests."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.fixtures import GuestFactory, tiny
from tests.lab.lock_holder import HoldLock
from tests.lab.nobody import NOBODY
from tests.real.agent_process import SWEEPING_LAW, AgentFactory
from virtksm.host.local_facts import ProcFacts, boottime_s
from virtksm.model.snapshot import Guest

pytestmark = pytest.mark.real

ANY = "5d1a3c1e-2222-4000-8000-0123456789ab"


def test_a_users_process_whose_lock_is_held_holds_up_no_pass_and_hides_no_guest(
    start_agent: AgentFactory, guest: GuestFactory, hold_lock: HoldLock
) -> None:
    agent = start_agent()
    guest(tiny("before"))
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)
    hold_lock(ANY)
    guest(tiny("under"), settle=False)
    line = agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 2)
    assert line["sensed"]["guests_unread"] == 0
    assert agent.step()["sensed"]["guests_unread"] == 0
    assert agent.home.run("retune", "--connect", agent.uri).returncode == 0
    assert agent.home.run("guests", "--connect", agent.uri).returncode == 0
    assert agent.lines("pass_failed") == agent.lines("warning_raised") == []
    assert agent.stop() == 0


def test_roots_process_whose_lock_is_held_is_named_once_and_the_passes_go_on(
    start_agent: AgentFactory, guest: GuestFactory, hold_lock: HoldLock
) -> None:
    agent = start_agent()
    pid = hold_lock(ANY, 0)
    guest(tiny("under"), settle=False)
    warning = agent.wait_for("warning_raised")["warning"]
    assert warning.startswith(f"process {pid} (qemu-system-x86) ")
    assert "libvirt" not in warning
    while agent.step()["sensed"]["guests_unread"]:
        pass
    agent.step()
    assert len(agent.lines("warning_raised")) == 1
    assert agent.lines("pass_failed") == []
    assert agent.stop() == 0


@pytest.mark.needs("ksm_stat:ksm_merge_any")
def test_a_look_at_all_processes_leaves_out_the_one_that_hangs(
    start_agent: AgentFactory, guest: GuestFactory, hold_lock: HoldLock
) -> None:
    """As root: the kernel takes the lock for these fields of ksm_stat."""
    pid = hold_lock(ANY)
    guest(tiny("one"))
    agent = start_agent(SWEEPING_LAW)
    assert agent.step()["sensed"]["guests_unread"] == 0
    (line,) = agent.lines("warning_raised")
    assert line["warning"].startswith(f"process {pid} ")
    assert agent.lines("pass_failed") == []
    assert agent.stop() == 0


Pretend = Callable[..., int]


@pytest.fixture
def pretend(tmp_path: Path) -> Iterator[Pretend]:
    """Lend a function that starts a user's process with a QEMU's name and a guest's UUID, and returns its pid."""
    tmp_path.chmod(0o755)
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.symlink_to("/bin/sh")
    with ExitStack() as stack:

        def start(uuid: str, user: int) -> int:
            arguments = ["-c", "echo up; read line", "sh", "-uuid", uuid, "-machine", "mem-merge=off"]
            process = stack.enter_context(
                subprocess.Popen(
                    ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", qemu, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            return process.pid

        yield start


@pytest.mark.ksm
def test_who_calls_himself_a_guest_decides_nothing(guest: GuestFactory, pretend: Pretend) -> None:
    real = guest(tiny("one"))
    uuid = real.domain.UUIDString()
    running = (Guest(uuid=uuid, name="one", domain_id=real.domain.ID()),)
    pid = pretend(uuid, NOBODY)
    facts = ProcFacts(boottime_s)
    (process,) = facts.processes(running)
    assert process is not None
    assert "mem-merge=off" not in process.arguments
    assert (facts.guests(running)[0].rss_kib or 0) > 8 * 1024, "a shell has 2 MiB"
    assert facts.trouble == ()

    pid = pretend(uuid, 0)
    facts = ProcFacts(boottime_s)
    assert facts.guests(running)[0].rss_kib is None
    (trouble,) = facts.trouble
    assert all(str(one) in trouble for one in (real.pid, pid))


@pytest.mark.ksm
def test_a_process_of_the_user_whom_libvirt_runs_qemu_as_is_believed(pretend: Pretend, tmp_path: Path) -> None:
    pretend(ANY, NOBODY)
    running = (Guest(uuid=ANY, name="one", domain_id=1),)
    home = tmp_path / "qemu"
    home.mkdir()
    assert ProcFacts(boottime_s, qemu_home=str(home)).guests(running)[0].rss_kib is None
    os.chown(home, NOBODY, NOBODY)
    assert ProcFacts(boottime_s, qemu_home=str(home)).guests(running)[0].rss_kib is not None
