"""Keeps a file for node_exporter's textfile collector: written whole when something has changed, and not too often.

It is written every ALIVE_S at least, so that its age shows whether the agent lives (node_textfile_mtime_seconds), and
that metrics without a pass, such as libvirt's silence, are as recent. The file is removed when the agent ends or
changes to another file; an agent that was killed leaves it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from virtksm.agent.calls import BlockingCalls, wait_set
from virtksm.errors import StateUnusable, VirtksmError
from virtksm.store.files import replace_file

LIMIT_S = 10.0
ALIVE_S = 60.0
"""An agent at rest passes at least as often, and each pass stirs."""
REMEDY = "the folder must be there and the agent's to write (docs/metrics.md)"
FILE_HANGS = partial(StateUnusable, remedy="the disk behind metrics.textfile does not answer: see the kernel's log")


class Textfile:
    """One file; `report` is given the error of each failed writing, whatever it is, and None for one that went well."""

    def __init__(
        self,
        path: str,
        every_s: float,
        page: Callable[[], Awaitable[bytes]],
        report: Callable[[Exception | None], None],
        *,
        alive_s: float = ALIVE_S,
    ) -> None:
        self.path = path
        self.every_s = every_s
        self._page = page
        self._report = report
        self._alive_s = alive_s
        self._calls = BlockingCalls(FILE_HANGS, LIMIT_S)
        self._stirred = asyncio.Event()
        self._stirred.set()
        self._ended = asyncio.Event()

    def stir(self) -> None:
        """Have it written at once, or `every_s` after the last time."""
        self._stirred.set()

    def end(self) -> None:
        self._ended.set()
        self._stirred.set()

    async def keep_writing(self, after: asyncio.Task[None] | None = None) -> None:
        """Write until `end` is called, once `after` is done."""
        if after is not None:
            await asyncio.wait({after})
        while not self._ended.is_set():
            self._stirred.clear()
            await self._attempt(self._write())
            await wait_set(self._ended, self.every_s)
            await wait_set(self._stirred, max(self._alive_s - self.every_s, 0))
        await self._attempt(self._calls.run("remove metrics.textfile", self._remove))

    async def _write(self) -> None:
        text = (await self._page()).decode()
        await self._calls.run("write metrics.textfile", lambda: self._replace(text))

    async def _attempt(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  # the outermost layer of this task
            self._report(error)
        else:
            self._report(None)

    def _replace(self, text: str) -> None:
        try:
            replace_file(self.path, text, mode=0o644)
        except StateUnusable as error:
            raise VirtksmError(error.message, remedy=REMEDY) from error

    def _remove(self) -> None:
        try:
            with suppress(FileNotFoundError):
                os.remove(self.path)  # noqa: PTH107  # as all paths here, a str
        except OSError as error:
            raise VirtksmError(f"{self.path}: {error.strerror}", remedy=REMEDY) from error
