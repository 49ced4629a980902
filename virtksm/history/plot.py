"""The picture of a host's last hours: what was saved, what it cost, the settings, and the guests, over one time axis.

Drawn by matplotlib, which nothing else in virtksm needs: it is imported when a picture is wanted, and where it is
absent `draw` says how to get it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtksm.errors import VirtksmError
from virtksm.history.curves import cpu_shares, pieces
from virtksm.history.samples import GuestEvent, Sample
from virtksm.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, HEIGHT_INCHES = 10.0, 9.0
SHARES = 300
"""How many stretches of ksmd's CPU a picture shows at most."""
MIN_SHARE_S = 5.0
MAX_NAMES = 10
"""Up to so many events carry the guest's name; more would cover each other."""
LABELS = 40
"""So many names would fit beside each other."""
LONGEST_LABEL, LONGEST_TITLE = 16, 100
"""In characters: more would not fit into their axes."""
LABELS_FROM = 0.42
"""Where names begin, of the axes' height: what is below is the curve's."""
MARKS = {"started": ("^", "#2ca02c"), "stopped": ("v", "#d62728")}
OTHER_MARK = ("d", "#7f7f7f")
SAVED, CPU, PAGES, SLEEP, GUESTS = "#1f77b4", "#d62728", "#9467bd", "#8c8c8c", "#333333"
PARTS = (("zero pages", "#17becf"), ("given back by split huge pages", "#ff7f0e"))
"""What of the saved memory is no shared pages, from below; drawn where there is any."""
LEGEND: Mapping[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "ncols": 4,
    "fontsize": "small",
    "frameon": False,
}
"""Above the axes, where no curve is."""
SIZES = (("TiB", 2**30), ("GiB", 2**20), ("MiB", 2**10))


