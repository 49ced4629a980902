"""Keeps a host's history as one SQLite file in the state folder: HOST.history, 0600, at most a few MiB.

The library is maintained, in every distribution, and administrators have tools for its files. Only the agent writes, in
one transaction a minute at most: a rollback journal, which is gone between two writes, so that reading needs no
companion file and leaves nothing behind. Reading takes the file's bytes into memory and has SQLite read those: no lock,
no link followed, nothing written, whatever is in the file and whichever user owns it. Root reads files that another
user may have planted: bounds on SQLite's memory, on each value and on the rows hold before a query runs, and a file
with other tables than ours, with a view or a column that is computed, is not queried. Decisions are lines; their
readers parse them. The schema's version is in `PRAGMA user_version`. A file that is damaged or of another schema is
renamed, not removed.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any, BinaryIO
from urllib.parse import quote

from virtksm.errors import StateUnusable
from virtksm.history.samples import (
    EVENT_FIELDS,
    MAX_DECISIONS,
    MAX_EVENTS,
    MAX_OF_A_KIND,
    MAX_SAMPLES,
    SAMPLE_FIELDS,
    GuestEvent,
    Sample,
    parse_events,
    parse_samples,
)
from virtksm.store.files import ensure_folder, open_regular, read_all, unusable

SCHEMA = 1
MAX_BYTES = 32 << 20
"""Largest file that is read: many times what is ever written."""
MAX_READ_BYTES = 32 << 20
"""Longest texts of all rows that are read together."""
MAX_ROW_BYTES = 1 << 20
"""Longest row that is read."""
MAX_HEAP_BYTES = 64 << 20
"""What SQLite may take of memory, the file's bytes included."""
MAX_DECISION_CHARACTERS = 4 << 20
"""All decisions together: a line has some 2,000."""
MAX_ASIDE = 3
"""Files set aside that are kept; while there are so many, nothing is written, and nothing lost."""
MAX_INTEGER = 2**63 - 1
BUSY_S = 5.0
DAMAGES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY)
"""The last is SQLite's error for a file whose header wants a newer SQLite; a read-only folder is found out before."""
MAX_STEPS = 50_000_000
"""Steps of SQLite's machine that reading may take (a million rows)."""
TORN_TRIES = 20
TORN_PAUSE_S = 0.05
TABLES = {
    name: f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, {', '.join(columns)}, CHECK ({columns[0]} IS NOT NULL))"
    for name, columns in (("samples", SAMPLE_FIELDS), ("events", EVENT_FIELDS), ("decisions", ("line",)))
}
"""By name, as SQLite keeps their statements."""
SCHEMA_ROWS = "SELECT CAST(type || ' ' || name || ' ' || tbl_name || ' ' || sql AS BLOB) FROM sqlite_master LIMIT 4"
"""As bytes: a damaged one may be no UTF-8."""
SAMPLES = "SELECT * FROM samples WHERE at_s >= ? ORDER BY id DESC LIMIT ?"
EVENTS = "SELECT * FROM events WHERE at_s >= ? ORDER BY id DESC LIMIT ?"
DECISIONS = "SELECT CAST(line AS TEXT) FROM decisions ORDER BY id DESC LIMIT ?"
SURPLUS = "DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?"
SURPLUS_OF_A_GUEST = """
DELETE FROM events WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER (PARTITION BY uuid ORDER BY id DESC) AS number FROM events WHERE kind = ?
    )
    WHERE number > ?
)
"""
SURPLUS_OF_A_KIND = """
DELETE FROM events WHERE kind = ?1 AND id <= (
    SELECT id FROM events WHERE kind = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2
)
"""
SURPLUS_DECISIONS = """
DELETE FROM decisions WHERE id <= (
    SELECT max(id) FROM (SELECT id, sum(length(line)) OVER (ORDER BY id DESC) AS characters FROM decisions)
    WHERE characters > ?
)
"""


