"""The simulated works: all figures of docs/benchmarks.md's section "The simulator".

In: names of parts. Out: a table of each and its goals, on standard output, and exit code 1 if a goal is missed. No
kernel is touched. Started by script/bench. Reading order: works (what happens to guests), plays (who scans, what is
compared), driver.
"""

import argparse
import sys
import time

from bench.figures import names, read_machine, write_table
from bench.sim.plays import PARTS

LARGE = "large"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="script/bench sim",
        description="Play the simulated works; nothing real is touched. All but large take some minutes.",
    )
    parser.add_argument(
        "--works",
        metavar="NAME,NAME",
        type=names(list(PARTS)),
        default=[name for name in PARTS if name != LARGE],
        help=f"of {', '.join(PARTS)}; default all but {LARGE}",
    )
    parser.add_argument("--large", action="store_true", help="also the day of 1 TiB")
    options = parser.parse_args(arguments)
    all_met = True
    for name in dict.fromkeys([*options.works, *([LARGE] if options.large else [])]):
        machine, began_s = read_machine(), time.monotonic()
        part = PARTS[name]()
        machine = {**machine, "played_s": round(time.monotonic() - began_s)}
        print(write_table(name, part.title, machine, part.rows, part.goals), flush=True)
        all_met &= all(goal.met for goal in part.goals)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
