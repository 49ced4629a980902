"""The FIFO by which the qemu hook pokes the agent: opened for reading and writing, so that it never reaches its end.

Only "somebody poked" is taken from it; what was written is thrown away, so nothing a hook passes on can be misread.
"""

from __future__ import annotations

import os
import stat

from virtksm.adapters.files import ensure_folder
from virtksm.errors import StateUnusable
from virtksm.runtime import RuntimePaths

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
    """Create the FIFO if it is missing (mode 0600) and open it.

    Raises StateUnusable if something else has its name, or if this user may not open it.
    """
    ensure_folder(paths.root, 0o755)
    path = paths.poke_fifo
    try:
        if not os.path.lexists(path):
            os.mkfifo(path, 0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StateUnusable(
            f"{path}: {error.strerror}", remedy="hooks cannot poke the agent; see its owner and mode"
        ) from error
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StateUnusable(f"{path} is not a FIFO", remedy="remove it and restart the agent")
    return PokeFifo(descriptor)
