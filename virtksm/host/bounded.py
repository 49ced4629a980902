"""A blocking call with a limit, where no event loop runs: in one-shots, and within a pass.

A blocking call (of libvirt's daemon, a process's files, a disk) cannot be cancelled. It is made in a daemon thread;
over its limit it is abandoned, and until it returns every further call of the same `BoundedCalls` fails at once, so a
hang costs one thread and not one a call. A caller that waits for different things has an instance for each. In the
agent's loop `agent.calls` does the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from virtksm.errors import VirtksmError

Result = TypeVar("Result")
Wait = Callable[[threading.Event, float], bool]
"""Waits for an event as long as a limit says, and tells whether it came: `threading.Event.wait`."""


class Waiting(NamedTuple):
    """A call that has not returned, and when it was made (CLOCK_MONOTONIC)."""

    what: str
    since_s: float


class BoundedCalls:
    """Makes calls one at a time; to be used from one thread. `timeout_error` makes the error for one over its limit.

    `waiting` is the abandoned call that has not returned.
    """

    def __init__(self, timeout_error: Callable[[str], VirtksmError], wait: Wait = threading.Event.wait) -> None:
        self._timeout_error = timeout_error
        self._wait = wait
        self._ending = threading.Lock()
        self.waiting: Waiting | None = None

    def run(
        self,
        what: str,
        call: Callable[[], Result],
        limit_s: float,
        *,
        late: Callable[[BaseException | None], object] = lambda _error: None,
    ) -> Result:
        """Make `call` and return its result; its exceptions pass through.

        Raises what `timeout_error` makes after `limit_s` seconds, or at once while an abandoned call has not returned.
        When it returns after all, or fails, its thread calls `late`, with its exception.
        """
        if (waiting := self.waiting) is not None:
            raise self._timeout_error(f"{what}: still waiting for an earlier call: {waiting.what}")
        began_s, is_over, results, errors = time.monotonic(), threading.Event(), list[Result](), list[BaseException]()

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001  # raised where the call was asked for
                errors.append(error)
            with self._ending:
                is_over.set()
                was_late, self.waiting = self.waiting is not None, None
            if was_late:
                late(errors[0] if errors else None)

        threading.Thread(target=work, name=f"call-{what}", daemon=True).start()
        if not self._wait(is_over, limit_s):
            with self._ending:
                if not is_over.is_set():
                    self.waiting = Waiting(what, began_s)
                    raise self._timeout_error(f"{what}: no answer within {limit_s:g} s")
        if errors:
            raise errors.pop()  # not kept: with its traceback it would hold this frame, and a connection, for ever
        return results[0]
