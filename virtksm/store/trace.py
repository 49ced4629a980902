"""Traces on disk: written line by line for their owner alone, read line by line whatever their length."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import FileIO

from virtksm.errors import TraceUnusable

MAX_OF_A_LINE = 1 << 22
"""Characters: ten times the longest line of an agent's."""


def create_trace(path: str, *, replaces: bool = False) -> FileIO:
    """Open a new trace for writing, its owner's alone; with `replaces` also where a file of ours is.

    Raises TraceUnusable. A trace names guests, so no other user's file takes it; no FIFO's reader is waited for.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (0 if replaces else os.O_EXCL)
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise TraceUnusable(f"{path}: it exists", remedy="name another file, or replace it with --force") from error
    except OSError as error:
        raise _unusable(path, error, "be written") from error
    file = FileIO(descriptor, "w")
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        file.close()
        raise TraceUnusable(f"{path}: it is no file of yours alone", remedy="name another file")
    os.fchmod(descriptor, 0o600)
    file.truncate()
    return file


def append_lines(file: FileIO, path: str, lines: list[str]) -> None:
    """Write whole lines, at once and past any buffer; raises TraceUnusable."""
    left = memoryview("".join(f"{line}\n" for line in lines).encode())
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise _unusable(path, error, "be written") from error


def read_trace(path: str) -> Iterator[str]:
    """Yield a trace's lines, the last one perhaps without its end; raises TraceUnusable."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            while line := file.readline(MAX_OF_A_LINE):
                yield line
    except OSError as error:
        raise _unusable(path, error, "be read") from error


def trace_size(path: str) -> int:
    """Return a trace's size in bytes, 0 where it cannot be told."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _unusable(path: str, error: OSError, what: str) -> TraceUnusable:
    return TraceUnusable(f"{path}: it cannot {what}: {error.strerror}", remedy=f"ls -ld {path}")
