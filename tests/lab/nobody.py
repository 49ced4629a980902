"""The command line as another user has it, one with no rights of his own; needs root."""

import subprocess

from tests.lab.forked import run_forked
from tests.lab.hang import HANG_S

NOBODY = 65534


def run_as_nobody(*arguments: str, gids: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a virtksm command to its end as the user nobody, who is in the groups `gids`, too."""
    return run_forked(arguments, HANG_S, user=NOBODY, groups=gids)
