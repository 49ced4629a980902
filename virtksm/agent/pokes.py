"""Listens on the poke FIFO, and looks at it once a window: a writer that never stops costs one reading a window.

What is written in between waits in the FIFO, which holds 64 KiB and then takes no more. A poke is answered as late as
the coalescer would have it anyway: it gives a burst one more pass, a window after the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from virtksm.adapters.poke_fifo import PokeFifo

LEAST_PAUSE_S = 0.01


class Pokes:
    """Calls `heard` for what is in the FIFO; `window_s` is asked for the window after each reading."""

    def __init__(self, fifo: PokeFifo, heard: Callable[[], None], window_s: Callable[[], float]) -> None:
        self._fifo = fifo
        self._heard = heard
        self._window_s = window_s
        self._pause: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Wait for the next poke; to be called in the loop that shall hear it."""
        asyncio.get_running_loop().add_reader(self._fifo.descriptor, self._read)

    def close(self) -> None:
        """Stop listening, and close the FIFO."""
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._fifo.descriptor)
        self._fifo.close()

    def _read(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fifo.descriptor)  # first: a reading that fails shall not be made again at once
        self._pause = loop.call_later(max(self._window_s(), LEAST_PAUSE_S), self.listen)
        if self._fifo.drain():
            self._heard()
