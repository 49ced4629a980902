"""The private libvirtd's init: starts it, tells its pid, buries what it leaves behind, and ends all of it at last.

A program of its own (`python reaper.py [--without-huge-pages] COMMAND...`), which imports nothing of the project. QEMU
detaches from libvirtd and then belongs to the machine's init; libvirt calls a guest stopped only when its process is
gone for good. Where init is slow to bury (some sandboxes look every two seconds, a container's may never), each stop of
a guest takes as long. It prints the command's pid, and ends when nothing of its descendants is left. Its standard input
is a pipe of the process that started it: at its end, however that process has died, the descendants are killed.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_THP_DISABLE = 41


def set_process_control(option: int) -> None:
    """Call prctl(option, 1); both options used here are kept or inherited over fork and exec. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def end_all_at_the_end_of_input() -> None:
    """Kill one generation after the other: the children of one that was killed become ours."""
    while os.read(0, 4096):
        pass
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for pid in children.read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):  # buried meanwhile
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)


def main(arguments: list[str]) -> None:
    """Start the command and bury until nothing is left."""
    if arguments[0] == "--without-huge-pages":
        arguments = arguments[1:]
        set_process_control(_PR_SET_THP_DISABLE)
    set_process_control(_PR_SET_CHILD_SUBREAPER)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)  # the reader of our stdout must not wait for the daemon
        os.execvp(arguments[0], arguments)  # noqa: S606 - no shell is wanted
    os.write(1, f"{pid}\n".encode())
    threading.Thread(target=end_all_at_the_end_of_input, daemon=True).start()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
