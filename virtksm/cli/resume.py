"""`virtksm resume`: undoes `virtksm pause`; the pass that follows begins with a new policy state."""

from __future__ import annotations

import argparse

from virtksm.cli.switching import add_switch_options, switch

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_switch_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Resume and print the pass; returns the exit code."""

    def show(report: dict[str, Any]) -> str:
        if options.json:
            from virtksm.json_output import to_json

            return to_json({"schema": report["schema"], "paused": False, "pass": report})
        from virtksm.cli.layout import to_text
        from virtksm.cli.render import pass_rows

        return to_text([("", "Resumed", "virtksm tunes KSM again"), *pass_rows(report)])

    return switch(options, "resume", show)
