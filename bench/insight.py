"""What it costs to look: `virtksm guests` and `virtksm status` beside `virsh domstats`, as ratios within one run.

With each number of real (paused) guests running and an agent at rest, each round runs all of them once, start to exit,
in an order drawn anew; compared are medians. Started by script/bench.
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
from bench.stage import VIRTKSM, Agent, Guests, private_libvirtd
from bench.startup import installed_environ, time_process
from virtksm.host.libvirt_events import EventLoop

RATIO_GOAL = 1 / 3
BASE = "virsh domstats"
LOOKS = ("virtksm guests", "virtksm status")
WARM_UP_ROUNDS = 2


def measure(commands: Mapping[str, list[str]], rounds: int, environ: Mapping[str, str]) -> dict[str, list[float]]:
    """Return ms of each command, in order of the rounds; raises RuntimeError when one fails."""
    names = list(commands)
    times: dict[str, list[float]] = {name: [] for name in names}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(rounds + WARM_UP_ROUNDS):
        random.shuffle(names)
        for name in names:
            elapsed_ms = time_process(commands[name], null, environ)
            if number >= WARM_UP_ROUNDS:
                times[name].append(elapsed_ms)
    os.close(null)
    return times


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench insight", description="Time looks at guests beside virsh's.")
    parser.add_argument("--guests", default="10,150", help="numbers of paused guests, ascending (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    counts = [int(text) for text in options.guests.split(",")]
    if counts != sorted(counts) or counts[0] < 0 or options.rounds < 1:
        parser.error("--guests must ascend from 0 or more, --rounds be 1 or more")
    machine = read_machine()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    loop = EventLoop()
    loop.start()
    samples: dict[int, dict[str, list[float]]] = {}
    with private_libvirtd() as libvirtd:
        guests = Guests(libvirtd.uri)
        environ = installed_environ(libvirtd.root / "pyc")
        with Agent(libvirtd.root / "a", libvirtd.uri, "") as agent:
            commands = {
                BASE: ["virsh", "-c", libvirtd.uri, "domstats"],
                "virsh domstats --balloon": ["virsh", "-c", libvirtd.uri, "domstats", "--balloon"],
                "virtksm guests": [VIRTKSM, *agent.home, "guests", "--connect", libvirtd.uri],
                "virtksm status": [VIRTKSM, *agent.home, "status"],
            }
            for count in counts:
                began_s = time.monotonic()
                guests.grow_to(count)
                print(f"\n{count} guests ({time.monotonic() - began_s:.0f} s to start those that were missing)")
                samples[count] = measure(commands, options.rounds, environ)
                medians = {name: summarize(series).median for name, series in samples[count].items()}
                for name, median_ms in medians.items():
                    print(f"  {name:26}{median_ms:8.1f} ms{median_ms / medians[BASE]:8.2f} of {BASE}", flush=True)
    goals = [
        Goal(
            what=f"{counts[-1]} guests, {name} to {BASE}",
            measured=medians[name] / medians[BASE],
            at_most=RATIO_GOAL,
            unit="",
        )
        for name in LOOKS
    ]
    print("\n" + "\n".join(goal.line() for goal in goals))
    if options.json is not None:
        report = {"machine": machine, "goals": [goal.as_dict() for goal in goals], "samples_ms": samples}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
