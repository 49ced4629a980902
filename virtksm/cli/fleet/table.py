"""The answers of many hosts as one table and a summary, from the same dictionary that --json prints. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from virtksm.cli.layout import Item, Table
from virtksm.text import format_kib, some_of

UNKNOWN = "-"
MAX_NAMED = 10
Values = Mapping[str, Any]
Cells = tuple[str, ...]
Read = tuple[Cells, list[str]]


def report_items(report: Values) -> Iterator[Item]:
    """Yield the table, in the order in which the hosts were named, and the summary."""
    headings, read = COLUMNS[report["action"]]
    rows = [("HOST", *headings)]
    for one in report["hosts"]:
        cells: Cells = (UNKNOWN,) * (len(headings) - 1)
        texts = [_failure(one), *one["warnings"]]
        if one["answer"] is not None:
            cells, more_texts = read(one["answer"].get("pass", one["answer"]))
            texts += more_texts
        first, *more = [text for text in texts if text] or [""]
        rows.append((one["host"], *cells, first))
        rows += [(one["host"], *("",) * len(cells), text) for text in more]
    # What no host tells, as ksmd's CPU time of other machines, takes no column.
    columns = [at for at in range(len(rows[0])) if at == 0 or any(row[at] not in ("", UNKNOWN) for row in rows[1:])]
    texts_at = {number for number, at in enumerate(columns) if at in (0, 1, len(headings))}
    yield Table([[row[at] for at in columns] for row in rows], texts=texts_at)
    yield from _summary(report)


def _failure(one: Values) -> str:
    if one["error"] is None:
        return ""
    return f"{one['error']}{' -> ' if one['remedy'] else ''}{one['remedy'] or ''}"


def _summary(report: Values) -> Iterator[Item]:
    bad = [one["host"] for one in report["hosts"] if one["exit_code"]]
    total = len(report["hosts"])
    yield "", "", ""
    yield "", "Hosts", f"{total - len(bad)} of {total} ok"
    if bad:
        yield "bad", "Failed", some_of(bad, MAX_NAMED)
    yield from (("", "Note", note) for note in report["notes"])


def _memory(amount: int | None) -> str:
    return UNKNOWN if amount is None else format_kib(amount / 1024)


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _read_status(status: Values) -> Read:
    now, error = status["now"], status["libvirt"]["error"]
    texts = [f"libvirt does not answer: {error}" if error and not status["libvirt"]["answers"] else ""]
    if now is None:
        return (UNKNOWN,) * 5, texts
    percent, share = status["ksmd"]["core_percent"], now["saved_percent"]
    cells = (
        _ksm_state(status, now),
        _number(now["guests"]),
        _memory(now["committed_bytes"]),
        _memory(now["saved_bytes"]) + ("" if share is None else f" ({share:.0f} %)"),
        UNKNOWN if percent is None else f"{percent:.1f} %",
    )
    return cells, [*texts, "no agent" if now["origin"] == "local" and status["agent"] is False else ""]


def _ksm_state(status: Values, now: Values) -> str:
    pages = now["settings"]["pages_to_scan"]
    if now["ksm_run"] not in (None, 1):
        return "off"
    if now["advisor_mode"] not in (None, "none"):
        return "advisor"
    state = UNKNOWN if pages is None else "scanning" if pages else "idle"
    return f"paused, {state}" if status["paused"] else state


def _read_pass(report: Values) -> Read:
    does = "" if report["policy"] == "observe" else ", idle" if report["decision"]["idle"] else ", scanning"
    sensed = report["sensed"]
    cells = f"{report['outcome']}{does}", _number(sensed["guests"]), _memory(sensed["saved_bytes"])
    return cells, [report["decision"]["reason"], *(one["message"] for one in report["refused"]), *report["warnings"]]


def _read_doctor(report: Values) -> Read:
    bad = (one for one in report["findings"] if one["verdict"] in ("WARN", "FAIL"))
    return (report["worst"],), [f"{one['group']}: {one['what']}: {one['detail']} -> {one['remedy']}" for one in bad]


COLUMNS: Mapping[str, tuple[Cells, Callable[[Values], Read]]] = {
    "status": (("KSM", "GUESTS", "RESIDENT", "SAVED", "KSMD", "NOTE"), _read_status),
    "doctor": (("WORST", "FINDING"), _read_doctor),
    **dict.fromkeys(("retune", "pause", "resume"), (("OUTCOME", "GUESTS", "SAVED", "REASON"), _read_pass)),
}
"""By action: headings, and what reads an answer's cells and the texts of its last column."""
