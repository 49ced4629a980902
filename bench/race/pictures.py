"""One picture a work: savings and ksmd's CPU over time, all contenders, as SVG.

In: the records of one work. Out: curves (pure), and a file drawn by matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.race.measures import OFF, PAGES_PER_MIB
from bench.race.records import Record

POINTS_MOST = 400
TITLE_CHARACTERS = 100
COLOURS: Mapping[str, str] = {
    "adaptive": "#d62728",
    "ksmtuned-law": "#ff9896",
    "ksmtuned": "#1f77b4",
    "advisor-boot": "#2ca02c",
    "advisor-late": "#98df8a",
    "default": "#7f7f7f",
    "flat": "#9467bd",
    "clairvoyant": "#000000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One contender's line: seconds since the first start, saved MiB, ksmd's CPU seconds."""

    contender: str
    at_s: tuple[float, ...]
    saved_mib: tuple[float, ...]
    ksmd_cpu_s: tuple[float, ...]


def trace_curve(report: Record) -> Curve:
    """Make a record's curve, of at most some hundred points, the last sample among them."""
    step = len(report.samples) // POINTS_MOST + 1
    kept = [*report.samples[:-1:step], report.samples[-1]]
    first_cpu_s = report.samples[0].ksmd_cpu_s
    return Curve(
        contender=report.contender,
        at_s=tuple(sample.at_s for sample in kept),
        saved_mib=tuple(sample.pages_sharing / PAGES_PER_MIB for sample in kept),
        ksmd_cpu_s=tuple(round(sample.ksmd_cpu_s - first_cpu_s, 3) for sample in kept),
    )


def trace_work(records: Sequence[Record], order: Sequence[str]) -> list[Curve]:
    """Make the curves of one work's runs, in the contenders' order, without the run in which KSM was off."""
    shown = [report for report in records if report.contender != OFF and report.samples]
    return [trace_curve(report) for report in sorted(shown, key=lambda report: order.index(report.contender))]


def draw_work(curves: Sequence[Curve], title: str, settled_s: float, path: Path) -> None:
    """Draw one work's picture. `settled_s` marks about when the last guest had settled."""
    figure = Figure(figsize=(10.5, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for curve in curves:
        width = 2.2 if curve.contender == "adaptive" else 1.2
        dashes = "--" if curve.contender in {"clairvoyant", "flat"} else "-"
        look = {"color": COLOURS.get(curve.contender), "linewidth": width, "linestyle": dashes}
        above.plot(curve.at_s, curve.saved_mib, label=curve.contender, **look)
        below.plot(curve.at_s, curve.ksmd_cpu_s, label=curve.contender, **look)
    for axes, label in ((above, "saved, MiB"), (below, "ksmd's CPU, s")):
        axes.axvline(settled_s, color="#bbbbbb", linewidth=0.8)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    above.set_title(textwrap.fill(title, TITLE_CHARACTERS), fontsize="medium")
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    below.set_xlabel("s since the first guest's start (vertical line: the last guest has filled its memory)")
    with mpl.rc_context({"svg.hashsalt": "virtksm"}):  # the same records make the same file
        figure.savefig(path, metadata={"Date": None})
