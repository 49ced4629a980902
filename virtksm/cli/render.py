"""Passes and restores as rows for people, from the same dictionaries that --json prints. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtksm.text import format_kib

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

    from virtksm.cli.layout import Row

UNITS = {"pages_to_scan": "pages", "sleep_millisecs": "ms", "merge_across_nodes": ""}


def pass_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one pass: the snapshot, the decision and its reason, the changes."""
    sensed, decision = report["sensed"], report["decision"]
    free_kib = sensed["free_kib"] + sensed["buffers_kib"] + sensed["cached_kib"]
    unread = f" ({sensed['guests_unread']} unread)" if sensed["guests_unread"] else ""
    yield "", "Host", f"{report['uri']} ({report['source']})"
    yield "", "Memory", f"{format_kib(free_kib)} of {format_kib(sensed['total_kib'])} free or cache"
    yield "", "Guests", f"{sensed['guests']} running{unread}, {format_kib(sensed['committed_kib'])} resident"
    does = "" if report["policy"] == "observe" else "idle: " if decision["idle"] else "scan: "
    yield "", "Decided", f"{does}{decision['reason']}"
    yield from (("", "Threshold", threshold["text"]) for threshold in decision.get("thresholds", ()))
    yield "", "Outcome", f"{report['outcome']} in {report['duration_ms']:.1f} ms"
    would = report["outcome"] in ("dry_run", "observed")
    yield from _change_rows(report["before"], decision["target"] if would else report["after"], would=would)
    yield from (("warn", "Warning", note) for note in report["warnings"])


def restore_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    yield from _change_rows(report["before"], report["after"], would=False)
    if report["paused"]:
        yield "", "Idle", "virtksm is paused, so the baseline is kept until `virtksm resume`"
    for name in report["doubted"]:
        yield "", "Doubted", f"{name}: its saved baseline is implausible, so it gets the kernel's default"
    yield from (("", "Left", f"{name}: another program has changed it since") for name in report["left"])
    yield from (("warn", "Warning", one["message"]) for one in report["refused"])


def _change_rows(before: Mapping[str, int | None], after: Mapping[str, int | None], *, would: bool) -> Iterator[Row]:
    changed = [name for name in UNITS if after[name] is not None and after[name] != before[name]]
    for name in changed:
        text = f"{name}: {before[name]} -> {after[name]} {UNITS[name]}".rstrip()
        yield "", "Would set" if would else "Changed", text
    if not changed:
        known = [f"{name} {value}" for name, value in before.items() if value is not None]
        yield "", "Unchanged", ", ".join(known)
