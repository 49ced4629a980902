"""Reads ksmtuned's own configuration, shell assignments that its script sources, without executing anything.

Out come our keys and a note for every line that has no counterpart or cannot be taken as it stands. Pure.
"""

from __future__ import annotations

import re
import shlex

from virtksm.config.load import check_value
from virtksm.config.schema import KsmtunedParams, keys_of

PREFIX = "KSM_"
WITHOUT_COUNTERPART = {
    "DEBUG": 'use log_level = "debug"',
    "LOGFILE": "virtksm logs to standard error, under systemd to the journal",
    "PIDFILE": "virtksm keeps its lock in its runtime folder",
}

_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def parse_ksmtuned_conf(text: str) -> tuple[dict[str, int], list[str]]:
    """Return (values by our dotted key, notes). As in a shell, the last assignment of a name counts."""
    values: dict[str, int] = {}
    notes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        assignment = _ASSIGNMENT.match(words)
        if assignment is None:
            notes.append(f"line {number}: is no assignment and was left out: {_shown(words)}")
            continue
        name, raw = assignment.groups()
        value, fault = _parse_word(raw)
        note = fault or _take(values, name, value)
        if note:
            notes.append(f"line {number}: {name}: {note}")
    return values, notes


def _take(values: dict[str, int], name: str, text: str) -> str:
    """Store one assignment under our key; return a note if it cannot be."""
    if name in WITHOUT_COUNTERPART:
        return f"has no counterpart: {WITHOUT_COUNTERPART[name]}"
    ours = name.removeprefix(PREFIX).lower()
    known = keys_of(KsmtunedParams).get(ours)
    if known is None or f"{PREFIX}{ours.upper()}" != name:
        return "is not a setting of ksmtuned's and was left out"
    if text == "":  # ${KSM_X:-default} in the script: an empty value is its default
        values.pop(f"ksmtuned.{ours}", None)
        return "is empty, which means ksmtuned's default"
    if not _INTEGER.fullmatch(text) or (len(text.lstrip("+-")) > 1 and text.lstrip("+-").startswith("0")):
        return f"{_shown(text)} is no plain decimal number and was left out: write the number itself"
    problem, remedy = check_value(known, int(text))
    if problem:
        return f"{problem} for virtksm and was left out: {remedy}"
    values[f"ksmtuned.{ours}"] = int(text)
    return ""


def _parse_word(raw: str) -> tuple[str, str]:
    """Return (the assigned word, a note if a shell would make something else of it)."""
    if re.search(r"[$`;&|<>()]", raw):
        return "", f"a shell would compute {_shown(raw)}; nothing is executed here, so it was left out"
    try:
        words = shlex.split(raw, comments=True)
    except ValueError as error:
        return "", f"{_shown(raw)} was left out: {error}"
    if len(words) > 1 or (words and raw[:1].isspace()):
        return "", f"{_shown(raw)} is more than one word and was left out"
    return (words[0] if words else ""), ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
