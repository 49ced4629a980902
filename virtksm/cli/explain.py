"""`virtksm explain`: the last decisions, the numbers that led to them, the rule, and what would have changed them.

Reads the history: asks the agent, or reads its file where none runs. A pass in which the same rule just went on is no
decision.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

from virtksm.cli.history import read_decisions
from virtksm.cli.layout import Row, print_result
from virtksm.cli.status_text import parts_text
from virtksm.cli.timespan import whole
from virtksm.policy.rules import meaning_of
from virtksm.text import format_kib
from virtksm.trace import Pass
from virtksm.trace.text import pass_values

FOLLOWS_S = 1.0
LAST = 5
MAX = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--last",
        metavar="N",
        type=whole(MAX),
        default=LAST,
        help=f"how many decisions, 1 to {MAX} (default: %(default)s)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="show each decision to come, too, until Ctrl-C")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the numbers that led to each decision, too")


def run(options: argparse.Namespace) -> None:
    """Print the last decisions, the oldest first.

    Raises VirtksmError if the agent does not answer, or if this user may read neither it nor its file.
    """
    lines: Sequence[Pass] = read_decisions(options, options.last)
    if not lines and not options.json:
        print("the history has no decision of this host", flush=True)
    _show(lines, options)
    try:
        while options.follow:
            time.sleep(FOLLOWS_S)
            new = after(lines, read_decisions(options, MAX))
            if new:
                print(end="" if options.json or not lines else "\n")
                _show(new, options)
                lines = new
    except KeyboardInterrupt:
        pass


def after(shown: Sequence[Pass], now: Sequence[Pass]) -> Sequence[Pass]:
    """Return what has come after the last one shown, by its place: a clock may be set back between two."""
    places = [number for number, line in enumerate(now, 1) if shown and _name(line) == _name(shown[-1])]
    return now[places[-1] if places else 0 :]


def _name(line: Pass) -> tuple[float, int]:
    return line.at_s, line.seq


def _show(lines: Sequence[Pass], options: argparse.Namespace) -> None:
    values = {"decisions": [decision_values(line) for line in lines]}
    blank = ("", "", "")
    rows = [row for line in lines for row in (*decision_rows(line, verbose=options.verbose), blank)]
    print_result(options, values, rows[:-1])


def decision_values(line: Pass) -> dict[str, object]:
    """Return a decision as JSON values, with what its rule means."""
    meaning = meaning_of(line.policy, line.decision.reason.rule)
    return {"at_s": line.at_s, "rule_means": meaning, "pass": pass_values(line)}


def decision_rows(line: Pass, *, verbose: bool) -> Iterator[Row]:
    """Yield the rows of one decision; its numbers only for `verbose`, savings where not all are shared pages."""
    reason, ksm = line.decision.reason, line.snapshot.ksm
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.at_s))
    yield "", f"{at}  {', '.join(line.triggers.names)}: {line.outcome}", ""
    yield "", "Decided", reason.text
    yield "", "Rule", f"{reason.rule}: {meaning_of(line.policy, reason.rule)}"
    yield from (("", "Threshold", str(threshold.get("text"))) for threshold in line.thresholds)
    if ksm.unmapped_kib:
        parts = parts_text(*(kib or None for kib in (ksm.shared_kib, ksm.zero_kib, ksm.freed_kib)))
        yield "", "Saved", f"{format_kib(ksm.saved_kib)}: {parts}"
    if changed := [f"{name} {before} -> {after}" for name, (before, after) in line.changed.items()]:
        yield "", "Changed", ", ".join(changed)
    if verbose and reason.numbers:
        yield "", "Numbers", ", ".join(_number_text(name, value) for name, value in reason.numbers.items())


def _number_text(name: str, value: float | None) -> str:
    """Return a number with the unit that its name ends with."""
    if value is None:
        return f"{name} unknown"
    for ending, unit in ENDINGS.items():
        if name.endswith(ending):
            text = format_kib(value) if ending.startswith("_kib") else _plain(value)
            return f"{name.removesuffix(ending)} {text}{unit}"
    return f"{name} {_plain(value)}"


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


ENDINGS = {"_percent": " %", "_kib_s": " s", "_kib": "", "_us": " us", "_ms": " ms", "_s": " s"}
"""By how a number's name ends, what follows the number; the longest first."""
