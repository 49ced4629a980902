"""What the one-shot costs from its start to its exit, as ratios of medians within one run.

`virtksm retune --direct` beside a process that imports argparse, tomllib, psutil and libvirt, opens the connection and
gets the parameters; `virtksm retune` through an agent beside one that imports argparse, json and socket, plus the
pass's own duration; all beside `virsh node-memory-tune`. Every pass changes pages_to_scan (STEPPING_LAW), but that of
the default configuration, which is a dry run. Started by script/bench.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from bench.figures import Goal, interleave, median, tell_goals, tell_machine
from bench.observe import KernelValue, time_virsh
from bench.stage import STEPPING_LAW, Guests, home_in, private_libvirtd, running_agent
from tests.real.agent_process import VIRTKSM
from virtksm.host.libvirt_events import EventLoop

RATIO_GOAL = 1.5
DIRECT_BASE = "import argparse, tomllib, psutil, libvirt; libvirt.open({uri!r}).getMemoryParameters()"
AGENT_BASE = "import argparse, json, socket"
DEFAULT_POLICY = "default policy, dry"


def time_process(command: list[str], environ: Mapping[str, str] = os.environ) -> float:
    """Run a command with nothing to read or show; returns ms, raises RuntimeError when it fails."""
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    began_ns = time.monotonic_ns()
    pid = os.posix_spawnp(command[0], command, environ, file_actions=streams)
    _, status = os.waitpid(pid, 0)
    elapsed_ms = (time.monotonic_ns() - began_ns) / 1e6
    if status != 0:
        raise RuntimeError(f"{command} ended with {status:#x}")
    return elapsed_ms


def installed_environ(bytecode: Path) -> dict[str, str]:
    """Return the environment of a virtksm that is compiled once, by the runs that warm up, into an empty folder.

    As where it is installed: Python compiles at every start where it may not write, and a tree that is worked on holds
    bytecode of some modules only.
    """
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environ, "PYTHONPYCACHEPREFIX": str(bytecode)}


def time_retune(command: list[str], environ: Mapping[str, str], kernel: KernelValue) -> float:
    """Time a pass that changes pages_to_scan by one; raises RuntimeError when it does not."""
    before = kernel.read()
    elapsed_ms = time_process(command, environ)
    if kernel.read() != before + 1:
        raise RuntimeError(f"{command}: pages_to_scan went from {before} to {kernel.read()}")
    return elapsed_ms


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench startup", description="Time the one-shot beside its imports.")
    parser.add_argument("--runs", type=int, default=60, help="runs of each (%(default)s)")
    parser.add_argument("--guests", type=int, default=10, help="paused guests meanwhile (%(default)s)")
    options = parser.parse_args(arguments)
    tell_machine()
    EventLoop().start()
    python = str(Path(VIRTKSM).with_name("python"))
    with private_libvirtd() as libvirtd:
        Guests(libvirtd.uri).grow_to(options.guests)
        kernel, environ, uri = KernelValue(), installed_environ(libvirtd.root / "pyc"), libvirtd.uri
        with running_agent(libvirtd.root / "a", uri, STEPPING_LAW) as agent:
            retune = agent.home.command("retune", "--connect", uri)
            default = home_in(libvirtd.root / "d", "").command("retune", "--connect", uri)
            direct_base = [python, "-c", DIRECT_BASE.format(uri=uri)]
            times = interleave(
                {
                    "python -c pass": partial(time_process, [python, "-c", "pass"], environ),
                    "base, direct": partial(time_process, direct_base, environ),
                    "retune --direct": partial(time_retune, [*retune, "--direct"], environ, kernel),
                    DEFAULT_POLICY: partial(time_process, [*default, "--direct", "--dry-run"], environ),
                    "base, agent": partial(time_process, [python, "-c", AGENT_BASE], environ),
                    "retune": partial(time_retune, retune, environ, kernel),
                    "virsh": partial(time_virsh, uri, kernel, to_exit=True),
                },
                options.runs,
            )
            pass_ms = median(
                [1000 * line["duration_s"] for line in agent.lines("pass_completed") if line["triggers"] == ["retune"]]
            )
    medians = {name: median(samples) for name, samples in times.items()}
    print(f"\n{options.runs} runs of each, {options.guests} guests; medians, start to exit:")
    for name, median_ms in medians.items():
        print(f"  {name:20}{median_ms:8.1f} ms{median_ms / medians['virsh']:8.2f} times virsh")
    print(f"  {'the agents pass':20}{pass_ms:8.1f} ms (from its log)")
    ratios = {name: medians[name] / medians["base, direct"] for name in ("retune --direct", DEFAULT_POLICY)}
    ratios["retune, less its pass"] = (medians["retune"] - pass_ms) / medians["base, agent"]
    return tell_goals([Goal(what=f"{name}, of its base", measured=it, limit=RATIO_GOAL) for name, it in ratios.items()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
