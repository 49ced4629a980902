"""The FIFO: who may write, what is in its place; a poke is heard at once, a flood of them once a window."""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.lab.hang import HANG_S
from virtksm.agent.fifo import Pokes, open_poke_fifo
from virtksm.errors import StateUnusable
from virtksm.paths import RuntimePaths

NEVER_S = 3600.0
SOMEBODY = 65534


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
            await asyncio.wait_for(self._news.wait(), HANG_S)


@pytest.fixture
def paths(tmp_path: Path) -> RuntimePaths:
    return RuntimePaths(str(tmp_path / "run"))


def listen(paths: RuntimePaths, window_s: float, test: Callable[[Ear, Pokes], Awaitable[None]]) -> None:
    async def both() -> None:
        ear = Ear()
        pokes = Pokes(open_poke_fifo(paths), ear.hear, lambda: window_s)
        pokes.listen()
        await test(ear, pokes)

    asyncio.run(both())


def write_until_full(paths: RuntimePaths) -> int:
    """Write as a flood does; return how many bytes the FIFO took."""
    descriptor = os.open(paths.poke_fifo, os.O_WRONLY | os.O_NONBLOCK)
    taken = 0
    try:
        while True:
            taken += os.write(descriptor, b"\x00\xff$(reboot)" * 400)
    except BlockingIOError:
        return taken
    finally:
        os.close(descriptor)


def test_every_poke_is_heard_also_one_that_came_in_the_window_until_it_is_closed(paths: RuntimePaths) -> None:
    async def test(ear: Ear, pokes: Pokes) -> None:
        for number in (1, 2):
            assert write_until_full(paths) > 0
            await ear.wait(number)
        pokes.close()
        other = open_poke_fifo(paths)  # most likely with the number of the closed one
        write_until_full(paths)
        await asyncio.sleep(0.05)  # beyond the pause: a timer left behind would have listened again
        assert ear.heard == 2
        Pokes(other, ear.hear, lambda: 0.0).close()

    listen(paths, 0.0, test)


def test_a_flood_is_read_once_a_window_and_then_finds_the_fifo_full(paths: RuntimePaths) -> None:
    async def test(ear: Ear, pokes: Pokes) -> None:
        write_until_full(paths)
        await ear.wait(1)
        write_until_full(paths)
        for _ in range(100):
            await asyncio.sleep(0)  # the loop has looked for readers each time
            assert write_until_full(paths) == 0
        assert ear.heard == 1
        pokes.close()

    listen(paths, NEVER_S, test)


def test_it_is_its_owners_alone_whatever_the_umask_and_not_inherited(paths: RuntimePaths) -> None:
    before = os.umask(0)
    try:
        fifo = open_poke_fifo(paths)
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(paths.poke_fifo).lstat().st_mode) == 0o600
    assert Path(paths.root).stat().st_mode & 0o022 == 0
    assert os.get_inheritable(fifo) is False
    os.close(fifo)


@pytest.mark.real
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_fifo_that_others_may_write_to_is_refused(paths: RuntimePaths, mode: int) -> None:
    os.close(open_poke_fifo(paths))
    Path(paths.poke_fifo).chmod(mode)
    with pytest.raises(StateUnusable, match=f"may be written to by other users .mode 0{mode:o}.: remove it"):
        open_poke_fifo(paths)
    os.chown(paths.poke_fifo, SOMEBODY, -1)
    with pytest.raises(StateUnusable, match=f"belongs to user {SOMEBODY}"):
        open_poke_fifo(paths)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_anything_else_in_its_place_is_refused(paths: RuntimePaths, tmp_path: Path, kind: str) -> None:
    Path(paths.root).mkdir()
    place, victim = Path(paths.poke_fifo), tmp_path / "victim"
    victim.write_text("precious", encoding="utf-8")
    if kind == "file":
        place.write_text("", encoding="utf-8")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(victim)
    with pytest.raises(StateUnusable):
        open_poke_fifo(paths)
    assert victim.read_text(encoding="utf-8") == "precious"
