"""The race: virtksm's policy adaptive against the real ksmtuned and the kernel's advisor, on one machine, in turn.

In: works, contenders. Out: a table and a picture of each work in build/race, once its last run has ended, and exit code
1 if a run failed or a goal is missed. Started by script/bench, which locks and restores KSM. Reading order: works
(what happens to guests), contenders (who tunes KSM), run (one contender over one work), measures (what is compared),
goals, report.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import libvirt

from bench.figures import names, tell_machine
from bench.race.contenders import CONTENDERS
from bench.race.goals import judge_work
from bench.race.ground import Disturbed, Ground
from bench.race.linux import LinuxGuestUnbuilt, build_linux_guest
from bench.race.measures import measure_work, simulate_check_scans
from bench.race.report import draw_work, write_work
from bench.race.run import Run, run_work
from bench.race.works import Work, list_works
from bench.stage import private_libvirtd
from demo.guests import PayloadFailed
from tests.lab.fixtures import REPO
from tests.lab.libvirtd import LibvirtdFailed
from tests.real.agent_process import AgentSilent

RUN_FAILURES = (AgentSilent, Disturbed, PayloadFailed, libvirt.libvirtError, TimeoutError, OSError)
HOST_KEEPS_MIB = 2048
QUICK: Mapping[str, Sequence[str]] = {
    "--works": ("storm", "twin"),
    "--contenders": ("adaptive", "advisor-late", "clairvoyant"),
}


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; exits with a message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="script/bench race",
        description="Race policy adaptive against ksmtuned and the kernel's advisor, with real guests on this "
        "machine's own KSM. Every run takes 5 minutes (growth 12, drift 15). Table and picture of each work are in "
        "build/race.",
    )
    parser.add_argument("--quick", action="store_true", help="smaller guests, shorter runs: under 5 minutes")
    known = {"--works": list(list_works(quick=False)), "--contenders": list(CONTENDERS)}
    for option, all_names in known.items():
        told = f"of {', '.join(all_names)}; default all, quick: {','.join(QUICK[option])}"
        parser.add_argument(option, metavar="NAME,NAME", help=told, type=names(all_names))
    options = parser.parse_args(arguments)
    default = QUICK if options.quick else known
    options.works = options.works or default["--works"]
    options.contenders = options.contenders or default["--contenders"]
    return options


def run_all(ground: Ground, work: Work, contenders: Sequence[str], failures: list[str]) -> list[Run]:
    """Run the contenders over one work in turn; adds what failed to `failures`, a line each."""
    runs = []
    for name in contenders:
        if name == "clairvoyant" and not work.has_clairvoyant:
            continue
        print(f"{work.name}, {name}: {work.length_s:g} s", flush=True)
        try:
            runs.append(run_work(ground, work, name, CONTENDERS[name]()))
        except RUN_FAILURES as error:
            failures.append(f"{work.name}, {name}: {error}")
            print(f"  FAILED: {error}", flush=True)
    ground.clear()
    return runs


def tell_work(work: Work, runs: list[Run], folder: Path, machine: Mapping[str, object]) -> bool:
    """Print and keep a work's table, draw its picture; return whether no goal is missed."""
    results = measure_work(runs, simulate_check_scans(work))
    goals, left_out = judge_work(work.name, results)
    report = write_work(work, results, goals, left_out, machine)
    print(f"\n{report}", flush=True)
    (folder / f"{work.name}.md").write_text(report, encoding="utf-8")
    draw_work(work, runs, folder / f"{work.name}.svg")
    return all(goal.met for goal in goals)


def check_memory(works: Sequence[Work]) -> str | None:
    """Tell why this machine cannot hold the largest work, None if it can."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    available_mib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable")) // 1024
    for work in works:
        needed_mib = sum(guest.memory_mib for guest in work.guests) + HOST_KEEPS_MIB
        if needed_mib > available_mib:
            return f"{work.name} needs {needed_mib} MiB of available memory, here are {available_mib}; try --quick"
    return None


def main(arguments: list[str]) -> int:
    options = parse_options(arguments)
    known = list_works(quick=options.quick)
    works = [known[name] for name in options.works]
    folder = REPO / "build" / ("race-quick" if options.quick else "race")
    failures: list[str] = []
    try:
        if trouble := check_memory(works):
            print(f"script/bench race: {trouble}", file=sys.stderr)
            return 2
        if "linux" in options.works:
            build_linux_guest()
        folder.mkdir(parents=True, exist_ok=True)
        machine = tell_machine()
        all_met = True
        for work in works:
            with private_libvirtd(huge_pages=work.huge_pages) as libvirtd:
                runs = run_all(Ground(libvirtd), work, options.contenders, failures)
            if runs:
                all_met &= tell_work(work, runs, folder, machine)
    except (LibvirtdFailed, LinuxGuestUnbuilt) as error:
        print(f"script/bench race: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"FAILED {failure}" for failure in failures))
    return 0 if all_met and not failures else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
