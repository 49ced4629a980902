"""`virtksm on`: undoes `virtksm off`; the pass that follows begins the policy anew."""

from __future__ import annotations

import argparse

from virtksm.cli.switching import add_switch_options, switch
from virtksm.errors import ExitCode


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_switch_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Switch on and print the pass; returns the exit code."""
    record = switch(options, "on")
    if options.json:
        import json

        print(json.dumps({"schema": record["schema"], "off": False, "pass": record}))
    else:
        from virtksm.cli.render import pass_lines

        print("\n".join(["switched  on", *pass_lines(record)]))
    return ExitCode.REFUSED if record["refused"] else ExitCode.DONE
