"""`virtksm doctor` on the real kernel, a real libvirt and real guests: it says what is, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from demo.guests import PayloadGuest
from tests.lab import reaper
from tests.lab.fixtures import QEMU_CACHE, GuestFactory, RunningGuest
from tests.lab.hook import install_hook
from tests.lab.hooked_libvirtd import hooked_libvirtd
from tests.lab.ksm import Ksm, wait_until
from tests.lab.ksm import KsmState as KsmFiles
from tests.lab.ksmtuned_package import ROOTS, find_ksmtuned_file
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import HANG_S, PARKING_LAW, STEPPING_LAW, AgentFactory, AgentHome
from virtksm.errors import Cause
from virtksm.host.libvirt_connection import LibvirtHost, open_host

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
    findings, worst, code = examine(agent.home, agent.uri)
    assert [one for one in findings.values() if one["verdict"] in ("WARN", "FAIL")] == []
    assert (worst, code) == ("PASS", 0)
    assert findings["agent"]["detail"] == f"serves {agent.uri}"
    assert findings["libvirt_parameters"]["detail"].startswith("pages_to_scan 0, sleep_millisecs 10000")
    ksm.write(run=2)
    ksm.write(max_page_sharing=1000)
    ksm.write(run=1)
    done = agent.home.run("doctor", "--connect", agent.uri)
    assert (done.returncode, ": max_page_sharing is 1000" in done.stdout) == (0, True)
    assert agent.home.run("doctor", "--strict", "--connect", agent.uri).returncode == 1


@pytest.mark.usefixtures("ksm")
def test_it_changes_nothing(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    before, logged = KsmFiles.save(), libvirtd.log.read_text(encoding="utf-8")
    examine(agent_home, libvirtd.uri)
    assert KsmFiles.save() == before
    open_host(libvirtd.uri).version()  # when that is answered, the daemon has seen the doctor leave
    assert libvirtd.log.read_text(encoding="utf-8") == logged, "a connection that ends in its midst is logged"
    assert sorted(path.name for path in agent_home.folder.iterdir()) == ["virtksm.toml"]


def test_the_kernels_advisor_and_its_switch(ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    ksm.write(advisor_mode="scan-time")
    findings, worst, code = examine(agent_home, libvirtd.uri)
    assert (findings["advisor"]["verdict"], worst, code) == ("FAIL", "FAIL", 1)
    ksm.write(advisor_mode="none", run=0)
    assert verdict(agent_home, libvirtd.uri, "ksm_run") == ("FAIL", "run is 0: nothing merges")
    assert verdict(agent_home, libvirtd.uri, "advisor")[0] == "PASS"
    assert agent_home.run("off", "--direct", "--connect", libvirtd.uri).returncode == 0
    findings, _, _ = examine(agent_home, libvirtd.uri)
    assert (findings["ksm_run"]["verdict"], findings["switched_on"]["verdict"]) == ("INFO", "INFO")


@pytest.mark.usefixtures("ksm")
def test_guests_that_cannot_merge_and_private_ones_that_can(
    libvirtd: PrivateLibvirtd, guest: GuestFactory, agent_home: AgentHome
) -> None:
    agent_home.configure(f'private_guests = ["tenant-*"]\n{STEPPING_LAW}')

    def start(name: str, *, nosharepages: bool) -> RunningGuest:
        spec = PayloadGuest(name=name, memory_mib=16, own_mib=1, nosharepages=nosharepages)
        return guest(spec, settle=False)

    start("tenant-a", nosharepages=True)
    wrong = [start("db", nosharepages=True), start("tenant-b", nosharepages=False)]
    findings, worst, code = examine(agent_home, libvirtd.uri)
    assert findings["guests_merge"]["verdict"] == "WARN"
    assert findings["guests_merge"]["detail"] == "1 of 3 cannot: db (nosharepages in its XML)"
    assert findings["private_guests"]["verdict"] == "FAIL"
    assert findings["private_guests"]["detail"] == "1 can merge: tenant-b"
    assert (worst, code) == ("FAIL", 1)
    for one in wrong:
        one.domain.destroy()
    findings, _, _ = examine(agent_home, libvirtd.uri)
    assert (findings["guests_merge"]["verdict"], findings["private_guests"]["verdict"]) == ("PASS", "PASS")
    assert findings["guests_merge"]["detail"] == "1 guests run, 1 of them private and kept out"


@pytest.mark.usefixtures("ksm")
def test_a_private_guest_whose_nosharepages_is_overruled(payload: Path, agent_home: AgentHome) -> None:
    agent_home.configure('private_guests = ["tenant"]\n')
    daemon = PrivateLibvirtd(cache=QEMU_CACHE)
    # As MemoryKSM= does: PR_SET_MEMORY_MERGE before the daemon is executed, for it and all that it starts.
    merging = "import ctypes, os, sys; ctypes.CDLL(None).prctl(67, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    daemon._reaper = [sys.executable, "-c", merging, *daemon._reaper]
    with daemon:
        guests = GuestFactory(daemon, payload)
        try:
            guests(PayloadGuest(name="tenant", memory_mib=16, own_mib=1, nosharepages=True), settle=False)
            found, detail = verdict(agent_home, daemon.uri, "private_guests")
        finally:
            guests.close()
    assert (found, detail.endswith(": tenant")) == ("FAIL", True)


def test_headroom_is_the_kernels_own_count(
    ksm: Ksm, libvirtd: PrivateLibvirtd, guest: GuestFactory, agent_home: AgentHome
) -> None:
    for seed in (1, 2):
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=24, common_mib=8, seed=seed))
    ksm.merge_all()
    found, detail = verdict(agent_home, libvirtd.uri, "headroom")
    needed_mib = (ksm.read("pages_shared") + ksm.read("pages_sharing") + ksm.read("ksm_zero_pages")) * 4 / 1024
    assert found == "PASS"
    assert detail.startswith(f"unmerging takes up to {needed_mib:.1f} MiB, ")


def test_a_hook_that_libvirtd_has_seen(tmp_path: Path, agent_home: AgentHome) -> None:
    with hooked_libvirtd() as hooked:
        assert verdict(agent_home, hooked.daemon.uri, "hook_installed") == (
            "PASS",
            "/etc/libvirt/hooks/qemu.d/virtksm",
        )
        assert verdict(agent_home, hooked.daemon.uri, "hook_seen")[0] == "PASS"
        assert verdict(agent_home, hooked.daemon.uri, "hook_executable")[0] == "PASS"
        (hooked.daemon.hooks_dir / "qemu.d" / "virtksm").chmod(0o644)
        assert verdict(agent_home, hooked.daemon.uri, "hook_executable")[0] == "FAIL"
        hooked.install(fifo=tmp_path / "fifo", virtksm=tmp_path / "virtksm")
        assert verdict(agent_home, hooked.daemon.uri, "hook_seen")[0] == "PASS", "another hook was there before"


def test_a_hook_that_came_after_libvirtd_until_that_starts_again(tmp_path: Path, agent_home: AgentHome) -> None:
    with PrivateLibvirtd(cache=QEMU_CACHE) as daemon:
        assert verdict(agent_home, daemon.uri, "hook_installed")[0] == "INFO"
        folder = daemon.hooks_dir / "qemu.d"
        folder.mkdir()
        install_hook(folder / "virtksm", fifo=tmp_path / "fifo", virtksm=tmp_path / "virtksm")
        found, detail = verdict(agent_home, daemon.uri, "hook_seen")
        assert found == "WARN"
        assert f"newer than libvirtd (pid {daemon.pid})" in detail
        daemon.restart()
        assert verdict(agent_home, daemon.uri, "hook_seen")[0] == "PASS"


@contextmanager
def ksmtuned(pid_file: Path) -> Iterator[None]:
    """Run Debian's own ksmtuned, which sleeps a minute before it writes anything."""
    script = find_ksmtuned_file("usr/sbin/ksmtuned", ROOTS)
    assert script is not None
    started = subprocess.Popen(
        [sys.executable, "-I", "-S", REAPER, script],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PIDFILE": str(pid_file)},
    )
    init = psutil.Process(started.pid)

    def has_ended() -> bool:
        for process in init.children(recursive=True) if started.poll() is None else []:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return started.poll() is not None

    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(encoding="ascii") != "", HANG_S, "ksmtuned")
        yield
    finally:
        wait_until(has_ended, HANG_S, "ksmtuned's end")


