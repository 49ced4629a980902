"""Traces as JSON lines, and back: docs/trace.md has the schema. Pure.

Fields are added, never renamed, while SCHEMA stays, and unknown ones are left alone. A last line that is torn, as after
a kill, is no error: `parse_lines` says so by its last item.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, TypeVar

from virtksm.errors import TraceUnusable
from virtksm.model.decision import Decision, Number, Occasion, Reason, SwitchedOff, Trigger
from virtksm.model.snapshot import Guest, HostMemory, KsmState, OthersMemory, Settings, Snapshot, Source
from virtksm.text import MOST_TIME_S
from virtksm.trace import End, Gap, Header, Law, Line, Pass, Torn

FORMAT = "virtksm-trace"
SCHEMA = 1
REMEDY = "name a file that `virtksm record` has written; remove that line if it was damaged since"

MOST = 2.0**65
"""Bounds numbers: beyond it (or not finite) they come from no counter and no clock."""

Made = TypeVar("Made")
Chosen = TypeVar("Chosen", bound=Enum)


def dump_line(line: Line) -> str:
    """Return one line of a trace, without its end."""
    match line:
        case Header():
            values: dict[str, object] = {"kind": "header", "format": FORMAT, "schema": SCHEMA, **_values(line)}
            values["law"] = _values(line.law)
        case Pass():
            values = _pass_values(line)
        case Gap():
            values = {"kind": "gap", **_values(line)}
        case End():
            values = {"kind": "end", **_values(line)}
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
            return _built(Gap, kept)
        case "end":
            return _built(End, kept)
    raise ValueError(f"kind is {kind!r:.40}, not header, pass, gap or end")


def _pass_values(line: Pass) -> dict[str, object]:
    snapshot, decision = line.snapshot, line.decision
    values: dict[str, object] = {
        "kind": "pass",
        "seq": line.seq,
        "at_s": line.at_s,
        "triggers": line.occasion.names,
        "snapshot": {
            "taken_s": snapshot.taken_s,
            "source": snapshot.source.value,
            "host": _values(snapshot.host),
            "ksm": {**_values(snapshot.ksm), "settings": snapshot.ksm.settings.as_dict()},
            "guests": [_values(guest) for guest in snapshot.guests],
            "others": None if snapshot.others is None else _values(snapshot.others),
        },
        "decision": {
            "rule": decision.reason.rule,
            "reason": decision.reason.text,
            "numbers": dict(decision.reason.numbers),
            "target": decision.target.as_dict(),
            "next_pass_s": decision.next_pass_s,
            "is_routine": decision.is_routine,
        },
        "outcome": line.outcome,
        "after": line.after.as_dict(),
        "off": None if line.off is None else _values(line.off),
    }
    if line.law is not None:
        values["law"] = _values(line.law)
    if not line.continues:
        values["past"] = line.past
    return values


def _values(made: Any) -> dict[str, object]:  # noqa: ANN401  # any dataclass: mypy has no type for that
    return {one.name: getattr(made, one.name) for one in fields(made)}


def _header(kept: Mapping[str, object]) -> Header:
    if kept.get("format") != FORMAT:
        raise ValueError(f"not a {FORMAT}")
    schema = kept.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r:.40}, and this virtksm reads {SCHEMA}: use one as new as the trace")
    return _built(Header, kept, law=_law(kept.get("law")))


def _law(kept: object) -> Law:
    values = _object("law", kept)
    return _built(Law, values, config=_object("law.config", values.get("config")))


def _pass(kept: Mapping[str, object]) -> Pass:
    off, past = kept.get("off"), kept.get("past")
    line = _built(
        Pass,
        kept,
        occasion=_occasion(kept.get("triggers")),
        snapshot=_snapshot(_object("snapshot", kept.get("snapshot"))),
        decision=_decision(_object("decision", kept.get("decision"))),
        after=_built(Settings, _object("after", kept.get("after"))),
        off=None if off is None else _built(SwitchedOff, _object("off", off)),
        law=None if "law" not in kept else _law(kept["law"]),
        continues="past" not in kept,
        past=None if past is None else _object("past", past),
    )
    if not 0 <= line.at_s <= MOST_TIME_S:
        raise ValueError(f"at_s is {line.at_s!r:.40}, not a time")
    if line.snapshot.ksm.page_kib < 1:
        raise ValueError(f"page_kib is {line.snapshot.ksm.page_kib!r:.40}, not a page's size")
    return line


def _occasion(kept: object) -> Occasion:
    if not isinstance(kept, list):
        raise ValueError("triggers are no list")
    return Occasion(triggers=frozenset(_member(Trigger, "triggers", one) for one in kept))


def _snapshot(kept: Mapping[str, object]) -> Snapshot:
    ksm = _object("snapshot.ksm", kept.get("ksm"))
    guests, others = kept.get("guests"), kept.get("others")
    if not isinstance(guests, list):
        raise ValueError("snapshot.guests are no list")
    return _built(
        Snapshot,
        kept,
        source=_member(Source, "snapshot.source", kept.get("source")),
        host=_built(HostMemory, _object("snapshot.host", kept.get("host"))),
        ksm=_built(KsmState, ksm, settings=_built(Settings, _object("ksm.settings", ksm.get("settings")))),
        guests=tuple(_built(Guest, _object("a guest", guest)) for guest in guests),
        others=None if others is None else _built(OthersMemory, _object("snapshot.others", others)),
    )


def _decision(kept: Mapping[str, object]) -> Decision:
    numbers = _object("decision.numbers", kept.get("numbers"))
    reason = Reason(
        rule=_typed("decision.rule", kept.get("rule"), "str"),
        text=_typed("decision.reason", kept.get("reason"), "str"),
        numbers={name: _number(name, value) for name, value in numbers.items()},
    )
    return _built(Decision, kept, target=_built(Settings, _object("target", kept.get("target"))), reason=reason)


def _number(name: str, value: object) -> Number:
    if value is None or isinstance(value, bool):
        return value
    number: Number = _typed(name, value, "float")
    return number


def _object(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value


def _member(of: type[Chosen], name: str, value: object) -> Chosen:
    try:
        return of(value)
    except ValueError:
        raise ValueError(f"{name}: {value!r:.40} is none of {', '.join(str(one.value) for one in of)}") from None


def _built(made: type[Made], kept: Mapping[str, object], **parsed: object) -> Made:
    """Build a dataclass from its fields as kept, of which `parsed` are parsed already; raises ValueError."""
    values: dict[str, Any] = dict(parsed)
    for one in fields(made):  # type: ignore[arg-type]  # every one given is a dataclass
        if one.name in values:
            continue
        if one.name in kept:
            values[one.name] = _typed(one.name, kept[one.name], str(one.type))
        elif one.default is MISSING:
            raise ValueError(f"{one.name} is missing")
    return made(**values)


def _typed(name: str, value: object, kind: str) -> Any:  # noqa: ANN401  # what kind says
    if value is None and kind.endswith("| None"):
        return None
    wanted = {"str": str, "bool": bool, "int": int, "float": int | float}[kind.removesuffix(" | None")]
    is_flag = isinstance(value, bool) and wanted is not bool
    if is_flag or not isinstance(value, wanted) or (isinstance(value, int | float) and not -MOST < value < MOST):
        raise ValueError(f"{name} is {value!r:.40}, not {kind}")
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no number")
