"""Progress of long work: one line on a terminal's standard error, written over and gone at the end.

Nothing where standard error is no terminal, nor with --json. Ours rather than tqdm: most of this work has no total to
count to, and a dependency of every installation would serve three commands.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO

from virtksm.cli.layout import fit, is_paintable
from virtksm.text import printable

CLEAR_LINE = "\x1b[K"
EVERY_S = 0.1


class Progress:
    """The line; as a context it goes at its end."""

    def __init__(self, *, is_wanted: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.is_shown = is_wanted and is_paintable(self._stream, os.environ)
        self._due_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Show a text in place of the one before, ten times a second at most."""
        if not self.is_shown or time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + EVERY_S
        self._write(fit(printable(text), os.get_terminal_size(self._stream.fileno()).columns - 1))

    def clear(self) -> None:
        """Take the line away, before something else is printed."""
        if self.is_shown and self._due_s:
            self._due_s = 0.0
            self._write("")

    def over(self, texts: Iterable[str], total: int, what: str) -> Iterator[str]:
        """Pass texts on, and show how many of `total` characters have passed."""
        done = 0
        for text in texts:
            yield text
            done += len(text)
            self.show(f"{what}: {100 * done // max(total, 1)} %")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text}{CLEAR_LINE}\r")
        self._stream.flush()
