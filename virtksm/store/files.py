"""Small files of the runtime and state folders: locks, whole-or-nothing replacement. Follows no symbolic links.

A folder may be another user's than root: what root makes in it (a one-shot's, a hook's) is given to that user.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from virtksm.errors import AlreadyRunning, StateUnusable
from virtksm.paths import RuntimePaths

LOCK_POLL_S = 0.005
MAX_BYTES = 1 << 24
"""Longest text that is read whole: a state of 1,000 guests has some 100 KB."""
PIECE_BYTES = 1 << 16


def ensure_folder(path: str, mode: int) -> None:
    """Create a folder if it is missing; raises StateUnusable, also where something else has its name."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path) or os.path.islink(path):
            raise StateUnusable(f"{path} is not a folder", remedy=f"ls -ld {path}") from None
    except OSError as error:
        raise unusable(path, error) from error


def ensure_runtime(paths: RuntimePaths) -> None:
    """Create the runtime folder and the agent's own in it, if they are missing; raises StateUnusable."""
    ensure_folder(paths.root, 0o755)
    ensure_folder(paths.agent_dir, 0o750)


def open_lock(path: str) -> int:
    """Open (creating if need be) a lock file; returns its descriptor. Raises StateUnusable."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            return _create(path, flags)
        except FileExistsError:
            return os.open(path, flags)
    except OSError as error:
        raise unusable(path, error) from error


def try_lock(descriptor: int) -> bool:
    """Take an exclusive flock without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: str, otherwise: AlreadyRunning, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an exclusive flock on `path`; raises `otherwise` when another process holds it for `wait_s` seconds."""
    descriptor = open_lock(path)
    try:
        give_up_s = time.monotonic() + wait_s
        while not try_lock(descriptor):
            if time.monotonic() >= give_up_s:
                raise otherwise
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: str, text: str, *, mode: int = 0o600, durable: bool = False) -> None:
    """Put `text` in place of `path`: readers see the old text or the new. Raises StateUnusable.

    Not `durable`, it is not synced: the runtime folder is on tmpfs and lives as long as the kernel's settings do.
    The new text has a name of its own until it is whole, as threads of one process may write the same file.
    """
    temporary = f"{path}.{os.urandom(8).hex()}.new"  # what tempfile does, whose import takes 10 ms
    try:
        descriptor = _create(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, mode)  # whatever the umask
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                os.unlink(temporary)
            raise
        if durable:
            sync_folder(os.path.dirname(path))
    except OSError as error:
        raise unusable(path, error) from error


def sync_folder(path: str) -> None:
    """Have a folder's names on disk, too: what was renamed or removed in it survives a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: str) -> str | None:
    """Return a regular file's text, None if there is none; raises StateUnusable, and waits for no FIFO's writer."""
    try:
        with open_regular(path) as file:
            return read_all(file, MAX_BYTES).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unusable(path, error) from error


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading; raises OSError, and ValueError for anything else of that name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is not a regular file")
    return open(descriptor, "rb")


def read_all(file: BinaryIO, max_bytes: int) -> bytes:
    """Return all of a file; raises ValueError if it is longer than `max_bytes`.

    `file.read(limit)` takes that many bytes of memory before it reads, and once such a piece has been given back, glibc
    keeps as much in every thread's arena (its threshold for trimming follows): an agent grew by 10 MiB.
    """
    pieces = list[bytes]()
    left = max_bytes + 1
    while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise ValueError(f"is longer than {max_bytes} bytes")
    return b"".join(pieces)


def _create(path: str, flags: int) -> int:
    """Create a file that belongs to its folder's owner; raises FileExistsError rather than take what is there.

    Only a new file is given away: an old one may be a link to somebody else's, which that owner has put there.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    if os.geteuid() == 0:
        folder = os.stat(os.path.dirname(path))
        os.fchown(descriptor, folder.st_uid, folder.st_gid)
    return descriptor


def unusable(path: str, error: Exception | str) -> StateUnusable:
    """Return the error for a file or folder that cannot be used, with what to do about it, as commands."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else error
    folder = os.path.dirname(path)
    is_denied = isinstance(error, PermissionError) and os.geteuid() != 0
    return StateUnusable(
        f"{path}: {text}", remedy="run this with sudo" if is_denied else f"ls -la {folder}; df {folder}"
    )
