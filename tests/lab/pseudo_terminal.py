"""A program in a terminal of its own: keys go in, the size changes, frames come out, and what is left is looked at.

Frames are told apart by the cursor going home; a frame is whole once the next one or the end has begun, or when it ends
with the code that clears the rest of the screen.
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tests.lab.forked import Forked, Start
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until

HOME, CLEAR_REST = "\x1b[H", "\x1b[J"
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class PseudoTerminal:
    """Runs `command` in a pseudo-terminal, as the leader of a session of its own; whoever starts it calls `close`."""

    def __init__(
        self,
        command: Sequence[str] | Start,
        *,
        columns: int = 100,
        rows: int = 30,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, rows)
        self.mode_before = self.mode()
        self._said = b""
        self._heard = threading.Lock()
        special = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "", **(environ or {})}
        self.process = self._fork(command, special) if isinstance(command, Start) else self._spawn(command, special)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _fork(self, command: Start, environ: dict[str, str]) -> Forked | subprocess.Popen[bytes]:
        slave = os.ttyname(self._slave)
        return Forked(command._replace(stdin=slave, stdout=slave, stderr=slave, environ=(*environ.items(),)))

    def _spawn(self, command: Sequence[str], environ: dict[str, str]) -> Forked | subprocess.Popen[bytes]:
        slave = self._slave

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        return subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509  # the child does nothing else, and no thread of ours holds a lock
            env={**os.environ, **environ},
        )

    @property
    def said(self) -> str:
        """Everything that was written so far."""
        with self._heard:
            return self._said.decode("utf-8", "replace")

    def frames(self) -> list[list[str]]:
        """Return the whole frames so far, each as its lines, without codes."""
        parts = self.said.split(HOME)[1:]
        whole = [CODES.sub("", part.partition(CLEAR_REST)[0]) for part in parts if CLEAR_REST in part]
        return [re.split("\r+\n", frame) for frame in whole]

    def wait_for_frame(self, text: str) -> list[str]:
        """Return the first frame from now on, the present one included, that has `text` in it."""
        number = max(len(self.frames()) - 1, 0)
        found: list[list[str]] = []

        def has_come() -> bool:
            found[:] = [frame for frame in self.frames()[number:] if any(text in line for line in frame)]
            return bool(found)

        wait_until(has_come, HANG_S, f"{text!r} on the screen, which shows {self.frames()[-1:]}, {self.said[-300:]!r}")
        return found[0]

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, of which the kernel tells the program (SIGWINCH)."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def mode(self) -> list[Any]:
        """Return how the terminal handles keys."""
        return termios.tcgetattr(self._slave)

    def wait_ended(self) -> int:
        """Return the exit code, negative for a signal."""
        code = self.process.wait(HANG_S)
        os.close(self._slave)
        self._slave = -1
        self._reader.join(HANG_S)
        return code

    def close(self) -> None:
        """End what still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(HANG_S)
        if self._slave >= 0:
            os.close(self._slave)
        self._reader.join(HANG_S)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # the program and everybody else have closed the other end
                return
            if not part:
                return
            with self._heard:
                self._said += part
