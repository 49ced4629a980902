"""`virtksm trace plot`: a picture of what was saved, what it cost, the settings and the guests, over time.

Of the agent's history, or of a trace of `virtksm trace record`. matplotlib is needed here alone, and is no dependency.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from virtksm.cli.history import Excerpt, read_history
from virtksm.cli.layout import print_result
from virtksm.cli.timespan import DAY_S, YEAR_S, timespan
from virtksm.errors import VirtksmError, reason_of
from virtksm.history.plot import draw
from virtksm.history.samples import GuestEvent, Sample, sample_of
from virtksm.model.snapshot import Guest
from virtksm.store.trace import read_trace
from virtksm.trace import Line, Pass, Torn
from virtksm.trace.text import parse_lines


def add_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("trace", metavar="FILE", nargs="?", help="draw this trace of `virtksm trace record`")
    source.add_argument(
        "--last",
        metavar="TIME",
        type=timespan(1, YEAR_S),
        help="draw that much of the agent's history: 90s, 30m, 24h (default: 24h; it has a day)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=picture, required=True, help="where to: a name ending in .svg or .png"
    )


def picture(text: str) -> Path:
    """Take a picture's name; raises argparse's error for one of another kind."""
    path = Path(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .svg nor in .png")
    return path


def run(options: argparse.Namespace) -> None:
    if options.trace is None:
        title, drawn = options.connect or "KSM", read_history(options, seconds=options.last or DAY_S)
    else:
        title, drawn = options.trace, excerpt_of(parse_lines(read_trace(options.trace), options.trace))
    try:
        draw(drawn.samples, drawn.events, title, options.output)
    except OSError as error:
        remedy = f"ls -ld {options.output.parent}"
        raise VirtksmError(f"{options.output}: it cannot be written: {reason_of(error)}", remedy=remedy) from error
    samples, events = len(drawn.samples), len(drawn.events)
    values = {"output": str(options.output), "samples": samples, "events": events}
    print_result(options, values, [("", "Drawn", f"{options.output}: {samples} samples, {events} events")])


def excerpt_of(lines: Iterable[Line | Torn]) -> Excerpt:
    """Return a trace as a history: a sample for each pass, and the guests that came and went between two.

    A trace does not say why, so that a guest found after a gap counts as started then.
    """
    samples: list[Sample] = []
    events: list[GuestEvent] = []
    known: dict[str, Guest] | None = None
    for line in lines:
        if not isinstance(line, Pass):
            continue
        samples.append(sample_of(line.at_s, line.snapshot, line.after, line.decision.reason.rule))
        running = {guest.key: guest for guest in line.snapshot.guests}
        if known is not None:
            events += new_guests(line.at_s, "started", known, running)
            events += new_guests(line.at_s, "stopped", running, known)
        known = running
    return Excerpt(now_s=samples[-1].at_s if samples else 0.0, samples=tuple(samples), events=tuple(events))


def new_guests(at_s: float, kind: str, before: Mapping[str, Guest], after: Mapping[str, Guest]) -> list[GuestEvent]:
    """Return an event of this kind for each guest that is not in `before`."""
    new = [guest for key, guest in after.items() if key not in before]
    return [GuestEvent(at_s=at_s, kind=kind, domain=guest.name, uuid=guest.uuid) for guest in new]
