"""`virtksm doctor`: obstacles to KSM on this host, each with a remedy. Writes nothing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from virtksm.cli.connection import requested_uri
from virtksm.errors import ExitCode, VirtksmError
from virtksm.paths import RuntimePaths
from virtksm.text import printable

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from virtksm.doctor.facts import AgentSeen, Unknown
    from virtksm.doctor.finding import Finding, Verdict

SCHEMA = 1
TONES = {"PASS": "good", "WARN": "warn", "FAIL": "bad"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--strict", action="store_true", help="exit with 1 for a WARN, too")
    parser.add_argument(
        "--kept-off",
        action="store_true",
        help="print what keeps KSM off on this host (tuned, a masked ksm.service, tmpfiles.d), exiting with 1 if so",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the finding of every check; returns 1 if one is a FAIL, or with --strict a WARN."""
    if options.kept_off:
        return _kept_off()

    from virtksm.doctor.checks import examine
    from virtksm.doctor.finding import worst
    from virtksm.doctor.reading import read_facts

    uri, paths = requested_uri(options.connect), RuntimePaths(options.runtime_dir, options.state_dir)
    findings = examine(read_facts(uri, options.config, paths, ask_about(paths)))
    verdict = worst(findings)
    if options.json:
        from virtksm.json_output import to_json

        report = {"schema": SCHEMA, "uri": uri, "worst": verdict.value}
        print(to_json({**report, "findings": [one.as_dict() for one in findings]}))
    else:
        from virtksm.cli.terminal import may_colour

        print("\n".join(finding_lines(findings, colour=may_colour(sys.stdout, os.environ))))
    return exit_code(verdict, strict=options.strict)


def _kept_off() -> ExitCode:
    from virtksm.doctor.reading import read_kept_off
    from virtksm.doctor.reading.files import Root

    reason = read_kept_off(Root())
    if reason is None:
        return ExitCode.DONE
    print(printable(reason))
    return ExitCode.FAILED


def ask_about(paths: RuntimePaths) -> AgentSeen | Unknown | None:
    """Return the agent's own status; None where none runs."""
    from virtksm.cli.ask_agent import ask_agent, find_answer
    from virtksm.doctor.facts import Unknown
    from virtksm.doctor.reading.own import parse_agent

    try:
        answer = ask_agent(paths, {"op": "status"})
        return None if answer is None else parse_agent(find_answer(answer, "status"))
    except VirtksmError as error:
        return Unknown(why=error.message, remedy=error.remedy or "systemctl status virtksm.service")


def exit_code(verdict: Verdict, *, strict: bool) -> ExitCode:
    """Return the exit code for the worst verdict: as virt-host-validate, a WARN alone is none, unless `strict`."""
    bad = ("WARN", "FAIL") if strict else ("FAIL",)
    return ExitCode.FAILED if verdict.value in bad else ExitCode.DONE


def finding_lines(findings: Sequence[Finding], *, colour: bool) -> list[str]:
    """Render findings as virt-host-validate does, a remedy on a line of its own below."""
    groups = max(len(one.group) for one in findings)
    whats = max(len(one.what) for one in findings)
    lines = []
    for one in findings:
        shown = _coloured(one.outcome.verdict, colour=colour)
        lines.append(f"{one.group:>{groups}}: {one.what:<{whats}} : {shown} ({printable(one.outcome.detail)})")
        if one.outcome.remedy:
            lines.append(f"{'':>{groups}}  -> {printable(one.outcome.remedy)}")
    return lines


def _coloured(verdict: Verdict, *, colour: bool) -> str:
    from virtksm.cli.terminal import render

    (shown,) = render([(TONES.get(verdict.value, ""), verdict.value)], colour=colour)
    return shown
