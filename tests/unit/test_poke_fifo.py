"""The poke FIFO: who may write, what is in its place, and that nothing but "somebody poked" is taken from it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtksm.agent.fifo import PokeFifo, open_poke_fifo
from virtksm.errors import StateUnusable
from virtksm.paths import RuntimePaths

SOMEBODY = 65534


@pytest.fixture
def paths(tmp_path: Path) -> RuntimePaths:
    return RuntimePaths(str(tmp_path / "run"))


@pytest.fixture
def fifo(paths: RuntimePaths) -> Iterator[PokeFifo]:
    fifo = open_poke_fifo(paths)
    yield fifo
    fifo.close()


def poke(paths: RuntimePaths, content: bytes) -> None:
    descriptor = os.open(paths.poke_fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.write(descriptor, content)
    os.close(descriptor)


def test_without_a_poke_there_is_none(fifo: PokeFifo) -> None:
    assert fifo.drain() is False


def test_pokes_are_taken_together_and_forgotten(fifo: PokeFifo, paths: RuntimePaths) -> None:
    poke(paths, b"a\n")
    poke(paths, b"\x00\xff$(reboot)" * 400)
    assert fifo.drain() is True
    assert fifo.drain() is False


def test_a_writer_that_leaves_is_not_its_end(fifo: PokeFifo, paths: RuntimePaths) -> None:
    for _ in range(2):
        poke(paths, b"a")
        assert fifo.drain() is True


def test_a_full_fifo_can_be_drained(fifo: PokeFifo, paths: RuntimePaths) -> None:
    descriptor = os.open(paths.poke_fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(descriptor, b"a" * 4096)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    while fifo.drain():
        pass
    poke(paths, b"a")
    assert fifo.drain() is True


def test_only_its_owner_may_poke(fifo: PokeFifo, paths: RuntimePaths) -> None:
    assert os.fstat(fifo.descriptor).st_mode & 0o777 == 0o600
    assert Path(paths.root).stat().st_mode & 0o022 == 0


def test_it_is_its_owners_alone_whatever_the_umask(paths: RuntimePaths) -> None:
    before = os.umask(0)
    try:
        open_poke_fifo(paths).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(paths.poke_fifo).lstat().st_mode) == 0o600
    assert Path(paths.root).stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_fifo_that_others_may_write_to_is_refused(paths: RuntimePaths, mode: int) -> None:
    open_poke_fifo(paths).close()
    Path(paths.poke_fifo).chmod(mode)
    with pytest.raises(StateUnusable, match=f"may be written to by other users .mode 0{mode:o}.: remove it"):
        open_poke_fifo(paths)


def test_a_fifo_of_somebody_elses_is_refused(paths: RuntimePaths) -> None:
    open_poke_fifo(paths).close()
    os.chown(paths.poke_fifo, SOMEBODY, -1)
    with pytest.raises(StateUnusable, match=f"belongs to user {SOMEBODY}"):
        open_poke_fifo(paths)


def test_a_fifo_that_is_there_is_used_with_what_waits_in_it(fifo: PokeFifo, paths: RuntimePaths) -> None:
    poke(paths, b"a")
    second = open_poke_fifo(paths)
    assert second.drain() is True
    assert fifo.drain() is False
    second.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_anything_else_in_its_place_is_refused(paths: RuntimePaths, tmp_path: Path, kind: str) -> None:
    Path(paths.root).mkdir()
    place = Path(paths.poke_fifo)
    victim = tmp_path / "victim"
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


def test_it_is_not_inherited_by_programs(fifo: PokeFifo) -> None:
    assert os.get_inheritable(fifo.descriptor) is False
