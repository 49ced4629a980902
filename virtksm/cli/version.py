"""`virtksm version`: prints the version."""

from __future__ import annotations

import argparse

from virtksm import __version__
from virtksm.cli.layout import print_result


def run(options: argparse.Namespace) -> None:
    print_result(options, {"version": __version__}, [("", f"virtksm {__version__}", "")])
