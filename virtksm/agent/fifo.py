"""The FIFO by which the qemu hook pokes the agent: opened for reading and writing, so that it never reaches its end.

Only the fact of a poke counts; what was written is thrown away, so nothing that a hook passes on can be misread.
The agent reads it once a window: a writer that never stops costs one reading a window. Later pokes wait in the FIFO,
which holds 64 KiB and then takes no more. The coalescer would delay a poke as long: a burst gets one more pass, a
window after the last.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from virtksm.errors import StateUnusable
from virtksm.paths import RuntimePaths
from virtksm.store.files import ensure_folder

MAX_BYTES = 65536
MIN_PAUSE_S = 0.01


def open_poke_fifo(paths: RuntimePaths) -> int:
    """Create the FIFO if it is missing (0600 from its first moment) and open it; return the descriptor.

    Raises StateUnusable if something else has its name, if this user may not open it, or if users other than root and
    this one may write to it: a poke starts a pass.
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
    return descriptor


def find_fault(status: os.stat_result, agent_uid: int) -> str:
    """Return what makes a FIFO unfit for the agent of that user; empty if nothing does."""
    if not stat.S_ISFIFO(status.st_mode):
        return "is not a FIFO"
    if status.st_uid not in (0, agent_uid):
        return f"belongs to user {status.st_uid}, neither to root nor to the agent's user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written to by other users (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


class Pokes:
    """Calls `heard` for what is in the FIFO; `window_s` is asked for the window after each reading."""

    def __init__(self, descriptor: int, heard: Callable[[], None], window_s: Callable[[], float]) -> None:
        self._descriptor = descriptor
        self._heard = heard
        self._window_s = window_s
        self._pause: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Wait for the next poke; to be called in the loop that answers it."""
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._descriptor)  # first: a reading that fails shall not be made again at once
        self._pause = loop.call_later(max(self._window_s(), MIN_PAUSE_S), self.listen)
        with suppress(BlockingIOError):
            os.read(self._descriptor, MAX_BYTES)
            self._heard()
