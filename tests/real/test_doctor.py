"""`virtksm doctor` on the real kernel, a real libvirt and real guests: it says what is, and changes nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import reaper
from tests.lab.fixtures import QEMU_CACHE
from tests.lab.hang import HANG_S
from tests.lab.hook import install_hook
from tests.lab.ksm import Ksm, wait_agreed, wait_until
from tests.lab.ksm import KsmState as KsmFiles
from tests.lab.ksmtuned_package import find_ksmtuned_file
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import PARKING_LAW, AgentFactory, AgentHome
from virtksm.errors import Cause
from virtksm.host.libvirt_connection import open_host

pytestmark = pytest.mark.real

REAPER = str(Path(reaper.__file__))

Told = Mapping[str, Mapping[str, str]]


def examine(home: AgentHome, uri: str, *, hurried: bool = False) -> tuple[Told, str, int]:
    """Return the findings by the check's name, the worst verdict, and the exit code."""
    done = home.run("doctor", "--json", "--connect", uri, hurried=hurried)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    return {one["check"]: one for one in told["findings"]}, told["worst"], done.returncode


def verdict(home: AgentHome, uri: str, check: str) -> tuple[str, str]:
    found = examine(home, uri)[0][check]
    return found["verdict"], found["detail"]


def test_with_an_agent_it_is_all_well_until_something_is_in_the_way_which_strict_makes_count(
    ksm: Ksm, start_agent: AgentFactory
) -> None:
    agent = start_agent(PARKING_LAW)

    def in_the_way() -> set[str]:
        return {
            check
            for check, one in examine(agent.home, agent.uri)[0].items()
            # The machine's swap may be full; and where systemd runs, no unit switches on what the test has switched on.
            if one["verdict"] in ("WARN", "FAIL") and one["group"] != "memory" and check != "ksm_boot"
        }

    wait_agreed(lambda: (in_the_way(), set()), HANG_S, "others on this machine, as a ksmtuned, to be gone")
    findings, _, code = examine(agent.home, agent.uri)
    assert code == 0
    assert findings["agent"]["detail"] == f"serves {agent.uri}"
    assert findings["libvirt_parameters"]["detail"].startswith("pages_to_scan 0, sleep_millisecs 10000")
    ksm.write(run=2)
    ksm.write(max_page_sharing=1000)
    ksm.write(run=1)
    done = agent.home.run("doctor", "--connect", agent.uri)
    assert (done.returncode, ": max_page_sharing is 1000" in done.stdout) == (0, True)
    assert agent.home.run("doctor", "--strict", "--connect", agent.uri).returncode == 1


