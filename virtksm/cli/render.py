"""Plain text for people, from the same dictionaries that --json prints."""

from __future__ import annotations

from collections.abc import Mapping

from virtksm.text import format_kib, printable

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

UNITS = {"pages_to_scan": "pages", "sleep_millisecs": "ms", "merge_across_nodes": ""}


def pass_lines(report: Mapping[str, Any]) -> list[str]:
    """Render one pass: the snapshot, the decision and its reason, the changes."""
    sensed, decision = report["sensed"], report["decision"]
    free_kib = sensed["free_kib"] + sensed["buffers_kib"] + sensed["cached_kib"]
    unread = f" ({sensed['guests_unread']} unread)" if sensed["guests_unread"] else ""
    lines = [
        f"host      {report['uri']} ({report['source']})",
        f"sensed    {sensed['guests']} guests{unread} holding {format_kib(sensed['committed_kib'])}; "
        f"{format_kib(free_kib)} of {format_kib(sensed['total_kib'])} free or cache",
        f"decided   {'idle' if decision['idle'] else 'scan'}: {decision['reason']} ({report['policy']}, "
        f"rule {decision['rule']})",
        *(f"threshold {threshold['text']}" for threshold in decision.get("thresholds", ())),
        f"outcome   {report['outcome']} in {report['duration_ms']:.1f} ms",
    ]
    after = decision["target"] if report["outcome"] == "dry_run" else report["after"]
    lines += _change_lines(report["before"], after, would=report["outcome"] == "dry_run")
    return [printable(line) for line in lines + [f"warning   {note}" for note in report["warnings"]]]


def restore_lines(report: Mapping[str, Any]) -> list[str]:
    """Render what a restore did."""
    lines = _change_lines(report["before"], report["after"], would=False)
    if report["switched_off"]:
        lines.append("idle      virtksm is paused, so the baseline is kept until `virtksm resume`")
    lines += [
        f"doubted   {name}: its saved baseline is implausible, so it gets the kernel's default"
        for name in report["doubted"]
    ]
    lines += [f"left      {name}: another program has changed it since" for name in report["left"]]
    return [printable(line) for line in lines + [f"warning   {one['message']}" for one in report["refused"]]]


def _change_lines(before: Mapping[str, int | None], after: Mapping[str, int | None], *, would: bool) -> list[str]:
    changes = [
        f"{'would set' if would else 'changed  '} {name}: {before[name]} -> {after[name]} {UNITS[name]}".rstrip()
        for name in UNITS
        if after[name] is not None and after[name] != before[name]
    ]
    return changes or [
        "unchanged " + ", ".join(f"{name} {value}" for name, value in before.items() if value is not None)
    ]
