"""Blocking calls, libvirt's or the disk's, beside the event loop: each in a thread of its own, with a limit, in turn.

They cannot be cancelled. A call over its limit is abandoned: the caller gets an error (for libvirt LibvirtTimeout), and
until that thread comes back every further call fails at once, so that a hanging daemon or disk costs one thread and not
one a pass. Who waits for different things has an instance for each.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from virtksm.errors import LibvirtTimeout, VirtksmError

Result = TypeVar("Result")

REMEDY = "libvirt's daemon does not answer: see its log, or restart it; guests go on running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What has not come back, and since when it is waited for (CLOCK_MONOTONIC)."""

    what: str
    since_s: float


def libvirt_hangs(message: str) -> VirtksmError:
    """Return the error for a call that libvirt does not answer."""
    return LibvirtTimeout(message, remedy=REMEDY)


class BlockingCalls:
    """Runs one blocking call at a time; to be used from one asyncio loop.

    `waiting` is the call that is out, whether it was abandoned or not. `too_late` makes the error for one over its
    limit.
    """

    def __init__(self, too_late: Callable[[str], VirtksmError] = libvirt_hangs) -> None:
        self._too_late = too_late
        self.waiting: Waiting | None = None
        self._turn = asyncio.Lock()
        self._abandoned: str | None = None
        self._owed: list[Callable[[], object]] = []

    async def run(
        self,
        what: str,
        call: Callable[[], Result],
        limit_s: float,
        *,
        discard: Callable[[Result], None] | None = None,
        is_owed: bool = False,
    ) -> Result:
        """Run `call` in a daemon thread, after the calls before it, and return its result; exceptions pass through.

        Raises what `too_late` makes after `limit_s` seconds, or at once while an abandoned call is still out. A result
        that comes too late is given to `discard`. A call that `is_owed` is made all the same once the abandoned one is
        back.
        """
        async with self._turn:
            if self._abandoned is not None:
                if is_owed:
                    self._owed.append(call)
                raise self._too_late(f"{what}: still waiting for {self._abandoned}")
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Result] = loop.create_future()
            thread = threading.Thread(
                target=self._work, args=(call, future, loop, discard), name=f"call-{what}", daemon=True
            )
            self.waiting = Waiting(what=what, since_s=time.monotonic())
            try:
                thread.start()
            except RuntimeError:  # the system has no thread left: nothing is out
                self.waiting = None
                raise
            try:
                # Not wait_for: until Python 3.12 it loses a cancellation that comes together with the result.
                await asyncio.wait([future], timeout=limit_s)
            except asyncio.CancelledError:
                if future.done() and future.exception() is None:
                    _throw_away(future.result(), discard)
                raise
            finally:
                if not future.done():
                    self._abandoned = what
                    future.cancel()
            if future.cancelled():
                raise self._too_late(f"{what}: no answer within {limit_s:g} s")
            try:
                return future.result()
            finally:
                del future  # or its error's traceback would hold it, and with it a lost connection

    def _work(
        self,
        call: Callable[[], Result],
        future: asyncio.Future[Result],
        loop: asyncio.AbstractEventLoop,
        discard: Callable[[Result], None] | None,
    ) -> None:
        """Make the call, in its thread, and tell the loop."""
        try:
            finish = partial(self._finish, future, call(), None)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is raised where the call was asked for
            finish = partial(self._finish, future, None, error)
        try:
            loop.call_soon_threadsafe(finish, discard)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return
        finally:
            del finish, future  # as in `run`

    def _finish(
        self,
        future: asyncio.Future[Any],
        result: Any,
        error: BaseException | None,
        discard: Callable[[Any], None] | None,
    ) -> None:
        self.waiting = None
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(_raisable(error))
            return
        self._abandoned = None
        owed, self._owed = self._owed, []
        for call in owed:
            _start_late(call)
        if error is None:
            _throw_away(result, discard)


def _raisable(error: BaseException) -> Exception:
    """Return what a future can raise in the loop's name: no StopIteration, and nothing that would end the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raised = RuntimeError(f"{type(error).__name__}: {error}")
    raised.__cause__ = error
    return raised


def _throw_away(result: Result, discard: Callable[[Result], None] | None) -> None:
    if discard is not None:
        _start_late(partial(discard, result))


def _start_late(call: Callable[[], object]) -> None:
    threading.Thread(target=call, name="late-call", daemon=True).start()
