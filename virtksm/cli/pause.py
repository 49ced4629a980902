"""`virtksm pause`: stops scanning until `virtksm resume`, and says what is still merged."""

from __future__ import annotations

import argparse

from virtksm.cli.switching import add_switch_options, switch

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_switch_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Pause and print the pass; returns the exit code."""
    return switch(options, "pause", lambda report: _text(report, options))


def _text(report: dict[str, Any], options: argparse.Namespace) -> str:
    from virtksm.cli.unmerge import merged_dict, merged_rows
    from virtksm.model.snapshot import KsmState

    sensed = report["sensed"]
    ksm = KsmState.counted(sensed.__getitem__, sensed["page_kib"])
    available_kib = sensed["free_kib"] if sensed["available_kib"] is None else sensed["available_kib"]
    if options.json:
        from virtksm.json_output import to_json

        return to_json({"schema": SCHEMA, "paused": True, "merged": merged_dict(ksm, available_kib), "pass": report})
    from virtksm.cli.layout import to_text
    from virtksm.cli.render import pass_rows

    is_local = report["source"] == "local"
    note = "an agent on that host has a switch of its own: run `virtksm pause` there, too"
    return to_text(
        [
            ("", "Paused", "virtksm will not scan until `virtksm resume`"),
            *pass_rows(report),
            *([] if is_local else [("", "Note", note)]),
            *merged_rows(ksm, available_kib, is_local=is_local),
        ]
    )
