"""Blocking calls, libvirt's or the disk's, beside the event loop: each in a thread of its own, with a limit, in turn.

They cannot be cancelled. A call over its limit is abandoned: the caller gets an error (for libvirt LibvirtTimeout), and
until that thread returns every further call fails at once, so a hanging daemon or disk costs one thread and not one a
pass. A caller that waits for different things has an instance for each.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from virtksm.errors import VirtksmError
from virtksm.host.bounded import Waiting
from virtksm.host.systemd import libvirt_hangs

Result = TypeVar("Result")
MAX_LEFT = 8
"""Threads of calls over connections that are lost (chosen)."""


class BlockingCalls:
    """Runs one blocking call at a time; to be used from one asyncio loop.

    `waiting` is the call that has not returned, abandoned or not. `timeout_error` makes the error for a call over its
    limit, which is `limit_s` where the call has none of its own.
    """

    def __init__(self, timeout_error: Callable[[str], VirtksmError] = libvirt_hangs, limit_s: float = math.inf) -> None:
        self.limit_s = limit_s
        self._timeout_error = timeout_error
        self.waiting: Waiting | None = None
        self._lock = asyncio.Lock()
        self._deferred: list[Callable[[], object]] = []

    async def run(
        self,
        what: str,
        call: Callable[[], Result],
        limit_s: float | None = None,
        *,
        discard: Callable[[Result], None] | None = None,
        is_deferred: bool = False,
    ) -> Result:
        """Run `call` in a daemon thread, after the calls before it, and return its result; exceptions pass through.

        Raises what `timeout_error` makes after the limit, or at once while an abandoned call has not returned.
        A late result is given to `discard`. A call that `is_deferred` is made once the abandoned call has returned.
        """
        limit_s = self.limit_s if limit_s is None else limit_s
        async with self._lock:
            if self.waiting is not None:
                if is_deferred:
                    self._deferred.append(call)
                raise self._timeout_error(f"{what}: still waiting for an earlier call: {self.waiting.what}")
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Result] = loop.create_future()
            thread = threading.Thread(
                target=self._work, args=(call, future, loop, discard), name=f"call-{what}", daemon=True
            )
            self.waiting = Waiting(what, time.monotonic())
            try:
                thread.start()
            except RuntimeError:  # the system has no thread left: nothing was called
                self.waiting = None
                raise
            try:
                # Not wait_for: until Python 3.12 it loses a cancellation that comes together with the result.
                await asyncio.wait([future], timeout=limit_s)
            except asyncio.CancelledError:
                if future.done() and future.exception() is None:
                    _discard(future.result(), discard)
                raise
            finally:
                future.cancel()  # if it is not done: the call is abandoned
            if future.cancelled():
                raise self._timeout_error(f"{what}: no answer within {limit_s:g} s")
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
        try:
            finish = partial(self._finish, future, call(), None)
        except BaseException as error:  # noqa: BLE001  # raised where the call was asked for
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
        deferred, self._deferred = self._deferred, []
        for call in deferred:
            _start_late(call)
        if error is None:
            _discard(result, discard)


class GuestCalls:
    """Calls that ask one guest after the other, of which one that hangs keeps no other guest waiting.

    `hanging` are those that have not returned, by guest (`Guest.key`), `most` at most; `left` those over connections
    that were lost, MAX_LEFT at most.
    """

    def __init__(self, most: int, one: BlockingCalls | None = None) -> None:
        self.one = one or BlockingCalls()
        """The one that is out, or none."""
        self.hanging: dict[str, BlockingCalls] = {}
        self.left: list[BlockingCalls] = []
        self._most = most

    @property
    def is_full(self) -> bool:
        return len(self.hanging) >= self._most

    def forget_returned(self) -> None:
        self.hanging = {key: calls for key, calls in self.hanging.items() if calls.waiting is not None}

    def begin_anew(self) -> None:
        """Go on over new connections, and leave what has not returned over the last ones.

        It returns once keepalive gives its connection up; one that is still being opened has none, and may never.
        """
        left = [one for one in (*self.left, *self.hanging.values(), self.one) if one.waiting is not None]
        if len(left) <= MAX_LEFT:
            self.left, self.hanging, self.one = left, {}, BlockingCalls()

    def set_aside(self, key: str) -> bool:
        """Ask the others while this guest's call hangs; returns whether there is still room for it."""
        if self.is_full:
            return False
        self.hanging[key], self.one = self.one, BlockingCalls()
        return True


async def wait_set(event: asyncio.Event, limit_s: float | None) -> None:
    """Wait until an event is set, for so long at most; None is for ever."""
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()


async def wait_next(event: asyncio.Event, limit_s: float | None = None) -> None:
    """Wait as `wait_set`, until an event is set from now on."""
    event.clear()
    await wait_set(event, limit_s)


def _raisable(error: BaseException) -> Exception:
    """Return what a future can raise in the loop's name: no StopIteration, and nothing that would end the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raised = RuntimeError(f"{type(error).__name__}: {error}")
    raised.__cause__ = error
    return raised


def _discard(result: Result, discard: Callable[[Result], None] | None) -> None:
    if discard is not None:
        _start_late(partial(discard, result))


def _start_late(call: Callable[[], object]) -> None:
    threading.Thread(target=call, name="late-call", daemon=True).start()
