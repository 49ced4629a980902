"""A Debian booted in a container over a root that stays as it was: the container writes into memory."""

import subprocess
from pathlib import Path


def command(machine: str, root: Path) -> list[str]:
    """Tell how it is booted; what it can see of this machine, and what it is to start, may follow."""
    return [
        *("systemd-nspawn", "--register=no", "--keep-unit", "--boot", f"--machine={machine}"),
        *("--directory", str(root), "--volatile=overlay", "--console=pipe"),
    ]


def end(container: subprocess.Popen[bytes]) -> None:
    """End a container that still runs: SIGTERM asks it to shut down, SIGKILL ends it with all that is in it."""
    for finish in (container.terminate, container.kill):
        if container.poll() is not None:
            return
        finish()
        try:
            container.wait(20)
        except subprocess.TimeoutExpired:
            continue
