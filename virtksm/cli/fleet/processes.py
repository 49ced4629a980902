"""Asks many hosts at once, each in a process of its own.

A call of libvirt that hangs cannot be cancelled; a process can be ended. So no host delays another one, except by
taking one of `jobs` places until its limit. The processes are forked from this one, which has imported what they need:
another host costs 13 ms of CPU instead of 130. Each leads a session of its own: what it has started ends with it, and
ssh has neither a terminal nor a window to ask in, nor has one that ssh starts (ProxyJump).
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from virtksm.cli.fleet.hosts import FleetHost
from virtksm.errors import ExitCode

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROGRESS_EVERY_S = 1.0
WINDOWS = ("DISPLAY", "WAYLAND_DISPLAY", "SSH_ASKPASS")
"""What libvirt hands on to ssh, if it knows it, and ssh opens a window by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command has printed for one host and said on standard error, its exit code, and how long it took."""

    exit_code: int
    printed: str = ""
    said: str
    took_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    host: FleetHost
    process: ForkProcess
    began_s: float


def ask_all(
    hosts: Sequence[FleetHost],
    ask: Callable[[FleetHost], int],
    *,
    jobs: int,
    limit_s: float,
    notice: Callable[[Mapping[FleetHost, Answer], Sequence[FleetHost]], object],
) -> tuple[dict[FleetHost, Answer], int]:
    """Have `ask` print for each host, and return the answers, and the signal that has ended it before, else 0.

    A host that was not asked to the end has no answer. `notice` is told the answers so far and who is still asked.
    """
    answers: dict[FleetHost, Answer] = {}
    waiting, running = deque(hosts), dict[Connection, _Asking]()
    with _signals() as woken:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    try:
                        reader, process = _start(ask, waiting[0])
                    except OSError:  # no process or descriptor is left, until one of ours ends
                        if running:
                            break
                        raise
                    running[reader] = _Asking(host=waiting.popleft(), process=process, began_s=time.monotonic())
                notice(answers, [one.host for one in running.values()])
                due_s = min(one.began_s for one in running.values()) + limit_s
                ready = wait([*running, woken], min(max(due_s - time.monotonic(), 0.0), PROGRESS_EVERY_S))
                if woken in ready:
                    return answers, os.read(woken, 1)[0]
                late_s = time.monotonic() - limit_s
                for reader in [one for one in running if one in ready or running[one].began_s <= late_s]:
                    asking = running.pop(reader)
                    answers[asking.host] = _take(reader, asking, limit_s)
        finally:
            for reader, asking in running.items():
                _end(reader, asking.process)
    return answers, 0


@contextmanager
def _signals() -> Iterator[int]:
    """Have the signals that end a program, unless it ignores them, read from a descriptor, each as its number."""
    woken, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    waked = signal.set_wakeup_fd(waking)
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(waked)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(waking)


def _start(ask: Callable[[FleetHost], int], host: FleetHost) -> tuple[Connection, ForkProcess]:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(ask, host, writer), daemon=True)
    process.start()
    writer.close()
    return reader, process


def _work(ask: Callable[[FleetHost], int], host: FleetHost, writer: Connection) -> None:
    """Ask one host, in its process: send what was printed, and end, with all that was started."""
    signal.set_wakeup_fd(-1)
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    for name in WINDOWS:
        os.environ.pop(name, None)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        try:
            code = ask(host)
        except Exception as error:  # noqa: BLE001  # a fault of the program is one host's
            code = ExitCode.FAILED
            print(
                f"virtksm: error: {type(error).__name__}: {error}\nhint: report this fault of virtksm", file=sys.stderr
            )
    writer.send((int(code), printed.getvalue(), said.getvalue()))
    os.killpg(0, signal.SIGKILL)


def _take(reader: Connection, asking: _Asking, limit_s: float) -> Answer:
    """Return the answer of a process that has one, has died, or is over its limit, and end it."""
    took_s = time.monotonic() - asking.began_s
    code, printed = int(ExitCode.UNREACHABLE), ""
    said = f"virtksm: error: no answer within {limit_s:g} s\nhint: a longer --timeout"
    try:
        if reader.poll():
            code, printed, said = reader.recv()
    except (EOFError, OSError):
        asking.process.join()
        code, said = ExitCode.FAILED, f"virtksm: error: its process died (exit code {asking.process.exitcode})"
    _end(reader, asking.process)
    return Answer(exit_code=code, printed=printed, said=said, took_s=took_s)


def _end(reader: Connection, process: ForkProcess) -> None:
    """End a process with all that it has started. One that does not even die is not waited for."""
    reader.close()
    if process.is_alive() and process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
