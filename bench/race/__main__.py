"""The race: virtksm's policies against the real ksmtuned and the kernel's advisor, on one machine, in turn.

In: works, contenders, an output folder. Out: a JSON report a run, report.md and a picture a work in that folder, and
exit code 1 if a run failed or a goal is missed. Started by script/bench, which locks and restores KSM. Reading order:
works (what happens to guests), contenders and peers (who tunes KSM), run (one contender over one work), measures and
rules (what is compared), goals (the table of goals), report.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import libvirt

from bench.figures import read_machine, read_revision
from bench.race.contenders import Contender
from bench.race.goals import judge_work
from bench.race.ground import Disturbed, Ground, private_ground
from bench.race.linux import LinuxGuestUnbuilt, build_linux_guest
from bench.race.measures import measure_work
from bench.race.options import Options, parse_options
from bench.race.peers import CONTENDERS, PeerMissing
from bench.race.pictures import draw_work, trace_work
from bench.race.probes import simulate_probes
from bench.race.records import Record, RecordUnreadable, keep_record, read_records, record_path
from bench.race.report import write_report
from bench.race.rules import OURS
from bench.race.run import Unready, run_work
from bench.race.sampling import NoKsmd
from bench.race.steps import Work
from bench.race.works import list_works
from bench.stage import AgentFailed
from demo.guests import PayloadFailed
from tests.lab.libvirtd import LibvirtdFailed

RUN_FAILURES = (
    AgentFailed,
    Disturbed,
    PeerMissing,
    Unready,
    PayloadFailed,
    libvirt.libvirtError,
    TimeoutError,
    OSError,
)
HOST_KEEPS_MIB = 2048


def list_runs(options: Options) -> list[tuple[Work, str]]:
    """Tell the runs that are wanted, in order."""
    works = list_works(quick=options.quick)
    return [
        (works[work], contender)
        for work in options.works
        for contender in options.contenders
        if (contender != "clairvoyant" or works[work].has_clairvoyant)
        and not (options.missing and record_path(options.output, work, contender).exists())
    ]


def run_all(options: Options, ground: Ground) -> list[str]:
    """Run what is wanted and keep the records; return what failed, a line each."""
    machine, revision, failures = read_machine(), read_revision(), []
    del machine["load_1_min"]  # of the command's beginning, not of each run's
    runs = list_runs(options)
    for number, (work, name) in enumerate(runs, start=1):
        print(f"[{number}/{len(runs)}] {work.name}, {name}: {work.length_s:g} s", flush=True)
        contender: Contender = CONTENDERS[name]()
        began_s = time.monotonic()
        try:
            report = run_work(ground, work, name, contender, quick=options.quick, machine=machine, revision=revision)
        except RUN_FAILURES as error:
            failures.append(f"{work.name}, {name}: {error}")
            print(f"  FAILED: {error}", flush=True)
            continue
        keep_record(options.output, report)
        last = report.samples[-1]
        print(
            f"  saved {last.pages_sharing / 256:.0f} MiB, ksmd {last.ksmd_cpu_s - report.samples[0].ksmd_cpu_s:.1f} s; "
            f"took {time.monotonic() - began_s:.0f} s in all",
            flush=True,
        )
    ground.clear()
    return failures


def tell(folder: Path, records: Sequence[Record]) -> bool:
    """Write report and pictures and print the report; return whether no goal is missed."""
    order = list(CONTENDERS)
    concessions = {name: make().concession for name, make in CONTENDERS.items()}
    by_work = {
        work: [report for report in records if report.work == work] for work in dict.fromkeys(r.work for r in records)
    }
    works = list_works(quick=records[0].quick)
    measured = [measure_work(runs, {OURS: simulate_probes(works[work])}) for work, runs in by_work.items()]
    pictures = {}
    for work, runs in by_work.items():
        settled_s = max(run.last_settled_s for run in runs)
        draw_work(trace_work(runs, order), f"{work}: {runs[0].told}", settled_s, folder / f"{work}.svg")
        pictures[work] = f"{work}.svg"
    report = write_report(measured, records, order, concessions, pictures)
    (folder / "report.md").write_text(report, encoding="utf-8")
    print(f"\n{report}")
    verdicts = [verdict for results in measured for verdict in judge_work(results)]
    return all(verdict.met is not False for verdict in verdicts)


def check_memory(options: Options) -> str | None:
    """Tell why this machine cannot hold the largest work, None if it can."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    available_mib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable")) // 1024
    for work, _ in list_runs(options):
        needed_mib = sum(guest.memory_mib for guest in work.guests) + HOST_KEEPS_MIB
        if needed_mib > available_mib:
            return f"{work.name} needs {needed_mib} MiB of available memory, here are {available_mib}; try --quick"
    return None


def main(arguments: list[str]) -> int:
    options = parse_options(arguments)
    failures: list[str] = []
    try:
        if not options.report:
            if trouble := check_memory(options):
                print(f"script/bench race: {trouble}", file=sys.stderr)
                return 2
            if "linux" in options.works:
                build_linux_guest()
            options.output.mkdir(parents=True, exist_ok=True)
            with private_ground() as ground:
                failures = run_all(options, ground)
        works = list(list_works(quick=options.quick))
        records = sorted(read_records(options.output), key=lambda report: works.index(report.work))
    except (RecordUnreadable, NoKsmd, LibvirtdFailed, LinuxGuestUnbuilt) as error:
        print(f"script/bench race: {error}", file=sys.stderr)
        return 2
    if not records:
        print(f"script/bench race: no records in {options.output}", file=sys.stderr)
        return 2
    all_met = tell(options.output, records)
    print("\n".join(f"FAILED {failure}" for failure in failures))
    return 0 if all_met and not failures else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
