"""How long `virtksm fleet` takes for many hosts, from its start to its exit.

At first all hosts are well, near or behind a network that takes HANDSHAKE_S to connect; then a tenth of them is dead, a
tenth refuses, and a tenth hangs. Each host is a libvirtd with a KSM of plain files behind a stand-in of ssh
(tests/lab/fleet.py). Exit code 1 if a goal is missed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.figures import WARM_UP_RUNS, Goal, interleave, median, tell_goals, tell_machine
from bench.stage import STEPPING_LAW, home_in
from tests.lab.fleet import running_fleet
from tests.real.agent_process import AgentHome
from virtksm.cli.fleet import JOBS
from virtksm.cli.status_alone import LIMIT_S
from virtksm.doctor.reading.libvirt import ANSWER_WITHIN_S

HANDSHAKE_S = 0.5
"""What ssh takes where a packet takes some 100 ms there and back (chosen)."""
SPREAD = (1, 8, JOBS)
CALL_TIMEOUT_S = 5
LIMITS_S = {"status": LIMIT_S, "retune": float(CALL_TIMEOUT_S), "doctor": ANSWER_WITHIN_S}
"""How long an action waits for a host that hangs; LAW makes retune's 30 s shorter."""
LAW = f"call_timeout_s = {CALL_TIMEOUT_S}\n{STEPPING_LAW}"
HOST_GOAL_S = 0.1
"""For a host that is well (chosen): 30 take 3 s, on a machine that runs their daemons, too."""
DELAY_GOAL = 1.25
"""How much longer the slowest host that is well may take because of others (chosen)."""
COST_GOAL_S = 2 * HANDSHAKE_S
"""What the handshakes of JOBS hosts may cost together (chosen): in turn they cost HANDSHAKE_S a host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Hosts that are asked, of which so many fail, by the ssh that is first in `path`."""

    what: str
    names: Sequence[str]
    failing: int = 0
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One command; times and the slowest hosts that are well come with its runs, in seconds."""

    action: str
    hosts: Hosts
    jobs: int = JOBS
    times_s: list[float] = field(default_factory=list)
    slowest_s: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.action}, {self.hosts.what}, --jobs {self.jobs}"

    def run(self, home: AgentHome) -> float:
        """Run it; returns how long it took, and raises RuntimeError where others fail than should."""
        file, names = home.folder / "hosts.txt", self.hosts.names
        file.write_text("\n".join(names), encoding="utf-8")
        command = home.command("fleet", self.action, "--hosts", str(file), "--jobs", str(self.jobs), "--json")
        environ = {**os.environ, "PATH": self.hosts.path}
        began_s = time.monotonic()
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        self.times_s.append(time.monotonic() - began_s)
        results = json.loads(done.stdout)["hosts"] if done.stdout else []
        well_s = [one["took_s"] for one in results if not one["exit_code"]]
        if (len(results), len(well_s)) != (len(names), len(names) - self.hosts.failing):
            raise RuntimeError(f"{self.name}: {len(well_s)} of {len(results)} are well: {done.stderr}{done.stdout}")
        self.slowest_s.append(max(well_s))
        return self.times_s[-1]

    @property
    def took_s(self) -> float:
        return median(self.times_s[WARM_UP_RUNS:])

    @property
    def well_took_s(self) -> float:
        return median(self.slowest_s[WARM_UP_RUNS:])


def slow_path(folder: Path, path: str) -> str:
    """Write an ssh that takes HANDSHAKE_S longer than the one in `path`; returns the path to it."""
    folder.mkdir()
    ssh = folder / "ssh"
    ssh.write_text(f'#!/bin/sh\nsleep {HANDSHAKE_S}\nPATH=${{PATH#*:}}\nexec ssh "$@"\n', encoding="ascii")
    ssh.chmod(0o755)
    return f"{folder}:{path}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench fleet", description="Time virtksm fleet over many hosts.")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (%(default)s)")
    parser.add_argument("--hosts", type=int, default=30, help="hosts, at least ten (%(default)s)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    tell_machine()
    names = [f"node{number:03}" for number in range(options.hosts)]
    few = options.hosts // 10
    dead, refusing = ([f"{kind}{number}" for number in range(few)] for kind in ("dead", "refusing"))
    with tempfile.TemporaryDirectory(prefix="vf") as temporary, running_fleet(names) as fleet:
        home, path = home_in(Path(temporary) / "home", LAW), fleet.environ["PATH"]
        well = Hosts(what="all well", names=names, path=path)
        far = replace(well, what="all far", path=slow_path(Path(temporary) / "bin", path))
        ill = replace(well, what=f"{3 * few} ill", names=[*dead, *refusing, *names[2 * few :]], failing=3 * few)
        near = {action: Asked(action=action, hosts=well) for action in LIMITS_S}
        spread = {jobs: Asked(action="status", hosts=far, jobs=jobs) for jobs in SPREAD}
        mixed = {action: Asked(action=action, hosts=ill) for action in LIMITS_S}
        interleave({one.name: partial(one.run, home) for one in (*near.values(), *spread.values())}, options.runs)
        for name in refusing:
            fleet.refuse(name)
        for name in names[-few:]:
            fleet.stop(name)
        interleave({one.name: partial(one.run, home) for one in mixed.values()}, options.runs)
    print(f"\n{options.runs} runs of each, {options.hosts} hosts; medians, and the slowest host that is well:")
    for one in (*near.values(), *spread.values(), *mixed.values()):
        print(f"  {one.name:32}{one.took_s:8.2f} s{one.well_took_s:8.2f} s")
    return tell_goals(
        [
            *(
                Goal(what=one.name, measured=one.took_s, limit=HOST_GOAL_S * options.hosts, unit="s")
                for one in near.values()
            ),
            Goal(
                what=f"{HANDSHAKE_S:g} s to connect, over none",
                measured=spread[JOBS].took_s - near["status"].took_s,
                limit=COST_GOAL_S,
                unit="s",
            ),
            *(
                Goal(
                    what=f"{one.name}: the slowest that is well, of the same when all are",
                    measured=one.well_took_s / near[action].well_took_s,
                    limit=DELAY_GOAL,
                )
                for action, one in mixed.items()
            ),
            *(
                Goal(
                    what=f"{one.name}, over its limit of {LIMITS_S[action]:g} s",
                    measured=one.took_s - LIMITS_S[action],
                    limit=near[action].took_s,
                    unit="s",
                )
                for action, one in mixed.items()
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
