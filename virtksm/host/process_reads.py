"""Files of processes that the kernel reads under a lock of the process itself, with a limit.

`cmdline`, and `ksm_stat` after Linux 6.12, take the lock on the process's memory. The process's owner may hold it for
ever, and a process that hangs in a driver does: a reader then waits as long, and cannot be interrupted. Such a process
is left out, and named in `trouble` until the call returns. It costs its limit once, and one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

from virtksm.errors import VirtksmError
from virtksm.host.bounded import BoundedCalls
from virtksm.host.proc_files import read_process
from virtksm.text import printable

LIMIT_S = 1.0
MAX_STUCK = 8
"""Threads that may hang; with as many, nothing more is read."""
AT_ONCE = 256
"""Processes that are read within one limit: on a host of thousands, slow is not taken for hanging."""

Result = TypeVar("Result")


class ProcessReads:
    """Reads of one caller, to be used from one thread."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._stuck: dict[int, tuple[BoundedCalls, str]] = {}

    @property
    def trouble(self) -> tuple[str, ...]:
        """The processes that do not answer, with the remedy: the same words as long as they do not."""
        self._forget_answered()
        return tuple(text for _, text in self._stuck.values())

    def read(self, pids: Iterable[int], read: Callable[[int], Result], *, max_hangs: int = 1) -> dict[int, Result]:
        """Return what `read` returns for each process, without those that do not answer within the limit.

        After `max_hangs` such processes the rest stays unread, too: a caller waits for so many limits at most.
        """
        self._forget_answered()
        results: dict[int, Result] = {}
        left = [pid for pid in pids if pid not in self._stuck]
        while left and max_hangs and len(self._stuck) < MAX_STUCK:
            batch, calls = _Batch(left[:AT_ONCE], read), BoundedCalls(_Hangs)
            with suppress(_Hangs):
                calls.run("/proc", batch.work, self._limit_s)
            batch.is_over.set()
            done = list(batch.results)
            results.update(done)
            left = left[len(done) :]
            if calls.waiting_for is not None and len(done) < AT_ONCE and left:
                stuck = left.pop(0)
                self._stuck[stuck] = calls, _describe(stuck)
                max_hangs -= 1
        return results

    def _forget_answered(self) -> None:
        self._stuck = {pid: stuck for pid, stuck in self._stuck.items() if stuck[0].waiting_for is not None}


class _Hangs(VirtksmError):
    """A process does not answer within the limit."""


class _Batch(Generic[Result]):
    """Reads that are made in a thread, in order."""

    def __init__(self, pids: list[int], read: Callable[[int], Result]) -> None:
        self._pids = pids
        self._read = read
        self.results: list[tuple[int, Result]] = []
        self.is_over = threading.Event()

    def work(self) -> None:
        for pid in self._pids:
            if self.is_over.is_set():
                return
            self.results.append((pid, self._read(pid)))


def _describe(pid: int) -> str:
    name = printable(read_process(pid, "comm").decode("utf-8", "replace").removesuffix("\n"))
    return (
        f"process {pid} ({name}) does not let its files in /proc be read: its memory is locked while it hangs "
        f"(cat /proc/{pid}/stack); it and processes read after it may count as unread until it goes on or ends"
    )
