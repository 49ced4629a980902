"""The shape that an agent's answer must have before root's commands use it: every field that is used, and its type.

The agent runs as another user and may be hostile: a text in place of a number is a traceback or, multiplied, all
memory. agent/control_client.py has bounded the answer's bytes, time, depth and numbers.
Pure; imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import UnionType
    from typing import Any

    Shape = type | UnionType | tuple[Any, ...] | list[Any] | Mapping[str, Any]

SETTINGS = {"pages_to_scan": int | None, "sleep_millisecs": int | None, "merge_across_nodes": int | None}
DECISION = {"idle": bool, "rule": str, "reason": str, "target": SETTINGS}
PASS = {
    "uri": str,
    "policy": str,
    "triggers": [str],
    "source": str,
    "sensed": {
        "total_kib": int,
        "free_kib": int,
        "buffers_kib": int,
        "cached_kib": int,
        "available_kib": int | None,
        "guests": int,
        "guests_unread": int,
        "committed_kib": int,
        "pages_shared": int | None,
        "pages_sharing": int | None,
        "ksm_zero_pages": int | None,
        "freed_kib": int | None,
        "page_kib": int,
    },
    "decision": DECISION,
    "outcome": str,
    "before": SETTINGS,
    "after": SETTINGS,
    "refused": [{"parameter": str, "cause": str, "message": str}],
    "warnings": [str],
    "duration_ms": int | float,
}
"""A pass, as virtksm/model/report.py writes it."""
PASS_ASKED_FOR = {**PASS, "decision": {**DECISION, "thresholds": [{"text": str}]}}
NOW = {
    "ksm_run": int | None,
    "advisor_mode": str | None,
    "redhat_only_zero_pages": int | None,
    "settings": SETTINGS,
    "pages_sharing": int | None,
    "ksm_zero_pages": int | None,
    "freed_kib": int | None,
    "page_kib": int,
    "saved_kib": int | None,
    "saved_percent": int | float | None,
    "ksmd_cpu_seconds": int | float | None,
    "guests": int | None,
    "guests_unread": int | None,
    "committed_kib": int | None,
}
STATUS = {
    "version": str,
    "uri": str,
    "policy": str,
    "libvirt": {
        "answers": bool,
        "silent_since": str | None,
        "silent_s": int | float | None,
        "waiting_for": str | None,
        "error": str | None,
    },
    "last_pass": (PASS, None),
    "full_scan": ({"done_kib": int | None, "total_kib": int, "left_s": int | float | None}, None),
    "last_pass_ago_s": int | float | None,
    "next_pass_s": int | float | None,
    "stranded": {"possible": bool | None, "settings": (SETTINGS, None), "worst_core_percent": int | float | None},
    "paused": bool | None,
    "switched": (
        {
            "unmerged": [{"name": str, "uuid": str, "why": str}],
            "merging": [{"uuid": str}],
            "failed": [{"message": str}],
            "rewriters_unknown": str | None,
        },
        None,
    ),
    "now": (NOW, None),
}
"""A status, as virtksm/agent/status.py writes it."""


def take(value: object, shape: Shape, name: str) -> Any:  # noqa: ANN401  # the shape's
    """Return `value`, called `name`, if it has this shape, with null for missing fields; raises ValueError.

    A mapping is an object with these fields, and perhaps more; a list any number of things of one shape; a pair a shape
    or null.
    """
    match shape:
        case (inner, None):
            return None if value is None else take(value, inner, name)
        case [inner] if isinstance(value, list):
            return [take(one, inner, name) for one in value]
        case dict() if isinstance(value, dict):
            return {**value, **{field: take(value.get(field), of, field) for field, of in shape.items()}}
        case dict() | list():
            pass
        case _ if isinstance(value, shape):  # type: ignore[arg-type]  # a type, or some
            return value
    raise ValueError(f"{name} is {value!r:.40}")
