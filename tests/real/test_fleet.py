"""`virtksm fleet` over thirty hosts, of which some are dead, some stopped and some refuse; their KSM is plain files."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.fleet import Fleet, running_fleet
from tests.lab.hang import HANG_S, SLOWER
from tests.real.agent_process import AgentHome

pytestmark = pytest.mark.real

NAMES = [f"node{number:02}" for number in range(1, 31)]
DEAD, REFUSING, STOPPED = NAMES[3::10], NAMES[6::10], NAMES[8::10]
ASKING = NAMES[1:2]
SERVED = [name for name in NAMES if name not in DEAD + REFUSING]
WELL = [name for name in SERVED if name not in STOPPED + ASKING]
NUMBERS = {name: number for number, name in enumerate(SERVED, 1)}
"""What each one's KSM shares, in pages."""
LAW = 'host = "local"\npolicy = "ksmtuned"\n[ksmtuned]\nthres_coef = 100\n'
"""Memory always counts as short: ksmd scans. The operator's own host has an agent that serves it by a name."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running_fleet(SERVED, ASKING) as lent:
        for name in REFUSING:
            lent.refuse(name)
        yield lent


class Operator:
    """Asks the hosts of a file, eight at once: fewer than there are, and more than hang."""

    def __init__(self, fleet: Fleet, home: AgentHome) -> None:
        home.configure(LAW)
        self._fleet, self._home = fleet, home
        self._hosts = home.folder / "hosts.txt"

    def name(self, names: list[str]) -> None:
        """Write the file."""
        self._hosts.write_text("\n".join(names), encoding="utf-8")

    def run(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        _, *common = self._home.command("fleet", action, "--hosts", str(self._hosts), "--jobs", "8")
        limit = ("--timeout", str(60 * SLOWER))
        command = [sys.executable, "-m", "tests.lab.patient", *common, *limit, *options]
        environ = self._fleet.environ
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=HANG_S, check=False)

    def ask(self, action: str, code: int) -> dict[str, dict[str, Any]]:
        """Return each host's result, in the order in which they are printed."""
        done = self.run(action, "--json")
        assert (done.returncode, done.stderr) == (code, "")
        return {one["host"]: one for one in json.loads(done.stdout)["hosts"]}

    def pages_to_scan(self) -> set[int]:
        return {self._fleet.ksm(name)["pages_to_scan"] for name in WELL}

    def switches(self) -> list[str]:
        return sorted(path.name for path in self._home.state_dir.glob("*.off"))


@pytest.fixture
def operator(fleet: Fleet, agent_home: AgentHome) -> Operator:
    return Operator(fleet, agent_home)


def failures(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: one["error"] for name, one in results.items() if one["exit_code"]}


def test_hosts_that_are_dead_stopped_or_refuse_are_named_and_all_others_answer(
    fleet: Fleet, operator: Operator
) -> None:
    operator.name(NAMES)
    for name in STOPPED:
        fleet.stop(name)
    results = operator.ask("status", code=3)
    assert list(results) == NAMES, "the order of the file"
    assert sorted(failures(results)) == sorted(DEAD + REFUSING + STOPPED + ASKING)
    assert all("No such file or directory" in results[name]["error"] for name in DEAD)
    assert all("Connection refused" in results[name]["error"] for name in REFUSING)
    assert {results[name]["error"] for name in STOPPED} == {f"no answer within {5 * SLOWER} s"}
    assert all(results[name]["remedy"].startswith("on that host: systemctl restart ") for name in STOPPED)
    assert results[ASKING[0]]["error"].startswith(
        "libvirt asks for a password, and its auth.conf has none that is right ("
    )
    assert results[ASKING[0]]["remedy"].startswith("name and password in /etc/libvirt/auth.conf")
    assert {one["exit_code"] for one in results.values()} == {0, 3}
    seen = {name: results[name]["answer"]["now"]["pages_sharing"] for name in WELL}
    assert seen == {name: NUMBERS[name] for name in WELL}, "each has told of its own KSM"
    assert {results[name]["answer"][fact] for name in WELL for fact in ("agent", "paused")} == {None}

    operator.name(DEAD[:1] + WELL[:2])
    table = operator.run("status")
    assert (table.returncode, table.stderr) == (3, "")
    lines = table.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["HOST", DEAD[0], *WELL[:2]]
    assert f" -> ssh {DEAD[0]} virsh uri" in lines[1]
    assert [line for line in lines if line.startswith(("Hosts", "Failed"))] == [
        "Hosts      2 of 3 ok",
        f"Failed     {DEAD[0]}",
    ]


def test_passes_pauses_and_findings_reach_every_host_that_answers(operator: Operator) -> None:
    asked = [name for name in NAMES if name not in STOPPED]
    operator.name(asked)
    bad = sorted(DEAD + REFUSING + ASKING)

    results = operator.ask("retune", code=3)
    assert list(results) == asked
    assert sorted(failures(results)) == bad
    assert {results[name]["answer"]["outcome"] for name in WELL} == {"applied"}
    assert 0 not in operator.pages_to_scan()

    results = operator.ask("pause", code=3)
    assert sorted(failures(results)) == bad
    assert all(error.startswith("paused, but no pass was possible yet: ") for error in failures(results).values())
    assert operator.pages_to_scan() == {0}
    assert operator.switches() == sorted(f"qemu_2bssh_3a_2f_2f{name}_2fsystem.off" for name in asked)
    assert {operator.ask("status", code=3)[name]["answer"]["paused"] for name in WELL} == {True}
    results = operator.ask("retune", code=3)
    assert {results[name]["answer"]["decision"]["rule"] for name in WELL} == {"paused"}
    assert operator.pages_to_scan() == {0}

    results = operator.ask("resume", code=3)
    assert sorted(failures(results)) == bad
    assert 0 not in operator.pages_to_scan()
    assert operator.switches() == []

    results = operator.ask("doctor", code=1)
    assert sorted(name for name, one in results.items() if one["exit_code"]) == bad
    verdicts = {one["check"]: one["verdict"] for one in results[WELL[0]]["answer"]["findings"]}
    assert verdicts.pop("libvirt_reachable") == "PASS"
    assert {verdicts[name] for name in ("agent", "ksm_run", "not_paused", "folders")} == {"INFO"}
