"""What asking costs: `virtksm guests` and `virtksm status` beside `virsh domstats`, as ratios of medians in one run.

With each number of real (paused) guests running and an agent at rest, all take turns, from start to exit.
Started by script/bench.
"""

import argparse
import sys
from functools import partial

from bench.figures import Goal, interleave, median, tell_goals, tell_machine
from bench.stage import Guests, private_libvirtd, running_agent
from bench.startup import installed_environ, time_process
from virtksm.host.libvirt_events import EventLoop

RATIO_GOAL = 1 / 3
BASE = "virsh domstats"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench insight", description="Time virtksm guests and status.")
    parser.add_argument("--guests", default="10,150", help="numbers of paused guests, ascending (%(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="runs of each (%(default)s)")
    options = parser.parse_args(arguments)
    counts = [int(text) for text in options.guests.split(",")]
    tell_machine()
    EventLoop().start()
    goals = []
    with private_libvirtd() as libvirtd:
        guests = Guests(libvirtd.uri)
        environ = installed_environ(libvirtd.root / "pyc")
        with running_agent(libvirtd.root / "a", libvirtd.uri, "") as agent:
            commands = {
                BASE: ["virsh", "-c", libvirtd.uri, "domstats"],
                "virsh domstats --balloon": ["virsh", "-c", libvirtd.uri, "domstats", "--balloon"],
                "virtksm guests": agent.home.command("guests", "--connect", libvirtd.uri),
                "virtksm status": agent.home.command("status"),
            }
            for count in counts:
                guests.grow_to(count)
                timed = {name: partial(time_process, command, environ) for name, command in commands.items()}
                medians = {name: median(series) for name, series in interleave(timed, options.runs).items()}
                for name, median_ms in medians.items():
                    ratio = median_ms / medians[BASE]
                    print(f"{count} guests: {name:26}{median_ms:8.1f} ms{ratio:8.2f} of {BASE}", flush=True)
                    if count == counts[-1] and name.startswith("virtksm"):
                        goals.append(Goal(what=f"{count} guests, {name} to {BASE}", measured=ratio, limit=RATIO_GOAL))
    return tell_goals(goals)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
