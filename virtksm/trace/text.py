"""Traces as JSON lines, and back: docs/reference.md has the schema. Pure.

Fields are added, never renamed, while SCHEMA stays, and unknown ones are left alone. A last line that is torn, as after
a kill, is no error: `parse_lines` says so by its last item.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from virtksm.errors import TraceUnusable
from virtksm.text import MAX_TIME_S
from virtksm.trace import End, Gap, Header, Line, Pass, Torn
from virtksm.values import build, dump, parse_object

FORMAT = "virtksm-trace"
SCHEMA = 1
REMEDY = "name a file that `virtksm trace record` has written; remove that line if it was damaged since"


def dump_line(line: Line) -> str:
    """Return one line of a trace, without its end."""
    match line:
        case Header():
            values: dict[str, object] = {"kind": "header", "format": FORMAT, "schema": SCHEMA, **dump(line)}
        case Pass():
            values = pass_values(line)
        case Gap():
            values = {"kind": "gap", **dump(line)}
        case End():
            values = {"kind": "end", **dump(line)}
    return json.dumps(values, separators=(",", ":"))


def parse_lines(texts: Iterable[str], name: str) -> Iterator[Line | Torn]:
    """Parse the lines of the trace called `name`; raises TraceUnusable, naming it and the line."""
    is_first = True
    for number, text in enumerate(texts, start=1):
        try:
            line = parse_line(text, is_first=is_first)
        except ValueError as error:
            if not text.endswith("\n") and not is_first:
                yield Torn()
                return
            raise TraceUnusable(f"{name}:{number}: {error}", remedy=REMEDY) from error
        is_first = False
        yield line
    if is_first:
        raise TraceUnusable(f"{name}: it is empty", remedy=REMEDY)


def parse_line(text: str, *, is_first: bool = False) -> Line:
    """Parse one line; raises ValueError saying what is wrong."""
    values = parse_object(text, "the line")
    kind = values.get("kind")
    if kind == "header":
        return _header(values)
    if is_first:
        raise ValueError("a trace begins with its header")
    match kind:
        case "pass":
            return _pass(values)
        case "gap":
            return build(Gap, values)
        case "end":
            return build(End, values)
    raise ValueError(f"kind is {kind!r:.40}, not header, pass, gap or end")


def parse_summary(text: str) -> Pass:
    """Parse the line of a pass that stands alone; raises ValueError saying what is wrong."""
    line = parse_line(text)
    if not isinstance(line, Pass) or line.law is None:
        raise ValueError("the line is no pass with its law")
    return line


def pass_values(line: Pass) -> dict[str, object]:
    """Return a pass as JSON values."""
    values = {"kind": "pass", **dump(line)}
    values["triggers"] = values["triggers"]["kinds"]
    reason = values["decision"].pop("reason")
    values["decision"] = {
        "rule": reason["rule"],
        "reason": reason["text"],
        "numbers": reason["numbers"],
        "thresholds": values.pop("thresholds"),
        **values["decision"],
    }
    if line.law is None:
        del values["law"]
    if values.pop("continues"):
        del values["state"]
    return values


def _header(values: Mapping[str, object]) -> Header:
    if values.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}")
    schema = values.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r:.40}, and this virtksm reads {SCHEMA}: use one as new as the trace")
    return build(Header, values)


def _pass(values: Mapping[str, object]) -> Pass:
    fields = {**values, "triggers": {"kinds": values.get("triggers")}, "continues": "state" not in values}
    if isinstance(decision := values.get("decision"), dict):
        reason = {"rule": decision.get("rule"), "text": decision.get("reason"), "numbers": decision.get("numbers")}
        fields |= {"decision": {**decision, "reason": reason}, "thresholds": decision.get("thresholds", ())}
    line = build(Pass, fields)
    if not 0 <= line.at_s <= MAX_TIME_S:
        raise ValueError(f"at_s is {line.at_s!r:.40}, not a time")
    if line.snapshot.ksm.page_kib < 1:
        raise ValueError(f"page_kib is {line.snapshot.ksm.page_kib!r:.40}, not a page's size")
    return line
