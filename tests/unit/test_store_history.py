"""The history's file: bounded, private, readable by root alone without a trace, and damage costs nothing but itself."""

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.test_history import DECISION, EVENT, NOW_S, SAMPLE
from tests.lab.footprint import peak_bytes
from tests.lab.hostile_agent import PLANTED_HISTORIES, plant_history
from virtksm.errors import StateUnusable
from virtksm.history.samples import MAX_DECISIONS, MAX_EVENTS
from virtksm.store import history as history_file
from virtksm.store.history import MAX_ASIDE, MAX_BYTES, MAX_DECISION_CHARACTERS, SCHEMA, HistoryFile
from virtksm.values import replace

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "local.history"


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


def full(path: Path) -> HistoryFile:
    """Fill a history to all its bounds, in batches of the size of the agent's."""
    history = HistoryFile(str(path))
    uuid, batches = "12345678-1234-1234-1234-123456789abc", 40
    for batch in range(batches):
        times = [NOW_S + batch * 1000 + number for number in range(MAX_EVENTS // batches)]
        history.add(
            [replace(SAMPLE, at_s=at_s, saved_kib=int(at_s)) for at_s in times] * 2,
            [replace(EVENT, at_s=at_s, uuid=uuid) for at_s in times],
            ["x" * 2000] * (MAX_DECISIONS // batches),
        )
    return history


def test_a_day_and_its_events_and_decisions_take_a_few_mib_and_no_more(path: Path) -> None:
    full(path)
    size = path.stat().st_size
    assert size < 5 << 20
    for _ in range(3):
        full(path)
    assert path.stat().st_size < size * 1.5, "what is forgotten makes room"


def test_it_is_its_owners_alone_whatever_the_umask_and_reading_writes_nothing(path: Path) -> None:
    umask = os.umask(0)
    try:
        history = HistoryFile(str(path))
        history.add([SAMPLE], [], [])
    finally:
        os.umask(umask)
    path.parent.chmod(0o500)
    before = path.stat()
    assert history.samples(0) == (SAMPLE,)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_mode & 0o777) == (before.st_mtime_ns, before.st_ino, 0o600)
    assert names(path) == ["local.history"], "no companion file between two writes"
    path.parent.chmod(0o700)


def test_decisions_are_bounded_in_size_too(path: Path) -> None:
    history = HistoryFile(str(path))
    lines = [f"{number:0{MAX_DECISION_CHARACTERS // 10}}" for number in range(30)]
    history.add([], [], lines)
    assert history.decisions(100) == tuple(lines[-10:])


def altered(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)


def torn(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES: list[Callable[[Path], object]] = [
    lambda path: altered(path, f"PRAGMA user_version = {SCHEMA + 1}"),
    lambda path: altered(path, "ALTER TABLE samples RENAME COLUMN rule TO law"),
    lambda path: altered(path, "DROP TABLE events"),
    torn,
    lambda path: path.write_bytes(b"garbage" * 1000),
    lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 5000 + path.read_bytes()[5100:]),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_used_is_set_aside_whole_and_a_new_one_begun(
    path: Path, damage: Callable[[Path], object]
) -> None:
    full(path)
    damage(path)
    content = path.read_bytes()
    history = HistoryFile(str(path))
    with pytest.raises(StateUnusable, match=r"local\.history"):
        history.samples(0)
    aside = history.add([SAMPLE], [EVENT], [DECISION])
    assert aside is not None
    assert Path(aside).read_bytes() == content
    assert history.samples(0) == (SAMPLE,)
    assert path.stat().st_mode & 0o777 == 0o600


def unquotable(content: bytes) -> bytes:
    """Damage a table's name so that what SQLite says of it is no UTF-8."""
    damaged = content.replace(b"tablesamplessamples", b"table\x80amplessamples")
    assert damaged != content
    return damaged


@pytest.mark.parametrize("damage", [lambda _: b"garbage" * 1000, unquotable])
def test_damage_is_noticed_also_while_the_agent_runs(path: Path, damage: Callable[[bytes], bytes]) -> None:
    history = full(path)
    content = damage(path.read_bytes())
    path.write_bytes(content)
    aside = history.add([SAMPLE], [], [])
    assert aside is not None
    assert Path(aside).read_bytes() == content
    assert history.add([SAMPLE], [], []) is None
    assert history.samples(0) == (SAMPLE, SAMPLE)


def test_files_set_aside_are_never_too_many_and_never_lost(path: Path) -> None:
    for number in range(MAX_ASIDE):
        path.write_bytes(b"garbage %d" % number)
        assert HistoryFile(str(path)).add([SAMPLE], [], []) is not None
    path.write_bytes(b"garbage")
    with pytest.raises(StateUnusable, match="rm "):
        HistoryFile(str(path)).add([SAMPLE], [], [])
    assert path.read_bytes() == b"garbage"
    assert len(names(path)) == MAX_ASIDE + 1
    for one in path.parent.glob("*.aside-*"):
        one.unlink()
    assert HistoryFile(str(path)).add([SAMPLE], [], []) is not None


def test_an_interrupted_write_is_rolled_back_by_the_agent_and_told_to_readers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill a process in the middle of a big transaction, when its journal is on disk and the file half written."""
    monkeypatch.setattr(history_file, "TORN_PAUSE_S", 0.0)
    HistoryFile(str(path)).add([SAMPLE], [EVENT], [DECISION])
    pid = os.fork()
    if pid == 0:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE samples SET rule = 'torn'")
        database.executemany("INSERT INTO events (at_s) VALUES (?)", [(float(number),) for number in range(20_000)])
        os._exit(0)
    os.waitpid(pid, 0)
    assert Path(f"{path}-journal").exists()
    with pytest.raises(StateUnusable, match="was interrupted"):
        HistoryFile(str(path)).samples(0)
    assert HistoryFile(str(path)).add([], [], []) is None
    history = HistoryFile(str(path))
    assert (history.samples(0), history.events(0), history.decisions(9)) == ((SAMPLE,), (EVENT,), (DECISION,))


@pytest.mark.real
def test_root_reads_what_the_agents_user_keeps_and_the_file_stays_that_users() -> None:
    with tempfile.TemporaryDirectory(prefix="vh", dir="/tmp") as folder:
        os.chown(folder, NOBODY, NOBODY)
        path = Path(folder) / "local.history"
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                HistoryFile(str(path)).add([SAMPLE], [], [])
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert HistoryFile(str(path)).samples(0) == (SAMPLE,)
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (NOBODY, NOBODY, 0o600)
        assert names(path) == ["local.history"]


@pytest.mark.real
def test_another_users_folder_is_not_written_to(path: Path) -> None:
    os.chown(path.parent, NOBODY, NOBODY)
    with pytest.raises(StateUnusable, match=f"belongs to user {NOBODY}"):
        HistoryFile(str(path)).add([SAMPLE], [], [])
    assert names(path) == []


@pytest.mark.parametrize(
    "plant", [lambda path, other: path.symlink_to(other), lambda path, _: path.mkdir(), lambda path, _: os.mkfifo(path)]
)
def test_what_is_no_regular_file_is_neither_read_nor_written(
    path: Path, tmp_path: Path, plant: Callable[[Path, Path], object]
) -> None:
    other = tmp_path / "other"
    HistoryFile(str(other)).add([SAMPLE], [], [])
    content = other.read_bytes()
    plant(path, other)
    for act in (lambda: HistoryFile(str(path)).samples(0), lambda: HistoryFile(str(path)).add([SAMPLE], [], [])):
        with pytest.raises(StateUnusable, match=r"local\.history"):
            act()
    assert other.read_bytes() == content


def test_reading_ends_after_so_many_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_file, "MAX_STEPS", 1000)
    with pytest.raises(StateUnusable, match="interrupted"):
        full(path).samples(0)


TRIGGER = "CREATE TABLE {0} (at_s, line); CREATE TRIGGER of_{0} AFTER INSERT ON {0} BEGIN DELETE FROM {0}; END"


@pytest.mark.parametrize("statement", [*PLANTED_HISTORIES.values(), TRIGGER])
@pytest.mark.parametrize("deserializes", [True, False])
def test_other_tables_than_ours_are_never_queried(path: Path, statement: str, *, deserializes: bool) -> None:
    plant_history(path, statement)
    history = HistoryFile(str(path), deserializes=deserializes)
    for read in (lambda: history.samples(0), lambda: history.events(0), lambda: history.decisions(9)):
        with pytest.raises(StateUnusable, match="is no history of schema"):
            read()
    assert history.add([SAMPLE], [], []) is not None, "it is set aside"
    assert history.samples(0) == (SAMPLE,)
    altered(path, "CREATE TABLE more (a)")
    with pytest.raises(StateUnusable, match="is no history of schema"):
        HistoryFile(str(path)).samples(0)


def insert(path: Path, statement: str, *values: object) -> None:
    HistoryFile(str(path)).add([SAMPLE], [], [])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)


def test_what_is_no_text_is_read_as_one_or_refused_as_is_a_row_longer_than_any_answer(path: Path) -> None:
    insert(path, "INSERT INTO decisions (line) VALUES (1.5), (x'41')")
    assert HistoryFile(str(path)).decisions(9) == ("1.5", "A")
    for value, why in (("x'ff'", "local"), ("zeroblob(2000000)", "too big")):
        insert(path, f"INSERT INTO decisions (line) VALUES ({value})")  # noqa: S608  # values of this test
        with pytest.raises(StateUnusable, match=why):
            HistoryFile(str(path)).decisions(9)


def test_rows_that_share_their_pages_are_counted_each(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_file, "MAX_READ_BYTES", 100_000)
    history = full(path)
    assert len(history.decisions(40)) == 40
    with pytest.raises(StateUnusable, match="holds more than"):
        history.decisions(60)


def test_an_older_sqlite_reads_the_same_and_leaves_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(path)
    own = tmp_path / "tmp"
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    monkeypatch.setattr(tempfile, "tempdir", None)
    old, new = HistoryFile(str(path), deserializes=False), HistoryFile(str(path), deserializes=True)
    assert old.samples(0) == new.samples(0) != ()
    assert (old.events(0), old.decisions(100)) == (new.events(0), new.decisions(100))
    assert list(own.iterdir()) == []


def test_reading_takes_what_the_file_has_and_an_endless_one_is_not_read_whole(path: Path) -> None:
    history = HistoryFile(str(path))
    history.add([SAMPLE], [EVENT], [DECISION])
    assert peak_bytes(lambda: history.samples(0)) < 1 << 20
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(StateUnusable, match="is longer than"):
        HistoryFile(str(path)).samples(0)
