"""The simulated works: all figures of docs/benchmarks.md's section "The simulator".

In: names of parts. Out: a table of each and its goals, on standard output, and exit code 1 if a goal is missed. No
kernel is touched. Started by script/bench. Reading order: works (what happens to guests), days and plays (who
scans, what is compared), driver.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping

from bench.figures import names, read_machine, write_table
from bench.sim.days import play_drift, play_large, play_spoiler
from bench.sim.part import Part
from bench.sim.plays import play_kernels, play_little, play_mixed, play_race, play_series

PARTS: Mapping[str, Callable[[], Part]] = {
    "drift": play_drift,
    "spoiler": play_spoiler,
    "mixed": play_mixed,
    "kernels": play_kernels,
    "little": play_little,
    "race": play_race,
    "series": play_series,
    "large": play_large,
}
LARGE = "large"


def main(arguments: list[str], parts: Mapping[str, Callable[[], Part]] = PARTS) -> int:
    parser = argparse.ArgumentParser(
        prog="script/bench sim",
        description="Play the simulated works; nothing real is touched. All but large take some minutes.",
    )
    parser.add_argument(
        "--works",
        metavar="NAME,NAME",
        type=names(list(parts)),
        default=[name for name in parts if name != LARGE],
        help=f"of {', '.join(parts)}; default all but {LARGE}",
    )
    parser.add_argument("--large", action="store_true", help="also the day of 1 TiB")
    options = parser.parse_args(arguments)
    all_met = True
    for name in dict.fromkeys([*options.works, *([LARGE] if options.large else [])]):
        machine, began_s = read_machine(), time.monotonic()
        part = parts[name]()
        machine = {**machine, "played_s": round(time.monotonic() - began_s)}
        print(write_table(name, part.title, machine, part.rows, part.goals), flush=True)
        all_met &= all(goal.met for goal in part.goals)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
