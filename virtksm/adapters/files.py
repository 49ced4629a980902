"""Small files of the runtime and state folders: locks, whole-or-nothing replacement. Follows no symbolic links."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from virtksm.errors import AlreadyRunning, StateUnusable
from virtksm.runtime import RuntimePaths

LOCK_POLL_S = 0.005


def ensure_folder(path: str, mode: int) -> None:
    """Create a folder if it is missing; raises StateUnusable, also where something else has its name."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path) or os.path.islink(path):
            raise StateUnusable(
                f"{path} is not a folder", remedy="remove it, or choose another --runtime-dir"
            ) from None
    except OSError as error:
        raise _unusable(path, error) from error


def ensure_runtime(paths: RuntimePaths) -> None:
    """Create the runtime folder and the agent's own in it, if they are missing; raises StateUnusable."""
    ensure_folder(paths.root, 0o755)
    ensure_folder(paths.agent_dir, 0o750)


def open_lock(path: str) -> int:
    """Open (creating if need be) a lock file; returns its descriptor. Raises StateUnusable."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def try_lock(descriptor: int) -> bool:
    """Take an exclusive flock without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: str, otherwise: AlreadyRunning, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an exclusive flock on `path`; raises `otherwise` when somebody else keeps it for `wait_s` seconds."""
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
    """
    temporary = f"{path}.{os.getpid()}.new"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, mode)  # whatever the umask
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        if durable:
            sync_folder(os.path.dirname(path))
    except OSError as error:
        raise _unusable(path, error) from error


def sync_folder(path: str) -> None:
    """Have a folder's names on disk, too: what was renamed or removed in it survives a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: str) -> str | None:
    """Return a file's text, None if there is none; raises StateUnusable."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: Exception) -> StateUnusable:
    return StateUnusable(
        f"{path}: {error}",
        remedy="virtksm keeps the baseline there and writes nothing without it; mend it, or give --runtime-dir",
    )