@pytest.mark.usefixtures("ksm")  # beside it, no other test finds that all is well
def test_the_real_ksmtuned_is_seen_while_it_runs(
    tmp_path: Path, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    with ksmtuned(tmp_path / "pid"):
        assert verdict(agent_home, libvirtd.uri, "ksmtuned")[0] == "FAIL"
    assert verdict(agent_home, libvirtd.uri, "ksmtuned")[0] == "PASS"


class BlindLibvirtd(PrivateLibvirtd):
    """A private libvirtd to which /sys is read-only, as to one in a container."""

    def __init__(self) -> None:
        super().__init__(cache=QEMU_CACHE)
        script = 'mount -o remount,bind,ro /sys && exec "$@"'
        self._reaper += ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "blind"]


def test_a_libvirtd_that_cannot_write_to_sys(agent_home: AgentHome) -> None:
    with BlindLibvirtd() as daemon:
        found, detail = verdict(agent_home, daemon.uri, "sys_writable")
        assert (found, f"libvirtd (pid {daemon.pid}) sees /sys read-only" in detail) == ("FAIL", True)
        assert agent_home.run("retune", "--connect", daemon.uri).returncode == 4, "it says the truth"


def test_a_libvirtd_that_hangs_is_a_finding(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    libvirtd.pause()
    try:
        findings, worst, code = examine(agent_home, libvirtd.uri, hurried=True)
    finally:
        libvirtd.resume()
    assert "does not answer within" in findings["libvirt_reachable"]["detail"]
    assert (worst, code) == ("FAIL", 1)
    assert findings["sys_writable"]["detail"] == f"libvirtd (pid {libvirtd.pid}) sees it writable"


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


def test_an_agent_without_libvirt_says_so(libvirtd: PrivateLibvirtd, start_agent: AgentFactory) -> None:
    agent = start_agent()
    agent.step()
    libvirtd.stop()
    agent.wait_for("libvirt_unreachable")
    findings, _, _ = examine(agent.home, agent.uri)
    assert findings["agent"]["verdict"] == findings["stranded"]["verdict"] == "FAIL"
    assert "waiting for a connection" in findings["agent"]["detail"]


@pytest.fixture
def read_only(libvirtd: PrivateLibvirtd) -> LibvirtHost:
    return open_host(f"qemu:///system?socket={libvirtd.socket_path}-ro", read_only=True)


def test_who_may_set_is_told_without_setting(ksm: Ksm, libvirtd: PrivateLibvirtd, read_only: LibvirtHost) -> None:
    before = KsmFiles.save()
    assert open_host(libvirtd.uri).setting_refused() is None
    assert read_only.setting_refused() is Cause.READ_ONLY
    assert KsmFiles.save() == before
    assert ksm.read("run") == 1


def test_the_version_is_libvirts_own(libvirtd: PrivateLibvirtd) -> None:
    told = subprocess.run(["libvirtd", "--version"], check=True, capture_output=True, text=True).stdout
    number = open_host(libvirtd.uri).version()
    assert told.strip().endswith(f" {number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}")


@pytest.mark.usefixtures("ksm")
def test_somebody_without_rights_gets_an_answer(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    done = run_as_nobody("--runtime-dir", str(agent_home.runtime_dir), "doctor", "--json", "--connect", libvirtd.uri)
    assert (done.returncode, done.stderr) == (1, "")
    findings = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert findings["libvirt_reachable"]["verdict"] == "FAIL"
    assert findings["ksm_run"]["verdict"] == "PASS"
    assert findings["permission"]["detail"] == "no connection to libvirt"
