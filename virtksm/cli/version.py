"""`virtksm version`: prints the version."""

from __future__ import annotations

import argparse

from virtksm import __version__
from virtksm.errors import ExitCode


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the version; returns the exit code."""
    if options.json:
        import json

        print(json.dumps({"schema": 1, "version": __version__}))
    else:
        print(f"virtksm {__version__}")
    return ExitCode.DONE
