"""Reads ksmtuned.conf, shell that ksmtuned's script sources, without executing or expanding anything.

A line is read if it is blank, a comment, or one plain assignment. At any other line reading ends: only a shell can tell
what that line does, and to which lines after it. Without a note, the values are those that the script would have. Pure.
"""

from __future__ import annotations

import re

from virtksm.config.load import build, check_value, quoted
from virtksm.config.schema import KsmtunedParams, Value, find_inconsistencies, keys_of

KSMTUNED, ADAPTIVE = "ksmtuned", "adaptive"
WITHOUT_COUNTERPART = {
    "DEBUG": 'use log_level = "debug"',
    "LOGFILE": "virtksm logs to standard error, under systemd to the journal",
    "PIDFILE": "virtksm keeps its lock in its runtime folder",
}
OURS = {f"KSM_{name.upper()}": name for name in keys_of(KsmtunedParams)}

_ASSIGNMENT = re.compile(
    r"""[ \t]* (?:export[ \t]+)? ([A-Za-z_][A-Za-z0-9_]*) =
    (?: '([^']*)' | "([^"\\$`]*)" | ([^\s'"\\$`;&|<>()#]*) ) (?:[ \t]+\#.*)? [ \t]*""",
    re.VERBOSE | re.DOTALL,
)
_NOTHING = re.compile(r"[ \t]*(?:#.*)?", re.DOTALL)
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,17})")  # bash takes 010 for octal

Values = dict[str, Value]


def parse_ksmtuned_conf(text: str) -> tuple[Values, list[str]]:
    """Return (values by dotted key, notes on what was left out). The last assignment of a name counts."""
    values: Values = {}
    notes: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if found := _ASSIGNMENT.fullmatch(line):
            if note := _take(values, found[1], found[2] or found[3] or found[4] or ""):
                notes.append(f"line {number}: {note}")
        elif not _NOTHING.fullmatch(line):
            notes.append(f"line {number}: only a shell can read {quoted(line.strip())}: nothing was taken from here on")
            break
    return values, notes + _drop_inconsistent(values)


def as_adaptive(values: Values, notes: list[str]) -> tuple[Values, list[str]]:
    """Return what ksmtuned's values mean to the policy adaptive, and the notes, with one for each value left out.

    KSM_THRES_COEF is reserve_percent: both are the share of the host's memory (MemTotal) below which memory counts as
    short. ksmtuned compares free memory with caches, and takes the guests' resident memory; adaptive compares
    MemAvailable, and takes what guests can grow to. So with the same number adaptive acts at the same time or sooner.
    A value that equals ksmtuned's default is not tuned, so nothing of it is left out.
    """
    defaults = {f"{KSMTUNED}.{name}": one.default for name, one in keys_of(KsmtunedParams).items()}
    tuned = {name: value for name, value in values.items() if value != defaults[name]}
    percent = tuned.pop(f"{KSMTUNED}.thres_coef", None)
    counterpart = {
        f"{KSMTUNED}.thres_const": "raise reserve_percent instead",
        f"{KSMTUNED}.monitor_interval": "adaptive hears events",
    }
    more = [
        f"{name} = {value} has no counterpart: {counterpart.get(name, 'cpu_percent limits the speed of adaptive')}"
        for name, value in tuned.items()
    ]
    return {} if percent is None else {f"{ADAPTIVE}.reserve_percent": percent}, notes + more


def _take(values: Values, name: str, text: str) -> str:
    """Store one assignment under our key; return a note if it cannot be, and forget an earlier one, as a shell does."""
    if name in WITHOUT_COUNTERPART:
        return f"{name} has no counterpart: {WITHOUT_COUNTERPART[name]}"
    if name not in OURS:
        return f"{quoted(name)[1:-1]} is no setting of ksmtuned"
    key = f"{KSMTUNED}.{OURS[name]}"
    values.pop(key, None)
    if text == "":  # the script reads ${KSM_X:-default}
        return ""
    if not _INTEGER.fullmatch(text):
        return f"{name} is {quoted(text)}, no plain decimal number: write the number itself"
    problem, remedy = check_value(keys_of(KsmtunedParams)[OURS[name]], int(text))
    if problem:
        return f"{name} {problem} for virtksm: {remedy}"
    values[key] = int(text)
    return ""


def _drop_inconsistent(values: Values) -> list[str]:
    """Remove what is valid alone but not together, so that the result always loads; return the notes."""
    notes: list[str] = []
    for keys, problem, _ in list(find_inconsistencies(build(values))):
        notes.append(f"{keys[0]}: {problem}; left out: {', '.join(key for key in keys if key in values)}")
        for key in keys:
            values.pop(key, None)
    return notes
