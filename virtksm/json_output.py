"""Values as they leave the program as JSON, in `--json` and in the log: bytes, seconds, and times as ISO 8601 in UTC.

Inside, memory is in KiB, as the kernel and libvirt have it, and a time is Unix time; a name says which. At this edge a
name's ending changes with its value:

    _kib     KiB           -> _bytes    bytes
    _kib_s   KiB seconds   -> _byte_s   byte seconds
    _ms, _us               -> _s        seconds
    _at_s    Unix time     -> _at       text, as in 2026-11-29T02:13:51.250Z

So do the names inside a value, and those without a beginning (`kib`, `at_s`). The kernel's names stay, with the
kernel's units: `pages_to_scan`, `sleep_millisecs`, `pages_shared`. So does a configuration's key, which has a dot.

Pure; imports only what a one-shot through the agent has anyway.
"""

from __future__ import annotations

import json
import time

from virtksm.text import MAX_TIME_S

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

OUTSIDE = {"at_s": "at", "kib_s": "byte_s", "kib": "bytes", "ms": "s", "us": "s"}
"""By a name's ending, the one outside."""
FACTORS = {"kib_s": 1024, "kib": 1024, "ms": 1e-3, "us": 1e-6}
MAX_DEPTH = 20
"""No output of ours is nested deeper; what another version or a hostile agent has nested deeper stays as it is."""


def to_json(values: object) -> str:
    """Return values as one line of JSON."""
    return json.dumps(to_output(values))


def to_output(value: object, *, depth: int = 0) -> Any:  # noqa: ANN401  # JSON values
    """Return JSON values as they leave the program."""
    if depth == MAX_DEPTH:
        return value
    if isinstance(value, list | tuple):
        return [to_output(one, depth=depth + 1) for one in value]
    if not isinstance(value, dict):
        return value
    quantity = value.get("quantity")
    if isinstance(quantity, str):  # a threshold: the name of its numbers is a value in it
        scaled = {name: _converted(quantity, value[name]) for name in ("value", "present") if name in value}
        return {**value, **scaled, "quantity": output_name(quantity)}
    return {output_name(name): to_output(_converted(name, one), depth=depth + 1) for name, one in value.items()}


def output_name(name: str) -> str:
    """Return the name that a field has outside."""
    ending = _ending(name)
    return name.removesuffix(ending) + OUTSIDE[ending] if ending else name


def _converted(name: str, value: object) -> object:
    ending = _ending(name)
    if ending == "at_s":
        return _iso(value)
    return _scaled(value, FACTORS[ending]) if ending else value


def _ending(name: str) -> str:
    """Return the part of a field's name that says its unit; "" for one that stays."""
    if "." in name:
        return ""
    return next((one for one in OUTSIDE if name == one or name.endswith(f"_{one}")), "")


def _scaled(value: object, factor: float) -> object:
    if isinstance(value, dict):
        return {name: _multiplied(one, factor) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_multiplied(one, factor) for one in value]
    return _multiplied(value, factor)


def _multiplied(value: object, factor: float) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return round(value * factor) if factor > 1 else round(value * factor, 9)  # bytes are whole


def _iso(value: object) -> object:
    """Return Unix time as text, None for one that no calendar has."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME_S:
        return None
    whole_s, ms = divmod(round(value * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole_s))}.{ms:03d}Z"
