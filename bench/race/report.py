"""One table and one picture a work: every contender's figures, the goals, savings and ksmd's CPU over time.

In: runs, their figures, goals. Out: Markdown text (pure), and a picture drawn by matplotlib. What the words mean is in
measures.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.figures import Goal, number, write_table
from bench.race.measures import LATE_LAG_S, USED_S, Figures, Results
from bench.race.run import Run
from bench.race.works import Work
from demo.guests import PAGES_PER_MIB

COLUMNS: tuple[tuple[str, Callable[[Figures], float | None], int], ...] = (
    ("saved MiB", lambda run: run.held_mib, 0),
    (f"used MiB after {USED_S:g} s", lambda run: run.used_mib, 0),
    ("after a change", lambda run: run.used_changed_mib, 0),
    ("at the end", lambda run: run.used_at_end_mib, 0),
    ("taken of MemAvailable", lambda run: run.taken_mib, 0),
    ("90 % after s", lambda run: run.until_most_s, 1),
    ("of an earlier change", lambda run: run.until_earlier_s, 1),
    ("ksmd-s until then", lambda run: run.cpu_until_most_s, 1),
    ("idle after s", lambda run: run.idle_after_s, 1),
    ("ksmd-s until then", lambda run: run.cpu_until_idle_s, 1),
    ("ksmd-s in the run", lambda run: run.cpu_s, 1),
    ("of a core at rest", lambda run: run.rest_share, 4),
    ("ksmd-s in the hour", lambda run: run.hour_cpu_s, 1),
    ("saved MiB-s per ksmd-s", lambda run: run.saved_mib_s_per_cpu_s, 0),
    ("merges", lambda run: run.merges, 0),
    ("neighbour at rest ms", lambda run: run.neighbour_rest_ms, 2),
    ("while ksmd scans p95", lambda run: run.neighbour_p95_ms, 1),
    ("p99", lambda run: run.neighbour_p99_ms, 1),
    ("behind flat out, at worst", lambda run: run.lag_share, 3),
    (f"from {LATE_LAG_S:g} s on", lambda run: run.late_lag_share, 3),
)
"""What a table shows of a run, and with how many digits behind the point."""
MAX_POINTS = 400
COLOURS: Mapping[str, str] = {
    "adaptive": "#d62728",
    "adaptive-installed": "#ff9896",
    "ksmtuned": "#1f77b4",
    "advisor-boot": "#2ca02c",
    "advisor-late": "#98df8a",
    "default": "#7f7f7f",
    "flat": "#9467bd",
    "clairvoyant": "#000000",
}
"""Of whom a picture shows, in this order: all but the run with KSM off."""


def write_work(
    work: Work, results: Results, goals: Iterable[Goal], left_out: Iterable[str], machine: Mapping[str, object]
) -> str:
    """Write one work's part; `machine` is that of bench.figures."""
    rows = [
        ["contender", *(head for head, _, _ in COLUMNS)],
        *([name, *(number(value(run), digits) for _, value, digits in COLUMNS)] for name, run in results.items()),
    ]
    return write_table(work.name, f"{work.title}. {work.length_s:g} s", machine, rows, goals, left_out)


def draw_work(work: Work, runs: Sequence[Run], path: Path) -> None:
    """Draw one work's picture."""
    figure = Figure(figsize=(10.5, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    by_contender = {run.contender: run.samples for run in runs}
    for name, colour in COLOURS.items():
        samples = by_contender.get(name, ())
        shown = samples[:: len(samples) // MAX_POINTS + 1]
        style = {
            "color": colour,
            "linewidth": 2.2 if name == "adaptive" else 1.2,
            "linestyle": "--" if name in {"clairvoyant", "flat"} else "-",
        }
        if shown:
            at_s = [sample.at_s for sample in shown]
            above.plot(at_s, [sample.pages_sharing / PAGES_PER_MIB for sample in shown], label=name, **style)
            below.plot(at_s, [sample.ksmd_cpu_s - shown[0].ksmd_cpu_s for sample in shown], **style)
    for axes, label in ((above, "saved, MiB"), (below, "ksmd's CPU, s")):
        axes.axvline(max(run.last_settled_s for run in runs), color="#bbbbbb", linewidth=0.8)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    above.set_title(f"{work.name}: {work.title}", fontsize="medium", wrap=True)
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    below.set_xlabel("s since the first guest's start (vertical line: the last guest has filled its memory)")
    with mpl.rc_context({"svg.hashsalt": "virtksm"}):  # the same runs make the same file
        figure.savefig(path, metadata={"Date": None})