class HistoryFile:
    """The History of one host, in the file `path`; only the owner of its folder may add.

    `deserializes` says whether SQLite can read bytes in memory: since 3.36, before that (EL 9) where it was built to.
    """

    def __init__(self, path: str, *, deserializes: bool = hasattr(sqlite3.Connection, "deserialize")) -> None:
        self.path = path
        self._deserializes = deserializes
        self._is_sound = False

    def add(self, samples: Sequence[Sample], events: Sequence[GuestEvent], decisions: Sequence[str]) -> str | None:
        with _translated(self.path):
            _prepare(self.path)
            aside = None if self._is_sound or _is_sound(self.path) else _set_aside(self.path)
            self._is_sound = True
            try:
                self._write(samples, events, decisions)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                self._is_sound = not _is_damage(error)
                if self._is_sound:
                    raise
                aside = _set_aside(self.path)
                self._write(samples, events, decisions)
        return aside

    def samples(self, since_s: float) -> tuple[Sample, ...]:
        columns, rows = self._read(SAMPLES, since_s, MAX_SAMPLES)
        with _translated(self.path):
            return parse_samples(columns, rows[::-1])

    def events(self, since_s: float, limit: int = MAX_EVENTS) -> tuple[GuestEvent, ...]:
        columns, rows = self._read(EVENTS, since_s, limit)
        with _translated(self.path):
            return parse_events(columns, rows[::-1])

    def decisions(self, limit: int) -> tuple[str, ...]:
        _, rows = self._read(DECISIONS, limit)
        return tuple(line for (line,) in rows[::-1])

    def _write(self, samples: Sequence[Sample], events: Sequence[GuestEvent], decisions: Sequence[str]) -> None:
        with _opened(self.path) as database, database:
            database.execute("BEGIN IMMEDIATE")
            if not _version(database):
                for statement in (*TABLES.values(), f"PRAGMA user_version = {SCHEMA}"):
                    database.execute(statement)
            _insert(database, "samples", SAMPLE_FIELDS, samples)
            _insert(database, "events", EVENT_FIELDS, events)
            _insert(database, "decisions", ("line",), ((line,) for line in decisions))
            for kind, (limit, max_of_a_guest) in MAX_OF_A_KIND.items():
                database.execute(SURPLUS_OF_A_GUEST, (kind, max_of_a_guest))
                database.execute(SURPLUS_OF_A_KIND, (kind, limit))
            for table, limit in (("samples", MAX_SAMPLES), ("events", MAX_EVENTS), ("decisions", MAX_DECISIONS)):
                database.execute(SURPLUS.format(table=table), (limit,))
            database.execute(SURPLUS_DECISIONS, (MAX_DECISION_CHARACTERS,))

    def _read(self, query: str, *values: float) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Query a copy of the file in memory; return the columns' names, and the rows."""
        with _translated(self.path):
            content = _read_whole(self.path)
            if content is None:
                return (), []
            with self._copy(content) as database:
                database.set_progress_handler(lambda: 1, MAX_STEPS)
                if not _is_ours(database):
                    raise ValueError(f"is no history of schema {SCHEMA}")
                rows = list[tuple[Any, ...]]()
                left = MAX_READ_BYTES
                found = database.execute(query, values)
                for row in found:
                    left -= sum(len(value) for value in row if isinstance(value, str | bytes))
                    if left < 0:  # rows that share their pages
                        raise ValueError(f"holds more than {MAX_READ_BYTES} bytes")
                    rows.append(row)
                return tuple(name for name, *_ in found.description), rows

    @contextmanager
    def _copy(self, content: bytes) -> Iterator[sqlite3.Connection]:
        """Lend a database of these bytes, bounded before it reads any of them."""
        if not self._deserializes:
            import tempfile  # 1 MiB
        with nullcontext() if self._deserializes else tempfile.TemporaryDirectory() as folder:
            if folder is None:
                opened = sqlite3.connect(":memory:")
            else:  # no link of /proc to a memfd: SQLite resolves it, to a name that is none
                path = f"{folder}/history"
                with open(path, "xb") as file:
                    file.write(content)
                opened = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)
            with closing(opened) as database:
                database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
                database.execute("PRAGMA trusted_schema = OFF")
                database.execute("PRAGMA temp_store = MEMORY")
                database.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP_BYTES}")
                if folder is None:
                    database.deserialize(content)
                yield database


