"""A blocking call with a limit, where no event loop runs: in one-shots, and within a pass.

A blocking call (of libvirt's daemon, a process's files, a disk) cannot be cancelled. It is made in a daemon thread;
over its limit it is abandoned, and until it returns every further call of the same `BoundedCalls` fails at once, so a
hang costs one thread and not one a call. A caller that waits for different things has an instance for each. In the
agent's loop `agent.calls` does the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from virtksm.errors import VirtksmError

Result = TypeVar("Result")


class BoundedCalls:
    """Makes calls one at a time; to be used from one thread. `timeout_error` makes the error for one over its limit."""

    def __init__(self, timeout_error: Callable[[str], VirtksmError]) -> None:
        self._timeout_error = timeout_error
        self._abandoned: tuple[str, threading.Event] | None = None

    @property
    def waiting_for(self) -> str | None:
        """The abandoned call that has not returned; None for none."""
        if self._abandoned is not None and self._abandoned[1].is_set():
            self._abandoned = None
        return None if self._abandoned is None else self._abandoned[0]

    def run(self, what: str, call: Callable[[], Result], limit_s: float) -> Result:
        """Make `call` and return its result; its exceptions pass through.

        Raises what `timeout_error` makes after `limit_s` seconds, or at once while an abandoned call has not returned.
        """
        if (abandoned := self.waiting_for) is not None:
            raise self._timeout_error(f"{what}: still waiting for {abandoned}")
        is_over, results, errors = threading.Event(), list[Result](), list[BaseException]()

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001  # raised where the call was asked for
                errors.append(error)
            finally:
                is_over.set()

        threading.Thread(target=work, name=f"call-{what}", daemon=True).start()
        if not is_over.wait(limit_s):
            self._abandoned = what, is_over
            raise self._timeout_error(f"{what}: no answer within {limit_s:g} s")
        if errors:
            raise errors[0]
        return results[0]
