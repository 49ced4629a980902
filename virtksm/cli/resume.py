"""`virtksm resume`: undoes `virtksm pause` (cli/pause.py)."""

from virtksm.cli.pause import add_options, run

__all__ = ["add_options", "run"]
