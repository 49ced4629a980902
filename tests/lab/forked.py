"""virtksm's commands as processes of their own, forked from one that has imported them: it costs a tenth of the CPU.

That one is started with the first of them and ends with the test process, and all that it has forked with it. A
command finds arguments, environment, streams and signals as in a process that was started for it. Where what it
imports, or what it holds in memory, is the matter, a test starts the program itself.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

import virtksm
from tests.lab.hurried import hurry
from virtksm.cli.main import run_program

for _module in pkgutil.walk_packages(virtksm.__path__, "virtksm."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)

_PR_SET_PDEATHSIG = 1
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])
_one_at_a_time = threading.Lock()
"""multiprocessing reads how each of its processes has ended whenever another one starts."""


class Forked:
    """A process that runs one command; it has of subprocess.Popen what tests use."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdout: Path,
        stderr: Path,
        hurried: bool = False,
        limits: Mapping[int, int] = {},
    ) -> None:
        """Start `virtksm ARGUMENT...`; `limits` are those of setrlimit, by resource."""
        given = [*arguments], {**os.environ}, str(stdout), str(stderr), hurried, {**limits}
        work = _server.Process(target=_run, args=given)
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
    arguments: Sequence[str], timeout_s: float, *, hurried: bool = False, limits: Mapping[int, int] = {}
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code; raises subprocess.TimeoutExpired."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        process = Forked(arguments, stdout=Path(out.name), stderr=Path(err.name), hurried=hurried, limits=limits)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        stdout, stderr = (file.read().decode("utf-8", "replace") for file in (out, err))
    return subprocess.CompletedProcess(["virtksm", *arguments], code, stdout, stderr)


def _run(
    arguments: list[str],
    environ: dict[str, str],
    stdout: str,
    stderr: str,
    hurried: bool,
    limits: dict[int, int],
) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(environ)
    for path, flags, number in (
        (os.devnull, os.O_RDONLY, 0),
        (stdout, os.O_WRONLY | os.O_APPEND, 1),
        (stderr, os.O_WRONLY | os.O_APPEND, 2),
    ):
        os.dup2(opened := os.open(path, flags), number)
        os.close(opened)
    for number, limit in limits.items():
        resource.setrlimit(number, (limit, limit))
    sys.argv = ["virtksm", *arguments]
    if hurried:
        hurry()
    run_program()
