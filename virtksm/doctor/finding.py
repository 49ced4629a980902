"""A check's answer: a verdict, the facts, and the remedy. Pure.

PASS: nothing to do. INFO: nothing to judge, as on another machine, or as the administrator asked for; or a saving that
he may choose. WARN: works, at a price, or is unknown. FAIL: virtksm cannot do its work, or a promise is broken. Only
WARN and FAIL have a remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """From good to bad; INFO says that nothing was judged and counts as neither."""

    INFO = "INFO"
    PASS = "PASS"  # noqa: S105  # a verdict
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A verdict, what was seen, and one line of what to do (for WARN and FAIL)."""

    verdict: Verdict
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check. `check` is its stable name, `group` and `what` are for people."""

    check: str
    group: str
    what: str
    outcome: Outcome

    def as_dict(self) -> dict[str, object]:
        """Return JSON values (docs/reference.md)."""
        return {
            "check": self.check,
            "group": self.group,
            "what": self.what,
            "verdict": self.outcome.verdict.value,
            "detail": self.outcome.detail,
            "remedy": self.outcome.remedy or None,
        }


CHECK_FILE = "see that this file exists, is readable (as root) and has the kernel's format"


class CannotTell(Exception):
    """A fact that a check needs could not be read; says why, and what to do about it."""

    def __init__(self, why: str, remedy: str = CHECK_FILE) -> None:
        super().__init__(why)
        self.remedy = remedy


class DoesNotApply(Exception):
    """A check has nothing to judge here; says why."""


def passed(detail: str) -> Outcome:
    """Return a PASS."""
    return Outcome(verdict=Verdict.PASS, detail=detail)


def info(detail: str) -> Outcome:
    """Return an INFO."""
    return Outcome(verdict=Verdict.INFO, detail=detail)


def warned(detail: str, remedy: str) -> Outcome:
    """Return a WARN."""
    return Outcome(verdict=Verdict.WARN, detail=detail, remedy=remedy)


def failed(detail: str, remedy: str) -> Outcome:
    """Return a FAIL."""
    return Outcome(verdict=Verdict.FAIL, detail=detail, remedy=remedy)


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict; PASS if nothing was worse than INFO."""
    verdicts = {finding.outcome.verdict for finding in findings}
    return next((one for one in (Verdict.FAIL, Verdict.WARN) if one in verdicts), Verdict.PASS)
