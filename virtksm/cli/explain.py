"""`virtksm explain`: the last decisions, the numbers that led to them, the rule, and what would have changed them.

Reads what the agent remembers: asks it, or reads its file where none runs. Passes in which the same rule just went on
are no decisions, and are not among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from virtksm.cli.history import read_decisions
from virtksm.errors import ExitCode, VirtksmError
from virtksm.history.samples import Told
from virtksm.policy.rules import meaning_of
from virtksm.text import format_kib, printable

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1
LAST = 5
MAX = 100
WIDTH = 110


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--connect", "-c", metavar="URI", help="libvirt connection (default: the running agent's)")
    parser.add_argument(
        "--last",
        metavar="N",
        type=_count,
        default=LAST,
        help=f"how many decisions, 1 to {MAX} (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX:
        raise argparse.ArgumentTypeError(f"is {text!r:.40}, not a number from 1 to {MAX}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Print the last decisions, the oldest first; returns the exit code.

    Raises VirtksmError if the agent does not answer, or if this user may read neither it nor its file.
    """
    decisions = [explain(told) for told in read_decisions(options, options.connect, options.last)]
    if options.json:
        import json

        print(json.dumps({"schema": SCHEMA, "decisions": decisions}))
        return ExitCode.DONE
    if not decisions:
        print("no decision is remembered of this host")
    for number, decision in enumerate(decisions):
        print("\n" * (number > 0) + "\n".join(map(printable, decision_lines(decision))))
    return ExitCode.DONE


def explain(told: Told) -> dict[str, Any]:
    """Return a decision with its time as text and what its rule means; raises VirtksmError if it is damaged."""
    match told.report:
        case {
            "policy": str() as policy,
            "triggers": [*_],
            "outcome": str(),
            "before": {} as before,
            "changed": {} as changed,
            "decision": {"rule": str() as rule, "reason": str(), "numbers": {} as numbers} as decision,
        } if _are_numbers(numbers) and _are_thresholds(decision) and before.keys() >= changed.keys():
            return {
                "at_s": told.at_s,
                "at": _utc(told.at_s),
                "rule_means": meaning_of(policy, rule),
                "pass": told.report,
            }
    raise VirtksmError(
        f"the decision of {_utc(told.at_s)} cannot be understood", remedy="read it with the virtksm that has made it"
    )


def _are_numbers(values: Mapping[str, object]) -> bool:
    return all(isinstance(value, int | float | None) for value in values.values())


def _are_thresholds(decision: object) -> bool:
    found = decision.get("thresholds", []) if isinstance(decision, dict) else None
    return isinstance(found, list) and all(isinstance(one, dict) and "text" in one for one in found)


def decision_lines(explained: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one decision."""
    report = explained["pass"]
    decision = report["decision"]
    yield f"{explained['at']}  for {', '.join(map(str, report['triggers']))}: {report['outcome']}"
    yield f"  decided   {decision['reason']}"
    yield f"  rule      {decision['rule']} of {report['policy']}: {explained['rule_means']}"
    for threshold in decision.get("thresholds", ()):
        yield f"  threshold {threshold['text']}"
    yield from _wrapped("  numbers   ", [_number_text(name, value) for name, value in decision["numbers"].items()])
    changes = [f"{name} {report['before'][name]} -> {value}" for name, value in report["changed"].items()]
    yield from _wrapped("  changed   ", changes)


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
    try:
        return datetime.fromtimestamp(at_s, UTC).isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):  # beyond any calendar: a damaged file
        return f"{at_s:g} s"
