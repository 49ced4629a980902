"""The FIFO by which the qemu hook pokes the agent: opened for reading and writing, so that it never reaches its end.

Only "somebody poked" is taken from it; what was written is thrown away, so nothing a hook passes on can be misread.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from virtksm.errors import StateUnusable
from virtksm.runtime import RuntimePaths
from virtksm.store.files import ensure_folder

READ_AT_MOST = 65536


class PokeFifo:
    """The agent's end of the FIFO."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def drain(self) -> bool:
        """Read what is there; return whether there was anything."""
        try:
            return bool(os.read(self.descriptor, READ_AT_MOST))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.descriptor)


def open_poke_fifo(paths: RuntimePaths) -> PokeFifo:
    """Create the FIFO if it is missing (0600 from its first moment) and open it.

    Raises StateUnusable if something else has its name, if this user may not open it, or if others than root and this
    user may write to it: whoever pokes has passes run.
    """
    ensure_folder(paths.root, 0o755)
    path = paths.poke_fifo
    try:
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StateUnusable(
            f"{path}: {error.strerror}", remedy="hooks cannot poke the agent; see its owner and mode"
        ) from error
    fault = find_fault(os.fstat(descriptor), os.geteuid())
    if fault:
        os.close(descriptor)
        raise StateUnusable(f"{path} {fault}", remedy="remove it and restart the agent, which makes a new one")
    return PokeFifo(descriptor)


def find_fault(status: os.stat_result, agent_uid: int) -> str:
    """Return what makes a FIFO unfit for the agent of that user; empty if nothing does."""
    if not stat.S_ISFIFO(status.st_mode):
        return "is not a FIFO"
    if status.st_uid not in (0, agent_uid):
        return f"belongs to user {status.st_uid}, neither to root nor to the agent's user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written to by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
