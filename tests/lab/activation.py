"""Socket activation as systemd does it: keeps a daemon's socket, and starts the daemon whenever somebody connects.

A program of its own (`python activation.py NAME SOCKET COMMAND...`), which imports nothing of the project. NAME is the
socket's unit. A connection made after a daemon has ended waits in the socket for the next one.
"""

import os
import select
import socket
import sys

FIRST_PASSED = 3
"""The descriptor that an activated program finds its socket at (sd_listen_fds(3))."""


def main(unit: str, path: str, *command: str) -> None:
    """Start one daemon after the other, for ever."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            select.select([listening], [], [])
            pid = os.fork()
            if pid == 0:
                os.dup2(listening.fileno(), FIRST_PASSED)
                os.set_inheritable(FIRST_PASSED, True)  # it may have been that before
                os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES=unit)
                os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
