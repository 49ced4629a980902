"""The race's report, as Markdown: machine, contenders, each work's figures and goals, and the table of goals.

Pure: records in, text out. What the words mean is in measures.py and rules.py, and told in short at the report's head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.figures import Summary
from bench.race.goals import judge_work
from bench.race.measures import LATE_LAG_S, Figures, Results
from bench.race.records import Record

METHOD = """\
Times are seconds after the last guest's settling (its memory is filled) unless said otherwise; 90 % is of the final
savings, which are what the run holds that holds most. Parked: the first moment after the 90 %, and after the work's
last event, from which ksmd scans nothing for 30 s (a tenth of a run of less than 300 s). At rest: ksmd's mean in the
120 s after parking; of the last 120 s for whoever never parks (two fifths of a run of less than 300 s). Over the hour:
the run's ksmd CPU, and the rest of the hour at that mean; adaptive's with its probes besides, as simulated. Merges:
what is merged in the end and what was, and has been written to since (cow_ksm). Neighbour: a fixed piece of work timed
four times a second, in ms; "sweep" is from the last settling to parking (or 90 %, or rest), "rest" as above. Guests'
memory is of small pages alone, so that KSM's counters see every page."""

FIGURES = (
    "contender",
    "saved MiB",
    "90 % after s",
    "ksmd-s until 90 %",
    "parked after s",
    "ksmd-s until parked",
    "ksmd-s in the run",
    "ksmd at rest %",
    "ksmd-s over the hour",
    "saved MiB-s per ksmd-s",
    "merges",
    "own CPU s",
)
NEIGHBOURS = ("contender", "sweep median ms", "sweep p99 ms", "rest median ms", "rest p99 ms")


def write_report(
    measured: Sequence[Results],
    records: Sequence[Record],
    order: Sequence[str],
    concessions: Mapping[str, str],
    pictures: Mapping[str, str],
) -> str:
    """Write everything about the works, at least one, that `records` were measured to.

    `order` is the contenders', `pictures` names a work's file.
    """
    names = [name for name in order if any(name in results.figures for results in measured)]
    kind = "quick run: smaller guests, shorter runs" if measured[0].quick else "full run"
    parts = [
        f"# Race ({kind})",
        "\n\n".join(write_machines(records)),
        METHOD,
        "## Contenders",
        "\n".join(f"- **{name}**: {concessions[name]}" for name in names if name in concessions),
    ]
    for results in measured:
        parts += write_work(results, names, pictures.get(results.work))
    parts += ["## Goals", write_goals(measured), "## Runs", write_runs(records)]
    return "\n\n".join(parts) + "\n"


def write_machines(records: Sequence[Record]) -> Iterator[str]:
    """Write a list for each machine that has run something, most often one."""
    machines = dict.fromkeys(
        "\n".join(f"- {name}: {value}" for name, value in report.machine.items()) for report in records
    )
    for number, machine in enumerate(machines, start=1):
        yield machine if len(machines) == 1 else f"Machine {number} of {len(machines)}:\n\n{machine}"


def write_runs(records: Iterable[Record]) -> str:
    """Write when each run began, and what of this repository it had."""
    rows = [(report.work, report.contender, report.began_utc, report.revision) for report in records]
    return write_table(("work", "contender", "began", "commit"), rows)


def write_work(results: Results, names: Sequence[str], picture: str | None) -> list[str]:
    """Write one work's part."""
    runs = [results.figures[name] for name in names if name in results.figures]
    parts = [
        f"## {results.work}",
        f"{results.told}. Watched for {runs[0].length_s:g} s. Final savings: {results.final_mib:.0f} MiB.",
        write_table(FIGURES, [figure_cells(run) for run in runs]),
        write_table(NEIGHBOURS, [neighbour_cells(run) for run in runs]),
    ]
    if results.work == "growth" and results.lag_shares:
        rows = [
            (name, f"{100 * results.lag_shares[name]:.1f}", f"{100 * results.late_lag_shares[name]:.1f}")
            for name in names
            if name in results.lag_shares
        ]
        head = ("contender", "behind flat out at worst %", f"from {LATE_LAG_S:g} s after the last settling on %")
        parts.append(write_table(head, rows))
    if picture is not None:
        parts.append(f"![{results.work}: savings and ksmd's CPU over time]({picture})")
    return parts


def figure_cells(run: Figures) -> tuple[str, ...]:
    rate = run.saved_mib_s_per_cpu_s
    return (
        run.contender,
        f"{run.held_mib:.0f}",
        in_tenths(run.until_most_s),
        in_tenths(run.cpu_until_most_s),
        in_tenths(run.parked_after_s),
        in_tenths(run.cpu_until_parked_s),
        f"{run.cpu_s:.1f}",
        f"{100 * run.rest_share:.2f}",
        f"{run.hour_cpu_s:.1f}",
        "-" if rate is None else f"{rate:.0f}",
        "-" if run.merges is None else str(run.merges),
        in_tenths(run.own_cpu_s),
    )


def neighbour_cells(run: Figures) -> tuple[str, ...]:
    def cells(summary: Summary | None) -> tuple[str, str]:
        return ("-", "-") if summary is None else (f"{summary.median:.2f}", f"{summary.p99:.2f}")

    return (run.contender, *cells(run.neighbour_sweep), *cells(run.neighbour_rest))


def write_goals(measured: Iterable[Results]) -> str:
    """Write the table of goals: measured, goal, met or not, work by work."""
    rows = [
        (results.work, verdict.column, verdict.measured, verdict.goal, verdict.word)
        for results in measured
        for verdict in judge_work(results)
    ]
    if not rows:
        return "Nothing to judge: the policy that they are for, adaptive, has no run here."
    return write_table(("work", "what", "measured", "goal", ""), rows)


def write_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def in_tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
