"""Hostile neighbours of an agent, for the soak.

A flood of connections comes from a process of a user without rights, which ends by itself. A journal that hangs is a
stream that is not read for a while, as when journald's disk hangs; what is read goes to a file.
"""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import IO

from tests.lab.nobody import NOBODY

CONNECTS_PER_S = 3000
_FLOOD = """
import socket, sys, time
port, seconds, per_s, keep = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), 16
began, kept, number = time.monotonic(), [], 0
while (age := time.monotonic() - began) < seconds:
    if number > age * per_s:
        time.sleep(0.001)
        continue
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", port))
    kept.append(client)
    number += 1
    if len(kept) > keep:
        kept.pop(0).close()
print(number)
"""


@contextlib.contextmanager
def flood(port: int, seconds: float) -> Iterator[None]:
    """Connect to a port of the loopback address again and again, as a user without rights, and say nothing."""
    become = ["setpriv", "--pdeathsig", "KILL", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    command = ["/usr/bin/python3", "-c", _FLOOD, str(port), str(seconds), str(CONNECTS_PER_S)]
    process = subprocess.Popen([*become, *command], stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


class Journal:
    """A log's stream: `end` is for the process that writes; what it writes goes into `file` but while `wedged`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._reader, self.end = socket.socketpair()
        self._goes_on = threading.Event()
        self._goes_on.set()
        threading.Thread(target=self._read, name="journal", daemon=True).start()

    def wedge(self, over: threading.Event, seconds: float) -> None:
        """Read nothing for so long, or until `over`."""
        self._goes_on.clear()
        over.wait(seconds)
        self._goes_on.set()

    def _read(self) -> None:
        while chunk := self._reader.recv(1 << 16):
            self._goes_on.wait()
            self._file.write(chunk)
            self._file.flush()
