"""Reads ksmtuned's own configuration, shell that its script sources, without executing anything.

Returns our keys, and a note for everything without a counterpart or not usable as written. A shell's computation is
never guessed, and no value is taken that the script would not have: without a note, the values are the script's. Pure.
"""

from __future__ import annotations

import re

from virtksm.config.load import build, check_value, quoted
from virtksm.config.schema import KsmtunedParams, Value, find_inconsistencies, keys_of
from virtksm.config.shell_text import Command, Unread, parse_commands

TABLE = "ksmtuned"
WITHOUT_COUNTERPART = {
    "DEBUG": 'use log_level = "debug"',
    "LOGFILE": "virtksm logs to standard error, under systemd to the journal",
    "PIDFILE": "virtksm keeps its lock in its runtime folder",
}
OURS = {f"KSM_{name.upper()}": name for name in keys_of(KsmtunedParams)}

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,17})")  # bash takes 010 for octal
_BLOCKS = {"if", "for", "while", "until", "case", "select", "function", "{", "[[", "coproc", "return", "exit", "exec"}
"""Commands after which an assignment is no longer certain to be made."""

Values = dict[str, Value]


def parse_ksmtuned_conf(text: str) -> tuple[Values, list[str]]:
    """Return (values by our dotted key, notes). As in a shell, the last assignment of a name counts."""
    values: Values = {}
    notes: list[str] = []
    if "\r\n" in text:
        notes.append("has Windows line ends, which ksmtuned takes for a part of each value; they were left out")
    for item in parse_commands(text.replace("\r\n", "\n")):
        place = f"line {item.line}: "
        if isinstance(item, Unread):
            _forget(values, item.text)
            notes.append(
                f"{place}a shell would compute {quoted(item.text)}; nothing is executed here, so it was left out"
            )
            notes[-1] += ", and so was all that follows" if item.is_last else ""
            continue
        assignments = _assignments(item)
        if assignments is not None:
            found = [(name, _take(values, name, value)) for name, value in assignments]
            notes += [f"{place}{quoted(name)[1:-1]}: {note}" for name, note in found if note]
        elif item.words[0].text in _BLOCKS:
            notes.append(f"{place}{quoted(item.text)}: a shell decides what follows; nothing was taken from here on")
            break
        else:
            _forget(values, item.text)
            notes.append(f"{place}is no assignment and was left out: {quoted(item.text)}")
    return values, notes + _drop_inconsistent(values)


def _assignments(command: Command) -> list[tuple[str, str]] | None:
    """Return the (name, value) pairs that a command sets for good, or None if it does anything else."""
    first, *rest = command.words
    exported = first.text == "export"
    pairs: list[tuple[str, str]] = []
    for word in rest if exported else command.words:
        assignment = _ASSIGNMENT.match(word.text if exported else word.bare)
        if assignment is None:
            return None
        pairs.append((assignment[1], word.text[assignment.end() :]))
    return pairs


def _take(values: Values, name: str, text: str) -> str:
    """Store one assignment under our key; return a note if it cannot be, and forget an earlier one, as a shell does."""
    if name in WITHOUT_COUNTERPART:
        return f"has no counterpart: {WITHOUT_COUNTERPART[name]}"
    if name not in OURS:
        return "is not a setting of ksmtuned's and was left out"
    key = f"{TABLE}.{OURS[name]}"
    values.pop(key, None)
    if text == "":  # the script reads ${KSM_X:-default}
        return "is empty, which means ksmtuned's default"
    if not _INTEGER.fullmatch(text):
        return f"{quoted(text)} is no plain decimal number; it was left out, write the number itself"
    problem, remedy = check_value(keys_of(KsmtunedParams)[OURS[name]], int(text))
    if problem:
        return f"{problem} for virtksm; it was left out, {remedy}"
    values[key] = int(text)
    return ""


def _forget(values: Values, text: str) -> None:
    """Drop the values that something left out may have changed (unset, readonly, export -n, computed assignments)."""
    for name, ours in OURS.items():
        if name in text:
            values.pop(f"{TABLE}.{ours}", None)


def _drop_inconsistent(values: Values) -> list[str]:
    """Remove what is valid alone but not together, so that the result always loads; return the notes."""
    notes: list[str] = []
    for keys, problem, _ in list(find_inconsistencies(build(values))):
        notes.append(f"{keys[0]}: {problem}; left out: {', '.join(key for key in keys if key in values)}")
        for key in keys:
            values.pop(key, None)
    return notes
