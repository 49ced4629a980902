"""The switch's file: only one that is certainly not there means on; links, modes, and everything in its place."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.hang import HANG_S
from virtksm.errors import StateUnusable
from virtksm.paths import RuntimePaths
from virtksm.store.switch import SwitchFile, parse_switch


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(RuntimePaths(str(tmp_path / "run"), str(tmp_path / "lib")).host_switch("local"))


@pytest.fixture
def switch(path: Path) -> SwitchFile:
    return SwitchFile(str(path))


def test_a_missing_folder_is_on_and_is_made_when_it_is_paused(switch: SwitchFile, path: Path) -> None:
    assert switch.read() is None
    switch.turn_on()
    assert not path.parent.exists()
    switch.turn_off()
    assert switch.read() is not None


def test_everybody_may_read_it_whatever_the_umask(switch: SwitchFile, path: Path) -> None:
    umask = os.umask(0o077)
    try:
        path.parent.mkdir(mode=0o755)
        switch.turn_off()
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["local.off"]


def place(path: Path, kind: str) -> None:
    """Put something else in the switch's place."""
    path.parent.mkdir()
    match kind:
        case "empty file":
            path.touch()
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link":
            (path.parent / "elsewhere").touch()
            path.symlink_to(path.parent / "elsewhere")
        case "dangling link":
            path.symlink_to(path.parent / "none")
        case "large file":
            path.write_bytes(b" " * 10_000_000)


KINDS = ["empty file", "folder", "fifo", "link", "dangling link", "large file"]


@pytest.mark.parametrize("kind", KINDS)
def test_anything_in_its_place_is_off_and_said_with_its_path(switch: SwitchFile, path: Path, kind: str) -> None:
    place(path, kind)
    before = len(list(Path("/proc/self/fd").iterdir()))
    off = switch.read()
    assert off is not None
    assert off.since == ""
    assert str(path) in off.warning
    assert "`virtksm pause` writes it anew" in off.warning
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_off_replaces_it_on_removes_it_and_no_link_is_followed(switch: SwitchFile, path: Path, kind: str) -> None:
    place(path, kind)
    switch.turn_off()
    assert path.is_file()
    assert not path.is_symlink()
    assert sorted(entry.name for entry in path.parent.iterdir() if entry != path) in ([], ["elsewhere"])
    path.unlink()
    path.symlink_to(path.parent / "victim")
    (path.parent / "victim").write_text("precious", encoding="utf-8")
    switch.turn_on()
    assert switch.read() is None
    assert (path.parent / "victim").read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("of_state", [False, True])
def test_a_folder_in_its_place_and_a_state_folder_that_is_none_are_off_and_an_error_with_its_remedy(
    switch: SwitchFile, path: Path, *, of_state: bool
) -> None:
    if of_state:
        path.parent.write_text("a file", encoding="utf-8")
    else:
        place(path, "folder")
    assert switch.read() is not None
    for turn in (switch.turn_off, switch.turn_on):
        with pytest.raises(StateUnusable, match=rf"{path.parent}.*ls -l(a|d) .*{path.parent}"):
            turn()


def test_two_who_switch_off_at_once_both_do_a_hundred_times(switch: SwitchFile, path: Path) -> None:
    together = Barrier(2)

    def turn_off(_number: int) -> None:
        together.wait(HANG_S)
        switch.turn_off()

    with ThreadPoolExecutor(2) as administrators:
        for _ in range(100):
            assert list(administrators.map(turn_off, range(2))) == [None, None]
            assert [entry.name for entry in path.parent.iterdir()] == ["local.off"]
            switch.turn_on()


@given(st.one_of(st.binary(), st.text().map(str.encode), st.just(b"[" * 4000)))
def test_no_bytes_are_taken_for_a_switch_that_were_not_one(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.off"
        path.write_bytes(content)
        off = SwitchFile(str(path)).read()
    assert off is not None
    assert (off.since, bool(off.damage)) == ("", True)


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 2, "since": "2026"}',
        '{"schema": 1}',
        '{"schema": 1, "since": "a\\u001b[31m"}',
        '{"schema": 1, "since": "' + "x" * 65 + '"}',
    ],
)
def test_a_damaged_date_is_not_shown_to_anybody(text: str) -> None:
    with pytest.raises(ValueError, match="damaged"):
        parse_switch(text)
