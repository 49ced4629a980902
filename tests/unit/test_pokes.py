"""The agent's ear at the FIFO: a poke is heard at once, a flood of them once a window, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from virtksm.agent.fifo import Pokes, open_poke_fifo
from virtksm.paths import RuntimePaths

LONG_S = 30.0
NEVER_S = 3600.0


class Ear:
    """Counts what it hears."""

    def __init__(self) -> None:
        self.heard = 0
        self._news = asyncio.Event()

    def hear(self) -> None:
        self.heard += 1
        self._news.set()

    async def wait(self, heard: int) -> None:
        while self.heard < heard:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), LONG_S)


@pytest.fixture
def paths(tmp_path: Path) -> RuntimePaths:
    return RuntimePaths(str(tmp_path / "run"))


def listen(paths: RuntimePaths, window_s: float, test: Callable[[Ear], Awaitable[None]]) -> None:
    async def both() -> None:
        ear = Ear()
        pokes = Pokes(open_poke_fifo(paths), ear.hear, lambda: window_s)
        pokes.listen()
        try:
            await test(ear)
        finally:
            pokes.close()

    asyncio.run(both())


def write_until_full(paths: RuntimePaths) -> int:
    """Write as a flood does; return how many bytes the FIFO took."""
    descriptor = os.open(paths.poke_fifo, os.O_WRONLY | os.O_NONBLOCK)
    taken = 0
    try:
        while True:
            taken += os.write(descriptor, b"x" * 4096)
    except BlockingIOError:
        return taken
    finally:
        os.close(descriptor)


def test_every_poke_is_heard_also_one_that_came_in_the_window(paths: RuntimePaths) -> None:
    async def test(ear: Ear) -> None:
        write_until_full(paths)
        await ear.wait(1)
        write_until_full(paths)
        await ear.wait(2)

    listen(paths, 0.0, test)


def test_a_flood_is_read_once_a_window_and_then_finds_the_fifo_full(paths: RuntimePaths) -> None:
    async def test(ear: Ear) -> None:
        write_until_full(paths)
        await ear.wait(1)
        write_until_full(paths)
        for _ in range(100):
            await asyncio.sleep(0)  # the loop has looked for readers each time
            assert write_until_full(paths) == 0
        assert ear.heard == 1

    listen(paths, NEVER_S, test)


def test_closed_in_the_window_it_listens_no_more(paths: RuntimePaths) -> None:
    async def both() -> None:
        ear = Ear()
        pokes = Pokes(open_poke_fifo(paths), ear.hear, lambda: 0.0)
        pokes.listen()
        write_until_full(paths)
        await ear.wait(1)
        pokes.close()
        other = open_poke_fifo(paths)  # most likely with the number of the closed one
        write_until_full(paths)
        await asyncio.sleep(0.05)  # beyond the pause: a timer left behind would have listened again
        assert ear.heard == 1
        other.close()

    asyncio.run(both())