@pytest.mark.usefixtures("ksm")
def test_it_changes_nothing_and_tells_who_may_set_without_setting(
    libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    before, logged = KsmFiles.save(), libvirtd.log.read_text(encoding="utf-8")
    assert examine(agent_home, libvirtd.uri)[0]["permission"]["verdict"] == "PASS"
    assert open_host(f"{libvirtd.uri}-ro", read_only=True).setting_refused() is Cause.READ_ONLY
    assert KsmFiles.save() == before
    open_host(libvirtd.uri).version()  # when that is answered, the daemon has seen the doctor leave
    assert libvirtd.log.read_text(encoding="utf-8") == logged, "a connection that ends in its midst is logged"
    assert sorted(path.name for path in agent_home.folder.iterdir()) == ["virtksm.toml"]


def test_a_hook_that_came_after_libvirtd_until_that_starts_again(tmp_path: Path, agent_home: AgentHome) -> None:
    with PrivateLibvirtd(cache=QEMU_CACHE) as daemon:
        assert verdict(agent_home, daemon.uri, "hook_installed")[0] == "INFO"
        hook = daemon.hooks_dir / "qemu.d" / "virtksm"
        hook.parent.mkdir()
        install_hook(hook, fifo=tmp_path / "fifo", virtksm=tmp_path / "virtksm")
        found, detail = verdict(agent_home, daemon.uri, "hook_seen")
        assert found == "WARN"
        assert f"newer than {daemon.name} (pid {daemon.pid})" in detail
        another = hook.with_name("another")
        another.write_text("#!/bin/sh\n", encoding="ascii")
        another.chmod(0o755)
        daemon.restart()
        findings = examine(agent_home, daemon.uri)[0]
        assert findings["hook_installed"]["detail"] == "/etc/libvirt/hooks/qemu.d/virtksm"
        assert findings["hook_seen"]["verdict"] == findings["hook_executable"]["verdict"] == "PASS"
        hook.chmod(0o644)
        assert verdict(agent_home, daemon.uri, "hook_executable")[0] == "FAIL"
        install_hook(hook, fifo=tmp_path / "fifo", virtksm=tmp_path / "virtksm")
        assert verdict(agent_home, daemon.uri, "hook_seen")[0] == "PASS", "another hook was there before"


@contextmanager
def ksmtuned(pid_file: Path) -> Iterator[None]:
    """Run Debian's own ksmtuned, which sleeps a minute before it writes anything."""
    script = find_ksmtuned_file("usr/sbin/ksmtuned")
    with subprocess.Popen(
        [sys.executable, "-I", "-S", REAPER, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PIDFILE": str(pid_file)},
    ):
        wait_until(lambda: pid_file.exists() and pid_file.read_text(encoding="ascii") != "", HANG_S, "ksmtuned")
        yield


@pytest.mark.usefixtures("ksm")  # beside it, no other test finds that all is well
def test_the_real_ksmtuned_is_seen_while_it_runs(
    tmp_path: Path, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    with ksmtuned(tmp_path / "pid"):
        assert verdict(agent_home, libvirtd.uri, "ksmtuned")[0] == "FAIL"
    wait_agreed(lambda: (verdict(agent_home, libvirtd.uri, "ksmtuned")[0], "PASS"), HANG_S, "no ksmtuned to be seen")


class BlindLibvirtd(PrivateLibvirtd):
    """A private libvirtd to which /sys is read-only, as to one in a container."""

    def __init__(self) -> None:
        super().__init__(cache=QEMU_CACHE)
        script = 'mount -o remount,bind,ro /sys && exec "$@"'
        self._reaper += ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "blind"]


@pytest.mark.usefixtures("ksm")  # what there is to write depends on KSM's settings
def test_a_libvirtd_that_cannot_write_to_sys(agent_home: AgentHome) -> None:
    with BlindLibvirtd() as daemon:
        found, detail = verdict(agent_home, daemon.uri, "sys_writable")
        assert (found, f"{daemon.name} (pid {daemon.pid}) sees /sys read-only" in detail) == ("FAIL", True)
        assert agent_home.run("retune", "--connect", daemon.uri).returncode == 4, "it says the truth"


def test_a_libvirtd_that_hangs_is_a_finding(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    libvirtd.pause()
    try:
        findings, worst, code = examine(agent_home, libvirtd.uri, hurried=True)
    finally:
        libvirtd.resume()
    assert "does not answer within" in findings["libvirt_reachable"]["detail"]
    assert (worst, code) == ("FAIL", 1)
    assert findings["sys_writable"]["detail"] == f"{libvirtd.name} (pid {libvirtd.pid}) sees it writable"


def test_what_a_killed_agent_leaves_scanning(libvirtd: PrivateLibvirtd, start_agent: AgentFactory) -> None:
    agent = start_agent()
    agent.step()
    assert verdict(agent.home, agent.uri, "stranded") == ("PASS", "no")
    agent.kill()
    findings, _, code = examine(agent.home, agent.uri)
    assert (findings["agent"]["verdict"], findings["stranded"]["verdict"], code) == ("WARN", "FAIL", 1)
    assert "no agent runs, and ksmd goes on with its settings: 2 pages" in findings["stranded"]["detail"]
    assert agent.home.run("restore", "--connect", libvirtd.uri).returncode == 0
    assert verdict(agent.home, agent.uri, "stranded") == ("PASS", "no")


@pytest.mark.usefixtures("ksm")
def test_somebody_without_rights_gets_an_answer(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    done = run_as_nobody("--runtime-dir", str(agent_home.runtime_dir), "doctor", "--json", "--connect", libvirtd.uri)
    assert (done.returncode, done.stderr) == (1, "")
    findings = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert findings["libvirt_reachable"]["verdict"] == "FAIL"
    assert findings["ksm_run"]["verdict"] == "PASS"
    assert findings["permission"]["detail"] == "no connection to libvirt"
