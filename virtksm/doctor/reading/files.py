"""Files below a root that tests may move: their content, None for a missing file, or why it is unknown.

Reads are bounded and never wait: a file may be endless, a FIFO, a folder, or another user's.
"""

from __future__ import annotations

import os
import stat

from virtksm.doctor.facts import Unknown
from virtksm.host.proc_files import parse_counter

MAX_BYTES = 1 << 20
"""/proc/PID/mountinfo is the longest: some 100 bytes a mount."""


class Root:
    """The file tree that is read, `/` but in tests. Paths have no leading slash."""

    def __init__(self, path: str = "/") -> None:
        self._path = path.rstrip("/")

    def path(self, relative: str) -> str:
        """Return the path to open."""
        return f"{self._path}/{relative}"

    def text(self, relative: str) -> str | Unknown | None:
        """Return a file's text; None if it is missing."""
        return self._read(relative)

    def script(self, relative: str) -> str | Unknown | None:
        """Return a script's text; None if it is missing, another program, or neither root's nor this user's."""
        return self._read(relative, only_scripts=True)

    def _read(self, relative: str, *, only_scripts: bool = False) -> str | Unknown | None:
        try:
            descriptor = os.open(self.path(relative), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            return _unknown(relative, error)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None if only_scripts else Unknown(why=f"/{relative} is no regular file")
            if only_scripts and (status.st_uid not in (0, os.geteuid()) or os.pread(descriptor, 2, 0) != b"#!"):
                return None
            with open(descriptor, "rb", closefd=False) as file:  # of a descriptor
                content = file.read(MAX_BYTES + 1)
        except ProcessLookupError:
            return None
        except OSError as error:
            return _unknown(relative, error)
        finally:
            os.close(descriptor)
        if len(content) > MAX_BYTES:
            return Unknown(why=f"/{relative} is longer than {MAX_BYTES} bytes")
        return content.decode("utf-8", "replace")

    def number(self, relative: str) -> int | Unknown | None:
        """Return the number that a file holds; None if it is missing."""
        text = self.text(relative)
        if not isinstance(text, str):
            return text
        number = parse_counter(text)
        return Unknown(why=f"/{relative} holds no number") if number is None else number

    def names(self, relative: str) -> tuple[str, ...] | Unknown:
        """Return the names in a folder, sorted; none if it is missing."""
        try:
            return tuple(sorted(os.listdir(self.path(relative))))  # noqa: PTH208  # names are all that is needed
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except (OSError, ValueError) as error:
            return _unknown(relative, error)

    def is_file(self, relative: str) -> bool:
        """Return whether there is such a regular file, as far as this user may see."""
        return os.path.isfile(self.path(relative))  # noqa: PTH113  # beside the rest

    def is_special(self, relative: str) -> bool:
        """Return whether there is something else than a regular file, such as a folder or /dev/null."""
        try:
            return not stat.S_ISREG(os.stat(self.path(relative)).st_mode)  # noqa: PTH116  # beside the rest
        except (OSError, ValueError):
            return False

    def is_folder(self, relative: str) -> bool | Unknown:
        """Return whether there is such a folder."""
        try:
            return stat.S_ISDIR(os.stat(self.path(relative)).st_mode)  # noqa: PTH116  # errors tell apart
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError) as error:
            return _unknown(relative, error)


def _unknown(relative: str, error: OSError | ValueError) -> Unknown:
    return Unknown(why=f"/{relative}: {error.strerror if isinstance(error, OSError) else error}")
