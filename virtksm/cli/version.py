"""`virtksm version`: prints the version."""

from __future__ import annotations

import argparse

from virtksm import __version__
from virtksm.cli.layout import print_result
from virtksm.errors import ExitCode


def run(options: argparse.Namespace) -> int:
    print_result(options, {"schema": 1, "version": __version__}, [("", f"virtksm {__version__}", "")])
    return ExitCode.DONE
