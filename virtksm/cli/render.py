"""Plain text for people, from the same dictionaries that --json prints."""

from __future__ import annotations

from collections.abc import Mapping

from virtksm.printable import printable
from virtksm.units import format_kib

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

UNITS = {"pages_to_scan": "pages", "sleep_millisecs": "ms", "merge_across_nodes": ""}


def pass_lines(record: Mapping[str, Any]) -> list[str]:
    """Render one pass: what was sensed, what was decided and why, what changed."""
    sensed, decision = record["sensed"], record["decision"]
    free_kib = sensed["free_kib"] + sensed["buffers_kib"] + sensed["cached_kib"]
    unread = f" ({sensed['guests_unread']} unread)" if sensed["guests_unread"] else ""
    lines = [
        f"host      {record['uri']} ({record['source']})",
        f"sensed    {sensed['guests']} guests{unread} holding {format_kib(sensed['committed_kib'])}; "
        f"{format_kib(free_kib)} of {format_kib(sensed['total_kib'])} free or cache",
        f"decided   {'parked' if decision['parked'] else 'scan'}: {decision['reason']} ({record['policy']}, "
        f"rule {decision['rule']})",
        f"outcome   {record['outcome']} in {record['duration_ms']:.1f} ms",
    ]
    after = decision["target"] if record["outcome"] == "dry_run" else record["after"]
    lines += _change_lines(record["before"], after, would=record["outcome"] == "dry_run")
    return [printable(line) for line in lines + [f"warning   {note}" for note in record["warnings"]]]


def restore_lines(record: Mapping[str, Any]) -> list[str]:
    """Render what a restore did."""
    lines = _change_lines(record["before"], record["after"], would=False)
    lines += [f"left      {name}: somebody else has changed it since" for name in record["left"]]
    return [printable(line) for line in lines + [f"warning   {one['message']}" for one in record["refused"]]]


def _change_lines(before: Mapping[str, int | None], after: Mapping[str, int | None], *, would: bool) -> list[str]:
    changes = [
        f"{'would set' if would else 'changed  '} {name}: {before[name]} -> {after[name]} {UNITS[name]}".rstrip()
        for name in UNITS
        if after[name] is not None and after[name] != before[name]
    ]
    return changes or [
        "unchanged " + ", ".join(f"{name} {value}" for name, value in before.items() if value is not None)
    ]
