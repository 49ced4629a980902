"""`virtksm retune` without an agent, on the real libvirt and kernel: what it does, prints, exits with and imports."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import REPO, GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, KsmState, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import STEPPING_LAW, AgentFactory, AgentHome

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

WITH_ALIASES = 'mount --bind "$0" /etc/libvirt && exec "$@"'


def test_each_runs_one_pass_that_goes_on_from_the_one_before_and_a_dry_one_writes_nothing(
    ksm: Ksm, libvirtd: PrivateLibvirtd, guest: GuestFactory, agent_home: AgentHome
) -> None:
    guest(PayloadGuest(name="one", memory_mib=16, own_mib=1), settle=False)
    retune = ("retune", "--connect", libvirtd.uri)
    found = KsmState.save()
    done = agent_home.run(*retune, "--dry-run")
    assert (done.returncode, KsmState.save(), agent_home.state.exists()) == (0, found, False)
    assert "Would set  pages_to_scan: 100 -> 1 pages" in done.stdout
    done = agent_home.run(*retune)
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line[:11].strip(): line for line in done.stdout.splitlines()}
    assert f"{libvirtd.uri} (local)" in lines["Host"]
    assert "1 running, " in lines["Guests"]
    assert "boost from 0 to 1 pages" in lines["Decided"]
    assert "Changed    pages_to_scan: 100 -> 1 pages" in done.stdout
    told = agent_home.told(*retune)
    assert (told["outcome"], told["triggers"]) == ("applied", ["retune"])
    assert told["before"]["pages_to_scan"] == 1
    assert told["after"]["pages_to_scan"] == ksm.read("pages_to_scan") == 2
    assert told["after"]["sleep_millisecs"] == ksm.read("sleep_millisecs")
    assert told["sensed"]["ksm_run"] == 1
    assert told["sensed"]["ksmd_cpu_seconds"] is not None
    assert agent_home.run("restore", "--connect", libvirtd.uri).returncode == 0
    assert ksm.settings() == (100, 20)


def test_a_kernel_without_ksm_is_exit_code_4_and_one_line(
    ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    # What libvirtd sees of a kernel built without KSM, in its own mount namespace.
    there = ["nsenter", f"--mount=/proc/{libvirtd.pid}/ns/mnt"]
    subprocess.run([*there, "mount", "-t", "tmpfs", "tmpfs", "/sys/kernel/mm"], check=True)
    try:
        done = agent_home.run("retune", "--connect", libvirtd.uri)
    finally:
        subprocess.run([*there, "umount", "/sys/kernel/mm"], check=True)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 2
    assert "has no KSM" in done.stderr
    assert ksm.read("pages_to_scan") == 100


def test_coalescing_one_shots_make_one_pass(ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    hook = subprocess.Popen(["sleep", str(HANG_S)])  # what both wait for the end of
    environ = {**os.environ, "VIRTKSM_HOOK_PID": str(hook.pid)}
    command = agent_home.command("retune", "--direct", "--coalesce", "--connect", libvirtd.uri)

    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as first:
        try:
            wait_until(lambda: agent_home.is_held("coalesce"), HANG_S, "the first to wait for its hook")
            second = subprocess.run(command, env=environ, check=False, capture_output=True, text=True, timeout=HANG_S)
            assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
            assert first.poll() is None
            assert ksm.read("pages_to_scan") == 100
        finally:
            hook.kill()
            hook.wait()
        said, _ = first.communicate(timeout=HANG_S)
    assert first.returncode == 0
    assert "Outcome    applied" in said
    assert ksm.read("pages_to_scan") == 1


def test_libvirts_default_uri_and_aliases_are_honoured_and_find_the_agent_that_serves_the_host(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    home = start_agent.home
    prefix = aliased(home, libvirtd)
    for uri, pages in ((libvirtd.uri, 1), ("lab", 2)):
        done = home.run("retune", "--json", environ={"LIBVIRT_DEFAULT_URI": uri}, prefix=prefix)
        assert json.loads(done.stdout)["uri"] == libvirtd.uri
        assert ksm.read("pages_to_scan") == pages
    agent = start_agent(uri="lab", prefix=prefix)
    for pages, name in ((4, "lab"), (5, libvirtd.uri)):
        assert home.run("retune", "--connect", name, prefix=prefix).returncode == 0
        agent.wait_for_pass("retune")
        assert ksm.read("pages_to_scan") == pages


def aliased(home: AgentHome, libvirtd: PrivateLibvirtd) -> list[str]:
    """Write a libvirt.conf with the alias "lab", and return what a command must stand behind to see it."""
    folder = home.folder / "libvirt"
    folder.mkdir()
    (folder / "libvirt.conf").write_text(f'uri_aliases = ["lab={libvirtd.uri}"]\n', encoding="utf-8")
    return ["unshare", "--mount", "sh", "-c", WITH_ALIASES, str(folder)]


def test_a_uri_with_a_transport_is_sensed_through_libvirt_alone(
    ksm: Ksm, libvirtd: PrivateLibvirtd, guest: GuestFactory, agent_home: AgentHome
) -> None:
    running = guest(PayloadGuest(name="far", memory_mib=24, own_mib=16))
    remote = libvirtd.far_uri
    report = json.loads(agent_home.run("retune", "--json", "--connect", remote).stdout)
    assert report["source"] == "libvirt"
    assert (report["sensed"]["guests"], report["sensed"]["guests_unread"]) == (1, 0)
    rss_bytes = psutil.Process(running.pid).memory_info().rss
    assert abs(report["sensed"]["committed_bytes"] - rss_bytes) <= 8 << 20
    assert [report["sensed"][name] for name in ("available_bytes", "ksm_run", "ksmd_cpu_seconds")] == [None] * 3
    assert report["after"]["pages_to_scan"] == ksm.read("pages_to_scan") == 101, "it begins with the kernel's value"
    assert not agent_home.state.exists(), "it has a state of its own"
    agent_home.configure(f'host = "local"\n{STEPPING_LAW}')
    report = json.loads(agent_home.run("retune", "--json", "--connect", remote).stdout)
    assert (report["source"], report["sensed"]["ksm_run"]) == ("local", 1)


SLOW = {"dataclasses", "inspect"}
"""10 ms to import, and another for each class: what a one-shot needs are NamedTuples (CONTRIBUTING.md)."""


def imported(home: AgentHome, *arguments: str) -> set[str]:
    """Run a command and return every module it imported; the program is a package."""
    script = (
        "import sys; from virtksm.cli.main import main; "
        "code = main(sys.argv[1:]); print('\\n'.join(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *home.command(*arguments)[1:]]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANG_S, cwd=REPO)
    return {name.partition(".")[0] for name in done.stderr.splitlines()}


@pytest.mark.parametrize("law", [STEPPING_LAW, 'policy = "adaptive"\n'])
def test_directly_it_imports_neither_structlog_nor_tenacity_nor_dataclasses(
    libvirtd: PrivateLibvirtd, agent_home: AgentHome, law: str
) -> None:
    agent_home.configure(law)
    modules = imported(agent_home, "retune", "--direct", "--connect", libvirtd.uri)
    assert modules >= {"libvirt", "psutil", "virtksm"}
    assert not modules & {"structlog", "tenacity", "asyncio", "pydantic", "rich", *SLOW}


def test_through_the_agent_it_imports_no_libvirt_and_no_psutil_either_and_status_no_dataclasses(
    start_agent: AgentFactory,
) -> None:
    agent = start_agent()
    modules = imported(agent.home, "retune", "--json", "--connect", agent.uri)
    agent.wait_for_pass("retune")
    assert "virtksm" in modules
    assert not modules & {"structlog", "tenacity", "asyncio", "libvirt", "libvirtmod", "psutil", "tomllib", *SLOW}
    assert not imported(agent.home, "status", "--connect", agent.uri) & SLOW


def test_restore_gives_the_kernels_defaults_when_asked_whoever_set_what_is_there(
    ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    ksm.write(pages_to_scan=1250, sleep_millisecs=10)
    done = agent_home.run("restore", "--defaults", "--connect", libvirtd.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert ksm.settings() == (100, 20)
    assert agent_home.run("retune", "--direct", "--connect", libvirtd.uri).returncode == 0
    assert ksm.settings() != (100, 20)
    assert agent_home.run("restore", "--connect", libvirtd.uri).returncode == 0
    assert ksm.settings() == (100, 20), "they are what is given back from then on"
