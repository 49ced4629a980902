"""virtksm's commands as processes of their own, forked from one that has imported them: a third of the CPU or less.

That one is started with the first of them and ends with the test process, and all that it has forked with it. A
command finds arguments, environment, streams and signals as in a process that was started for it. Where what it
imports, or what it holds in memory, is the matter, a test starts the program itself.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import NamedTuple

from tests.lab.hurried import hurry
from virtksm.cli.main import run_program

_PR_SET_PDEATHSIG = 1
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__, "tests.lab.preloaded"])
_one_at_a_time = threading.Lock()
"""multiprocessing reads how each of its processes has ended whenever another one starts."""


class Start(NamedTuple):
    """How a command is started: what it is told, where its streams lead, as whom, and within which limits."""

    arguments: list[str]
    stdout: str = os.devnull
    stderr: str = os.devnull
    stdin: str = os.devnull
    environ: tuple[tuple[str, str], ...] = ()
    """Beside this process's own."""
    hurried: bool = False
    user: int = 0
    groups: tuple[int, ...] = ()
    limits: tuple[tuple[int, int], ...] = ()
    """Of setrlimit, by resource."""


class Forked:
    """A process that runs one command; it has of subprocess.Popen what tests use."""

    def __init__(self, start: Start) -> None:
        work = _server.Process(target=_run, args=(start._replace(environ=(*os.environ.items(), *start.environ)),))
        with _one_at_a_time:
            work.start()
        assert work.pid is not None
        self.pid = work.pid
        self._work = work

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        with _one_at_a_time:
            return self._work.exitcode

    def wait(self, timeout_s: float) -> int:
        """Return the exit code; raises subprocess.TimeoutExpired."""
        wait([self._work.sentinel], timeout_s)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("virtksm", timeout_s)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_forked(
    arguments: Sequence[str],
    timeout_s: float,
    *,
    hurried: bool = False,
    user: int = 0,
    groups: tuple[int, ...] = (),
    limits: tuple[tuple[int, int], ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code; raises subprocess.TimeoutExpired."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        start = Start([*arguments], out.name, err.name, hurried=hurried, user=user, groups=groups, limits=limits)
        process = Forked(start)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        stdout, stderr = (file.read().decode("utf-8", "replace") for file in (out, err))
    return subprocess.CompletedProcess(["virtksm", *arguments], code, stdout, stderr)


def _run(start: Start) -> None:
    os.environ.clear()
    os.environ.update(start.environ)
    if start.stdin != os.devnull:
        os.setsid()  # for the terminal to be its own
    for path, flags, number in (
        (start.stdin, os.O_RDONLY, 0),
        (start.stdout, os.O_WRONLY | os.O_APPEND, 1),
        (start.stderr, os.O_WRONLY | os.O_APPEND, 2),
    ):
        os.dup2(opened := os.open(path, flags), number)
        os.close(opened)
    # As Python makes them at its start: those of the fork's server know whether its files could be sought in.
    sys.stdout = os.fdopen(1, "w", 1 if os.isatty(1) else -1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace")
    for number, limit in start.limits:
        resource.setrlimit(number, (limit, limit))
    if start.user:
        os.setgroups(start.groups)
        os.setgid(start.user)
        os.setuid(start.user)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # becoming another user would undo it
    sys.argv = ["virtksm", *start.arguments]
    if start.hurried:
        hurry()
    run_program()
