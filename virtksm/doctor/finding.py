"""A check's answer: a verdict, the facts, and the remedy. Pure.

PASS: nothing to do. INFO: nothing to judge, as on another machine, or as the administrator asked for; or a saving that
he may choose. WARN: works, at a price, or is unknown. FAIL: virtksm cannot do its work, or a promise is broken. Only
WARN and FAIL have a remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal, NamedTuple

Verdict = Literal["INFO", "PASS", "WARN", "FAIL"]


class Judgement(NamedTuple):
    """A verdict, what was seen, and one line of what to do (for WARN and FAIL)."""

    verdict: Verdict
    detail: str
    remedy: str | None = None


class Finding(NamedTuple):
    """The outcome of one check. `check` is its stable name, `group` and `what` are for people."""

    check: str
    group: str
    what: str
    verdict: Verdict
    detail: str
    remedy: str | None


CHECK_FILE = "see that this file exists, is readable (as root) and has the kernel's format"


class CannotTell(Exception):
    """A fact that a check needs could not be read; says why, and what to do about it."""

    def __init__(self, why: str, remedy: str = CHECK_FILE) -> None:
        super().__init__(why)
        self.remedy = remedy


class DoesNotApply(Exception):
    """A check has nothing to judge here; says why."""


passed, info = partial(Judgement, "PASS"), partial(Judgement, "INFO")
warned, failed = partial(Judgement, "WARN"), partial(Judgement, "FAIL")


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict; PASS if nothing was worse than INFO."""
    verdicts = {finding.verdict for finding in findings}
    return "FAIL" if "FAIL" in verdicts else "WARN" if "WARN" in verdicts else "PASS"