def _prepare(path: str) -> None:
    """Create the folder and an empty file with the right mode, if they are missing; raises StateUnusable, OSError.

    SQLite takes names, not descriptors, and an open database may name further files to remove: root opens none where
    another user can plant one.
    """
    folder = os.path.dirname(path)
    ensure_folder(folder, 0o755)
    owner = os.stat(folder).st_uid
    if owner != os.geteuid():
        raise StateUnusable(
            f"{folder} belongs to user {owner}, and this agent runs as {os.geteuid()}",
            remedy="run the agent as that user, as virtksm.service does: systemctl start virtksm",
        )
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a regular file")
        os.fchmod(descriptor, 0o600)  # whatever the umask
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    """Lend a database; closed also if the file is found damaged on the way."""
    file = f"file:{quote(path)}?mode=rw"
    with closing(sqlite3.connect(file, uri=True, timeout=BUSY_S, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA trusted_schema = OFF")
        yield database


def _is_sound(path: str) -> bool:
    """Tell whether the file is new or a whole history; an interrupted write is rolled back here."""
    try:
        with _opened(path) as database:
            is_known = _version(database) == 0 or _is_ours(database)
            return is_known and database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if _is_damage(error):
            return False
        raise


def _is_damage(error: sqlite3.DatabaseError | UnicodeDecodeError) -> bool:
    """Tell whether the file is at fault: no database, a damaged one, or other tables than ours.

    SQLite quotes a damaged schema in its message, which Python may not be able to decode.
    """
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in DAMAGES


def _set_aside(path: str) -> str:
    """Rename an unusable file, with the journal of an interrupted write; raises StateUnusable, OSError."""
    folder, name = os.path.split(path)
    if sum(other.startswith(f"{name}.aside-") for other in os.listdir(folder)) >= MAX_ASIDE:
        raise StateUnusable(
            f"{path} is damaged or of another schema, and {MAX_ASIDE} such files were set aside before",
            remedy=f"rm {path}.aside-*",
        )
    aside = f"{path}.aside-{time.time_ns()}"
    os.rename(path, aside)
    journal = f"{path}-journal"
    if os.path.lexists(journal):
        os.rename(journal, f"{aside}-journal")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return aside


def _is_ours(database: sqlite3.Connection) -> bool:
    """Tell whether it is of our schema and has its tables, and nothing else: no view, no computed column."""
    ours = {(f"table {name} {name} {statement}".encode(),) for name, statement in TABLES.items()}
    return _version(database) == SCHEMA and set(database.execute(SCHEMA_ROWS)) == ours


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _insert(
    database: sqlite3.Connection, table: str, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]
) -> None:
    places = ", ".join("?" for _ in columns)
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608  # names of our own
    database.executemany(statement, (tuple(map(_storable, row)) for row in rows))


def _storable(value: object) -> object:
    """Return a value that SQLite takes: its integers have 64 bits, its texts are UTF-8."""
    if isinstance(value, int):
        return min(value, MAX_INTEGER)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _read_whole(path: str) -> bytes | None:
    """Return the file as it is between two writes, None if there is none; raises OSError, ValueError, StateUnusable."""
    for _ in range(TORN_TRIES):
        try:
            opened = open_regular(path)
        except FileNotFoundError:
            return None
        with opened as file:
            before = _state(file)
            content = read_all(file, MAX_BYTES)
            # In this order: a write that was given up has changed the file before its journal goes.
            is_whole = not os.path.lexists(f"{path}-journal") and _state(file) == before
        if is_whole:
            return content or None
        time.sleep(TORN_PAUSE_S)
    raise StateUnusable(
        f"{path}: a write to it has not ended, or was interrupted", remedy="the agent mends it as soon as it runs"
    )


def _state(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_mtime_ns, found.st_size


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, ValueError, MemoryError) as error:
        raise unusable(path, error) from error
