"""A blocking call with a limit, where no event loop runs: in one-shots, and within a pass.

A blocking call (of libvirt's daemon, a process's files, a disk) cannot be cancelled. It is made in a daemon thread;
over its limit it is abandoned, and until it returns every further call of the same `BoundedCalls` fails at once, so a
hang costs one thread and not one a call. A caller that waits for different things has an instance for each. In the
agent's loop `agent.calls` does the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from virtksm.errors import VirtksmError

Result = TypeVar("Result")


class BoundedCalls:
    """Makes calls one at a time; to be used from one thread. `timeout_error` makes the error for one over its limit."""

    def __init__(self, timeout_error: Callable[[str], VirtksmError]) -> None:
        self._timeout_error = timeout_error
        self._running: tuple[str, _Call[object]] | None = None

    @property
    def waiting_for(self) -> str | None:
        """The abandoned call that has not returned; None for none."""
        if self._running is not None and self._running[1].is_over:
            self._running = None
        return None if self._running is None else self._running[0]

    def run(self, what: str, call: Callable[[], Result], limit_s: float) -> Result:
        """Make `call` and return its result; its exceptions pass through.

        Raises what `timeout_error` makes after `limit_s` seconds, or at once while an abandoned call has not returned.
        """
        abandoned = self.waiting_for
        if abandoned is not None:
            raise self._timeout_error(f"{what}: still waiting for {abandoned}")
        made = _Call(call)
        threading.Thread(target=made.work, name=f"call-{what}", daemon=True).start()
        if not made.wait(limit_s):
            self._running = (what, made)  # type: ignore[assignment]  # its result is not used any more
            raise self._timeout_error(f"{what}: no answer within {limit_s:g} s")
        return made.result()


class _Call(Generic[Result]):
    """One call and its result."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._over = threading.Event()
        self._outcome: list[Result] = []
        self._error: BaseException | None = None

    def work(self) -> None:
        try:
            self._outcome.append(self._call())
        except BaseException as error:  # noqa: BLE001  # raised where the call was asked for
            self._error = error
        finally:
            self._over.set()

    def wait(self, limit_s: float) -> bool:
        return self._over.wait(limit_s)

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._outcome[0]
