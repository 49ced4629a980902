"""`virtksm doctor`: obstacles to KSM on this host, each with a remedy. Writes nothing."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from virtksm.cli.answers import DECISION, PASS, STATUS
from virtksm.cli.ask_agent import ask_agent, take_answer
from virtksm.cli.connection import requested_uri
from virtksm.cli.layout import Row, print_result
from virtksm.doctor.finding import CannotTell, Finding, Verdict, worst
from virtksm.doctor.reading.own import Status, see_agent
from virtksm.errors import ExitCode, UsageError, VirtksmError
from virtksm.paths import RuntimePaths
from virtksm.text import printable
from virtksm.values import dump

MANY = 5
"""So many checks that could not be judged for the same reason are one line."""
TONES = {"PASS": "good", "WARN": "warn", "FAIL": "bad"}
ASKED_FOR = {
    **STATUS,
    "last_pass": (
        {**PASS, "decision": {**DECISION, "numbers": {"other_processes_kib": int | None}, "rewriters": [str]}},
        None,
    ),
}
BAD = ("WARN", "FAIL")
COUNTED: Mapping[Verdict, tuple[str, str]] = {
    "PASS": ("check passed", "checks passed"),
    "WARN": ("warning", "warnings"),
    "FAIL": ("failure", "failures"),
    "INFO": ("not judged", "not judged"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="show what is in order, too")
    parser.add_argument(
        "--only", metavar="CHECK", action="append", help="make this check, or this group's, alone (may be repeated)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 for a WARN, too")
    parser.add_argument(
        "--kept-off",
        action="store_true",
        help="print only what keeps KSM off here (tuned, a masked ksm.service, tmpfiles.d), exiting with 1 if so",
    )


def run(options: argparse.Namespace) -> int:
    """Print what the checks find; returns 1 if one is a FAIL, or with --strict a WARN."""
    if options.kept_off:
        if options.json or options.all or options.only or options.strict:
            raise UsageError("--kept-off makes no checks: it goes without --json, --all, --only and --strict")
        return _kept_off()

    from virtksm.doctor.checks import examine
    from virtksm.doctor.facts import read_facts  # psutil, which is not there where man pages are made

    chosen = choose(options.only)
    uri = requested_uri(options.connect, options.paths)
    found = examine(read_facts(uri, options.config, options.paths, ask_about(options.paths)))
    findings = [one for one in found if one.check in chosen]
    verdict = worst(findings)
    values = {"uri": uri, "worst": verdict, "findings": dump(findings)}
    print_result(options, values, finding_rows(findings, shows_all=options.all))
    # As with virt-host-validate, a WARN alone is none.
    return ExitCode.FAILED if verdict == "FAIL" or (options.strict and verdict == "WARN") else ExitCode.DONE


def choose(only: Sequence[str] | None) -> set[str]:
    """Return the names of the checks to make, all where `only` names neither checks nor groups; raises VirtksmError."""
    from virtksm.doctor.checks import CHECKS

    names, groups = {check.name for check in CHECKS}, {check.group for check in CHECKS}
    for one in only or ():
        if one not in names | groups:
            from difflib import get_close_matches

            near = " or ".join(get_close_matches(one, names | groups, n=2)) or f"one of {', '.join(sorted(groups))}"
            raise UsageError(f"there is no check {printable(one)!r}", remedy=f"did you mean {near}?")
    return {check.name for check in CHECKS if not only or {check.name, check.group} & {*only}}


def _kept_off() -> ExitCode:
    from virtksm.doctor.facts import Here, find_kept_off
    from virtksm.doctor.reading.files import Root

    reason = find_kept_off(Here(Root(), ""))
    if reason is None:
        return ExitCode.DONE
    print(printable(reason))
    return ExitCode.FAILED


def ask_about(paths: RuntimePaths) -> Status | CannotTell | None:
    try:
        answer = ask_agent(paths, {"op": "status"})
        return None if answer is None else see_agent(take_answer(answer, "status", ASKED_FOR))
    except VirtksmError as error:
        return CannotTell(error.message, error.remedy or "systemctl status virtksm.service")


def finding_rows(findings: Sequence[Finding], *, shows_all: bool) -> Iterator[Row]:
    """Yield the problems, each remedy in a row of its own, what could not be judged, and a summary."""
    skipped = Counter(one.detail for one in findings if one.verdict == "INFO")
    for one in findings:
        if (shows_all and skipped[one.detail] < MANY) or one.verdict in BAD:
            yield TONES.get(one.verdict, ""), one.verdict, f"{one.group}: {one.what}: {one.detail}"
        if one.remedy:
            yield "", "", f"-> {one.remedy}"
    yield from (("", "INFO", f"{count} checks: {detail}") for detail, count in skipped.items() if count >= MANY)
    yield "", counted(findings), ""


def counted(findings: Sequence[Finding]) -> str:
    """Return the summary: how many checks there were of each verdict, those without any left out."""
    counts = Counter(one.verdict for one in findings)
    return ", ".join(
        f"{counts[verdict]} {words[counts[verdict] != 1]}" for verdict, words in COUNTED.items() if counts[verdict]
    )
