"""Traces as JSON lines, and back: docs/reference.md has the schema. Pure.

Fields are added, never renamed, while SCHEMA stays, and unknown ones are left alone. A last line that is torn, as after
a kill, is no error: `parse_lines` says so by its last item.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from virtksm.codec import build, dump
from virtksm.errors import TraceUnusable
from virtksm.text import MAX_TIME_S
from virtksm.trace import End, Gap, Header, Line, Pass, Torn

FORMAT = "virtksm-trace"
SCHEMA = 1
REMEDY = "name a file that `virtksm trace record` has written; remove that line if it was damaged since"


def dump_line(line: Line) -> str:
    """Return one line of a trace, without its end."""
    match line:
        case Header():
            values: dict[str, object] = {"kind": "header", "format": FORMAT, "schema": SCHEMA, **dump(line)}
        case Pass():
            values = _pass_values(line)
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
    try:
        kept = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(kept, dict):
        raise ValueError("no JSON object")
    kind = kept.get("kind")
    if kind == "header":
        return _header(kept)
    if is_first:
        raise ValueError("a trace begins with its header")
    match kind:
        case "pass":
            return _pass(kept)
        case "gap":
            return build(Gap, kept)
        case "end":
            return build(End, kept)
    raise ValueError(f"kind is {kind!r:.40}, not header, pass, gap or end")


def _pass_values(line: Pass) -> dict[str, object]:
    values = dump(line)
    reason, decision = values["decision"].pop("reason"), values["decision"]
    told = {
        "kind": "pass",
        "seq": values["seq"],
        "at_s": values["at_s"],
        "triggers": values["triggers"]["kinds"],
        "snapshot": values["snapshot"],
        "decision": {"rule": reason["rule"], "reason": reason["text"], "numbers": reason["numbers"], **decision},
        "outcome": values["outcome"],
        "after": values["after"],
        "off": values["off"],
    }
    if line.law is not None:
        told["law"] = values["law"]
    if not line.continues:
        told["state"] = values["state"]
    return told


def _header(kept: Mapping[str, object]) -> Header:
    if kept.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}")
    schema = kept.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r:.40}, and this virtksm reads {SCHEMA}: use one as new as the trace")
    return build(Header, kept)


def _pass(kept: Mapping[str, object]) -> Pass:
    decision = kept.get("decision")
    if isinstance(decision, dict):
        reason = {"rule": decision.get("rule"), "text": decision.get("reason"), "numbers": decision.get("numbers")}
        decision = {**decision, "reason": reason}
    triggers = {"kinds": kept.get("triggers")}
    line = build(Pass, {**kept, "triggers": triggers, "decision": decision, "continues": "state" not in kept})
    if not 0 <= line.at_s <= MAX_TIME_S:
        raise ValueError(f"at_s is {line.at_s!r:.40}, not a time")
    if line.snapshot.ksm.page_kib < 1:
        raise ValueError(f"page_kib is {line.snapshot.ksm.page_kib!r:.40}, not a page's size")
    return line


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no number")
