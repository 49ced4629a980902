"""What the one-shot costs from its start to its exit, as ratios within one run.

`virtksm retune --direct` beside a process that imports argparse, tomllib, psutil and libvirt, opens the connection and
gets the parameters; `virtksm retune` through an agent beside one that imports argparse, json and socket, plus the
pass's own duration; all beside `virsh node-memory-tune`. Each round runs all of them once, in an order drawn anew;
compared are medians. Every pass changes pages_to_scan (STEPPING_LAW), but that of the default configuration, which is
a dry run. Started by script/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bench.figures import Goal, read_machine, summarize
from bench.isolated import time_virsh
from bench.observe import KernelValue
from bench.stage import STEPPING_LAW, VIRTKSM, Agent, Guests, home_options, private_libvirtd
from virtksm.host.libvirt_events import EventLoop

RATIO_GOAL = 1.5
DIRECT_BASE = "import argparse, tomllib, psutil, libvirt; libvirt.open({uri!r}).getMemoryParameters()"
AGENT_BASE = "import argparse, json, socket"
DEFAULT_POLICY = "default policy, dry"
WARM_UP_ROUNDS = 2


def time_process(command: list[str], null: int, environ: Mapping[str, str]) -> float:
    """Run a command with nothing to read or show; returns ms, raises RuntimeError when it fails."""
    streams = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1)]
    began_ns = time.monotonic_ns()
    pid = os.posix_spawnp(command[0], command, environ, file_actions=streams)
    _, status = os.waitpid(pid, 0)
    elapsed_ms = (time.monotonic_ns() - began_ns) / 1e6
    if status != 0:
        raise RuntimeError(f"{command} ended with {status:#x}")
    return elapsed_ms


def installed_environ(bytecode: Path) -> dict[str, str]:
    """Return the environment of a virtksm that is compiled once, by the rounds that warm up, into an empty folder.

    As where it is installed: Python compiles at every start where it may not write, and a tree that is worked on holds
    bytecode of some modules only.
    """
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environ, "PYTHONPYCACHEPREFIX": str(bytecode)}


def measure(
    agent: Agent, uri: str, kernel: KernelValue, rounds: int, bytecode: Path, defaults: list[str]
) -> dict[str, list[float]]:
    """Return ms of each contender, in order of the rounds.

    `bytecode` is an empty folder, `defaults` are the options for a virtksm with the default configuration.
    """
    environ = installed_environ(bytecode)
    python = str(Path(VIRTKSM).with_name("python"))
    retune = [VIRTKSM, *agent.home, "retune", "--connect", uri]
    commands = {
        "python -c pass": [python, "-c", "pass"],
        "base, direct": [python, "-c", DIRECT_BASE.format(uri=uri)],
        "retune --direct": [*retune, "--direct"],
        DEFAULT_POLICY: [VIRTKSM, *defaults, "retune", "--connect", uri, "--direct", "--dry-run"],
        "base, agent": [python, "-c", AGENT_BASE],
        "retune": retune,
    }
    names = [*commands, "virsh"]
    times: dict[str, list[float]] = {name: [] for name in names}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(rounds + WARM_UP_ROUNDS):
        random.shuffle(names)
        for name in names:
            before = kernel.read()
            elapsed_ms = (
                time_virsh(uri, kernel, to_exit=True)
                if name == "virsh"
                else time_process(commands[name], null, environ)
            )
            if name.startswith("retune") and kernel.read() != before + 1:
                raise RuntimeError(f"{name}: pages_to_scan went from {before} to {kernel.read()}")
            if number >= WARM_UP_ROUNDS:
                times[name].append(elapsed_ms)
    os.close(null)
    return times


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench startup", description="Time the one-shot beside its imports.")
    parser.add_argument("--rounds", type=int, default=60, help="runs of each (%(default)s)")
    parser.add_argument("--guests", type=int, default=10, help="paused guests meanwhile (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    machine = read_machine()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    loop = EventLoop()
    loop.start()
    with private_libvirtd() as libvirtd:
        guests = Guests(libvirtd.uri)
        guests.grow_to(options.guests)
        kernel = KernelValue()
        with Agent(libvirtd.root / "a", libvirtd.uri, STEPPING_LAW) as agent:
            (libvirtd.root / "d").mkdir()
            defaults = home_options(libvirtd.root / "d", "")
            times = measure(agent, libvirtd.uri, kernel, options.rounds, libvirtd.root / "pyc", defaults)
            passes = [line for line in agent.passes() if line["triggers"] == ["retune"]]
    medians = {name: summarize(samples).median for name, samples in times.items()}
    pass_ms = summarize([line["duration_ms"] for line in passes]).median
    print(f"\n{options.rounds} rounds, {options.guests} guests; medians, start to exit:")
    for name, median_ms in medians.items():
        print(f"  {name:20}{median_ms:8.1f} ms{median_ms / medians['virsh']:8.2f} times virsh")
    print(f"  {'the agents pass':20}{pass_ms:8.1f} ms (from its log)\n")
    direct_ms, through_ms = RATIO_GOAL * medians["base, direct"], RATIO_GOAL * medians["base, agent"] + pass_ms
    goals = [
        Goal(what="retune --direct", measured=medians["retune --direct"], at_most=direct_ms, unit="ms"),
        Goal(what="retune --direct, default policy", measured=medians[DEFAULT_POLICY], at_most=direct_ms, unit="ms"),
        Goal(what="retune through the agent", measured=medians["retune"], at_most=through_ms, unit="ms"),
    ]
    print("\n".join(goal.line() for goal in goals))
    for name in ("retune --direct", DEFAULT_POLICY):
        print(f"ratio direct, {name}: {medians[name] / medians['base, direct']:.2f} (goal {RATIO_GOAL})")
    print(f"ratio through the agent {(medians['retune'] - pass_ms) / medians['base, agent']:.2f} (goal {RATIO_GOAL})")
    if options.json is not None:
        report = {
            "machine": machine,
            "goals": [goal.as_dict() for goal in goals],
            "agents_pass_ms": pass_ms,
            "samples_ms": times,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
