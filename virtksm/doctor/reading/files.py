"""Files below a root that tests may move: None for a missing one; one that cannot be read raises CannotTell.

Reads are bounded and never wait: a file may be endless, a FIFO, a folder, or another user's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TypeVar

from virtksm.doctor.finding import CannotTell
from virtksm.host.proc_files import parse_counter

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""/proc/PID/mountinfo is the longest: some 100 bytes a mount."""


class NoRegularFile(CannotTell):
    """Something else has that name, such as a folder or /dev/null."""


class Root:
    """The file tree that is read, `/` but in tests. Paths have no leading slash."""

    def __init__(self, path: str = "/") -> None:
        self._path = path.rstrip("/")

    def path(self, relative: str) -> str:
        return f"{self._path}/{relative}"

    def read(self, relative: str, how: Callable[[str], T], missing: T) -> T:
        """Return what `how` reads at a path, `missing` where nothing is there; raises CannotTell."""
        try:
            return how(self.path(relative))
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return missing
        except (OSError, ValueError) as error:
            raise CannotTell(f"/{relative}: {error.strerror if isinstance(error, OSError) else error}") from error

    def text(self, relative: str, *, only_scripts: bool = False) -> str | None:
        """Return a file's text, None if it is missing; `only_scripts`: or no script of root's or this user's."""

        def read(path: str) -> bytes | None:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                is_file, is_ours = stat.S_ISREG(status.st_mode), status.st_uid in (0, os.geteuid())
                if only_scripts and not (is_file and is_ours and os.pread(descriptor, 2, 0) == b"#!"):
                    return None
                if not is_file:
                    raise NoRegularFile(f"/{relative} is no regular file")
                with open(descriptor, "rb", closefd=False) as file:  # of a descriptor
                    return file.read(MAX_BYTES + 1)
            finally:
                os.close(descriptor)

        content = self.read(relative, read, None)
        if content is not None and len(content) > MAX_BYTES:
            raise CannotTell(f"/{relative} is longer than {MAX_BYTES} bytes")
        return None if content is None else content.decode("utf-8", "replace")

    def text_if_readable(self, relative: str) -> str:
        """Return a file's text, nothing if it is missing or cannot be read."""
        try:
            return self.text(relative) or ""
        except CannotTell:
            return ""

    def number(self, relative: str) -> int | None:
        """Return the number that a file holds; None if it is missing."""
        text = self.text(relative)
        number = None if text is None else parse_counter(text)
        if text is not None and number is None:
            raise CannotTell(f"/{relative} holds no number")
        return number

    def names(self, relative: str) -> list[str]:
        """Return the names in a folder, sorted; none if it is missing."""
        return self.read(relative, lambda path: sorted(os.listdir(path)), [])  # noqa: PTH208  # names alone

    def names_if_readable(self, relative: str) -> list[str]:
        """Return the names in a folder, none if it is missing or cannot be read."""
        try:
            return self.names(relative)
        except CannotTell:
            return []

    def status(self, relative: str) -> os.stat_result | None:
        """Return what stat tells of a path, None if nothing is there."""
        return self.read(relative, os.stat, None)

    def is_folder(self, relative: str) -> bool:
        status = self.status(relative)
        return status is not None and stat.S_ISDIR(status.st_mode)
