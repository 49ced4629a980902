"""The command line as another user has it, one with no rights of his own; needs root.

The program is loaded before root is given up: the tree and its interpreter may lie where nobody else may read.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
NOBODY = 65534
HANG_S = 30.0

_PROGRAM = """
import os, sys
import json, virtksm.agent.control_client, virtksm.cli.retune, virtksm.cli.status
import virtksm.wiring, virtksm.cli.guests, virtksm.cli.headroom, virtksm.config.load, virtksm.guests.survey
import shlex, virtksm.cli.resume, virtksm.cli.pause, virtksm.cli.unmerge, virtksm.cli.verify_off
import virtksm.host.libvirt_connection, virtksm.host.systemd, virtksm.host.bounded, virtksm.store.switch
import virtksm.cli.ask_agent, virtksm.cli.doctor, virtksm.doctor.checks, virtksm.doctor.facts
import virtksm.cli.guest, virtksm.host.libvirt_monitor, libvirt_qemu
from virtksm.cli.main import main
user, *groups = map(int, sys.argv[1].split())
os.setgroups(groups)
os.setgid(user)
os.setuid(user)
sys.exit(main(sys.argv[2:]))
"""


def nobody_command(*arguments: str, gids: tuple[int, ...] = ()) -> list[str]:
    """Return the program that runs a virtksm command as the user nobody, who is in the groups `gids`, too."""
    return [sys.executable, "-c", _PROGRAM, " ".join(map(str, (NOBODY, *gids))), *arguments]


def run_as_nobody(*arguments: str, gids: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a virtksm command to its end as the user nobody, who is in the groups `gids`, too."""
    return subprocess.run(
        nobody_command(*arguments, gids=gids),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