def draw(samples: Sequence[Sample], events: Sequence[GuestEvent], title: str, path: Path) -> None:
    """Draw to `path`, in the format of its suffix, svg or png; times are this machine's local ones.

    Raises VirtksmError without matplotlib, or without two samples; OSError if it cannot be written.
    """
    if len(samples) < 2:
        raise VirtksmError(
            f"nothing to draw: {len(samples)} samples in that time", remedy="let the agent run a while, or ask for more"
        )
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise VirtksmError(
            f"drawing needs matplotlib ({error})",
            remedy="install python3-matplotlib (apt, dnf, zypper), or virtksm[plot] with pip",
        ) from error
    figure = make_figure(samples, events, title)
    with mpl.rc_context({"svg.hashsalt": "virtksm"}):  # the same history makes the same file
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def make_figure(samples: Sequence[Sample], events: Sequence[GuestEvent], title: str) -> Figure:
    """Return the picture, of two samples at least."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    begin_s, end_s = min(sample.at_s for sample in samples), max(sample.at_s for sample in samples)
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    saved, cpu, settings, guests = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 2, 3))
    _draw_saved(saved, samples)
    _draw_cpu(cpu, samples, max((end_s - begin_s) / SHARES, MIN_SHARE_S))
    _draw_settings(settings, samples)
    _draw_guests(guests, samples, [event for event in events if begin_s <= event.at_s <= end_s])
    for axes in (saved, cpu, settings, guests):
        axes.grid(visible=True, alpha=0.3)
    zone = datetime.now(UTC).astimezone().tzinfo
    locator = AutoDateLocator(tz=zone)  # type: ignore[no-untyped-call]  # matplotlib types it half
    guests.xaxis.set_major_locator(locator)
    guests.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))  # type: ignore[no-untyped-call]
    guests.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    guests.set_xlim(_moment(begin_s), _moment(end_s))
    saved.set_title(_shortened(printable(title), LONGEST_TITLE), parse_math=False)
    return figure


def _draw_saved(axes: Axes, samples: Sequence[Sample]) -> None:
    known = [sample for sample in samples if sample.saved_kib is not None]
    unit, kib = _size(max((sample.saved_kib or 0 for sample in known), default=0))
    for piece in pieces(known):
        at = [_moment(sample.at_s) for sample in piece]
        values = [(sample.saved_kib or 0) / kib for sample in piece]
        axes.fill_between(at, values, color=SAVED, alpha=0.3, linewidth=0)
        axes.plot(at, values, color=SAVED)
    for part, (label, colour) in enumerate(PARTS):
        if not any(_parts_kib(sample, part) < _parts_kib(sample, part + 1) for sample in known):
            continue
        for number, piece in enumerate(pieces(known)):
            at = [_moment(sample.at_s) for sample in piece]
            low, high = ([_parts_kib(sample, parts) / kib for sample in piece] for parts in (part, part + 1))
            label_once = label if number == 0 else None
            axes.fill_between(at, low, high, color=colour, alpha=0.5, linewidth=0, label=label_once)
        axes.legend(loc="upper left", fontsize="small", frameon=False)
    axes.set_ylabel(f"saved memory, {unit}")
    axes.set_ylim(bottom=0)


def _parts_kib(sample: Sample, parts: int) -> int:
    """Return what of the saved memory is the first so many of `PARTS`."""
    return sum((sample.zero_kib or 0, sample.freed_kib or 0)[:parts])


def _draw_cpu(axes: Axes, samples: Sequence[Sample], width_s: float) -> None:
    shares = cpu_shares(samples, width_s)
    starts = [_moment(one.from_s) for one in shares]
    widths = [_moment(one.to_s) - _moment(one.from_s) for one in shares]
    axes.bar(starts, [one.share * 100 for one in shares], width=widths, align="edge", color=CPU, alpha=0.7)
    axes.set_ylabel("ksmd, % of one core")
    axes.set_ylim(bottom=0, top=max([5.0, *(one.share * 110 for one in shares)]))


def _draw_steps(axes: Axes, samples: Sequence[Sample], name: str, colour: str, label: str | None = None) -> None:
    for number, piece in enumerate(pieces(samples)):
        at = [_moment(sample.at_s) for sample in piece]
        values = [nan if (value := getattr(sample, name)) is None else value for sample in piece]
        axes.step(at, values, where="post", color=colour, label=label if number == 0 else None)


def _draw_settings(axes: Axes, samples: Sequence[Sample]) -> None:
    for name, colour in (("pages_to_scan", PAGES), ("sleep_millisecs", SLEEP)):
        _draw_steps(axes, samples, name, colour, name)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=-0.3)
    axes.set_ylabel("settings: pages, ms")
    axes.legend(**LEGEND)


def _draw_guests(axes: Axes, samples: Sequence[Sample], events: Sequence[GuestEvent]) -> None:
    _draw_steps(axes, samples, "guests", GUESTS)
    top = max([1, *(sample.guests for sample in samples)])
    has_names = 0 < len(events) <= MAX_NAMES
    height = top * (1.35 / LABELS_FROM if has_names else 1.5)
    for kind in dict.fromkeys(event.kind for event in events):
        mark, colour = MARKS.get(kind, OTHER_MARK)
        at = [_moment(event.at_s) for event in events if event.kind == kind]
        axes.plot(at, [top * 1.25] * len(at), mark, color=colour, label=kind, linestyle="none")
    if has_names:
        begin_s, end_s = min(sample.at_s for sample in samples), max(sample.at_s for sample in samples)
        for at_s, names in _labels(events, (end_s - begin_s) / LABELS):
            side, points = ("left", 2) if at_s - begin_s < end_s - at_s else ("right", -2)  # towards the middle
            place = (_moment(at_s), height * LABELS_FROM)
            text = _shortened(names, LONGEST_LABEL)
            label = axes.annotate(text, place, (points, 0), textcoords="offset points", parse_math=False)
            label.set(rotation=90, ha=side, va="bottom", fontsize="small", clip_on=True)
            label.set_in_layout(False)
    axes.set_ylabel("guests")
    axes.set_ylim(0, height)
    if events:
        axes.legend(**LEGEND)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _labels(events: Sequence[GuestEvent], apart_s: float) -> list[tuple[float, str]]:
    """Return when to write which names; those closer than `apart_s` share a place."""
    labels: list[tuple[float, str]] = []
    for event in sorted(events, key=lambda one: one.at_s):
        name = printable(event.domain)
        if labels and event.at_s - labels[-1][0] < apart_s:
            labels[-1] = (labels[-1][0], f"{labels[-1][1]}, {name}")
        else:
            labels.append((event.at_s, name))
    return labels


def _moment(at_s: float) -> float:
    """Return Unix time as matplotlib counts it: days since 1970."""
    return at_s / 86_400


def _size(max_kib: int) -> tuple[str, int]:
    """Return the largest unit of which there is one at least, and its KiB."""
    return next(((unit, kib) for unit, kib in SIZES if max_kib >= kib), SIZES[-1])
