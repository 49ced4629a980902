"""Files below a root that tests may move: None for a missing one; one that cannot be read raises CannotTell.

Reads are bounded and never wait: a file may be endless, a FIFO, a folder, or another user's.
"""

from __future__ import annotations

import os
import stat

from virtksm.doctor.finding import CannotTell
from virtksm.host.proc_files import parse_counter

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

    def text(self, relative: str, *, only_scripts: bool = False) -> str | None:
        """Return a file's text, None if it is missing; `only_scripts`: or no script of root's or this user's."""
        try:
            descriptor = os.open(self.path(relative), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise _cannot_read(relative, error) from error
        try:
            status = os.fstat(descriptor)
            if only_scripts and not (
                stat.S_ISREG(status.st_mode)
                and status.st_uid in (0, os.geteuid())
                and os.pread(descriptor, 2, 0) == b"#!"
            ):
                return None
            if not stat.S_ISREG(status.st_mode):
                raise NoRegularFile(f"/{relative} is no regular file")
            with open(descriptor, "rb", closefd=False) as file:  # of a descriptor
                content = file.read(MAX_BYTES + 1)
        except ProcessLookupError:
            return None
        except OSError as error:
            raise _cannot_read(relative, error) from error
        finally:
            os.close(descriptor)
        if len(content) > MAX_BYTES:
            raise CannotTell(f"/{relative} is longer than {MAX_BYTES} bytes")
        return content.decode("utf-8", "replace")

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
        try:
            return sorted(os.listdir(self.path(relative)))  # noqa: PTH208  # names are all that is needed
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError) as error:
            raise _cannot_read(relative, error) from error

    def names_if_readable(self, relative: str) -> list[str]:
        """Return the names in a folder, none if it is missing or cannot be read."""
        try:
            return self.names(relative)
        except CannotTell:
            return []

    def is_folder(self, relative: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(self.path(relative)).st_mode)  # noqa: PTH116  # errors tell apart
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError) as error:
            raise _cannot_read(relative, error) from error


def _cannot_read(relative: str, error: OSError | ValueError) -> CannotTell:
    return CannotTell(f"/{relative}: {error.strerror if isinstance(error, OSError) else error}")
