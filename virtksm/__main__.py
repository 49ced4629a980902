"""`python -m virtksm`."""

from virtksm.cli.main import run_program

run_program()
