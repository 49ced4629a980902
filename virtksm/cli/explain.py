"""`virtksm explain`: the last decisions, the numbers that led to them, the rule, and what would have changed them.

Reads the history: asks the agent, or reads its file where none runs. A pass in which the same rule just went on is no
decision.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime

from virtksm.cli.history import read_decisions
from virtksm.errors import ExitCode
from virtksm.policy.rules import meaning_of
from virtksm.text import format_kib, printable
from virtksm.trace import Pass
from virtksm.trace.text import pass_values

SCHEMA = 1
LAST = 5
MAX = 100
WIDTH = 110


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--last",
        metavar="N",
        type=_count,
        default=LAST,
        help=f"how many decisions, 1 to {MAX} (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX:
        raise argparse.ArgumentTypeError(f"is {text!r:.40}, not a number from 1 to {MAX}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Print the last decisions, the oldest first; returns the exit code.

    Raises VirtksmError if the agent does not answer, or if this user may read neither it nor its file.
    """
    lines = read_decisions(options, options.connect, options.last)
    if options.json:
        from virtksm.json_output import to_json

        print(to_json({"schema": SCHEMA, "decisions": [decision_values(line) for line in lines]}))
        return ExitCode.DONE
    if not lines:
        print("the history has no decision of this host")
    for number, line in enumerate(lines):
        print("\n" * (number > 0) + "\n".join(map(printable, decision_lines(line))))
    return ExitCode.DONE


def decision_values(line: Pass) -> dict[str, object]:
    """Return a decision as JSON values, with what its rule means."""
    return {"at_s": line.at_s, "rule_means": _meaning(line), "pass": pass_values(line)}


def decision_lines(line: Pass) -> Iterator[str]:
    """Yield the lines of one decision."""
    reason = line.decision.reason
    yield f"{_utc(line.at_s)}  for {', '.join(line.triggers.names)}: {line.outcome}"
    yield f"  decided   {reason.text}"
    yield f"  rule      {reason.rule} of {line.policy}: {_meaning(line)}"
    for threshold in line.thresholds:
        yield f"  threshold {threshold.get('text')}"
    yield from _wrapped("  numbers   ", [_number_text(name, value) for name, value in reason.numbers.items()])
    changes = [f"{name} {before} -> {after}" for name, (before, after) in line.changed.items()]
    yield from _wrapped("  changed   ", changes)


def _meaning(line: Pass) -> str:
    return meaning_of(line.policy, line.decision.reason.rule)


def _wrapped(label: str, words: list[str]) -> Iterator[str]:
    """Yield lines of words with commas between them, the first with its label."""
    line = label
    for number, word in enumerate(words, start=1):
        more = word if number == len(words) else f"{word}, "
        if len(line) + len(more) > WIDTH and line.strip():
            yield line.rstrip()
            line = " " * len(label)
        line += more
    if words:
        yield line.rstrip()


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


ENDINGS = {"_kib_s": " s", "_kib": "", "_us": " us", "_ms": " ms", "_s": " s"}
"""By how a number's name ends, what follows the number; the longest first."""


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(sep=" ", timespec="seconds")
