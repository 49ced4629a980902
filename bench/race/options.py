"""The options of `script/bench race`, parsed and checked.

In: the arguments. Out: an `Options`, or argparse's message and exit.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.race.peers import CONTENDERS
from bench.race.works import list_works
from bench.stage import REPO

QUICK_WORKS = ("storm", "twin")
QUICK_CONTENDERS = ("adaptive", "advisor-late", "clairvoyant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run, and where its records lie."""

    works: tuple[str, ...]
    contenders: tuple[str, ...]
    quick: bool
    output: Path
    report: bool
    missing: bool


def parse_options(arguments: list[str]) -> Options:
    """Parse the command line; exits with a message when it is wrong."""
    works = tuple(list_works(quick=False))
    parser = argparse.ArgumentParser(
        prog="script/bench race",
        description="Race virtksm's policies against ksmtuned and the kernel's advisor, with real guests on this "
        "machine's own KSM. Every run takes 5 minutes (growth 12); each leaves a report in the output folder.",
    )
    parser.add_argument("--works", metavar="W,W", help=f"of {', '.join(works)} (default all; quick: storm,twin)")
    parser.add_argument(
        "--contenders",
        metavar="C,C",
        help=f"of {', '.join(CONTENDERS)} (default all; quick: {','.join(QUICK_CONTENDERS)})",
    )
    parser.add_argument("--quick", action="store_true", help="smaller guests, shorter runs: under 5 minutes")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default build/race, quick: build/race-quick")
    parser.add_argument("--missing", action="store_true", help="run only what has no report in DIR yet")
    parser.add_argument("--report", action="store_true", help="run nothing: report and pictures from DIR's records")
    given = parser.parse_args(arguments)
    return Options(
        works=_chosen(parser, "--works", given.works, works, QUICK_WORKS if given.quick else works),
        contenders=_chosen(
            parser,
            "--contenders",
            given.contenders,
            tuple(CONTENDERS),
            QUICK_CONTENDERS if given.quick else tuple(CONTENDERS),
        ),
        quick=given.quick,
        output=given.output or REPO / "build" / ("race-quick" if given.quick else "race"),
        report=given.report,
        missing=given.missing,
    )


def _chosen(
    parser: argparse.ArgumentParser, option: str, text: str | None, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    if text is None:
        return default
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option}: no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    return names
