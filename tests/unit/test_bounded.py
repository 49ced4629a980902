"""A blocking call with a limit, without an event loop."""

import gc
import threading
import weakref
from contextlib import suppress

import pytest

from virtksm.errors import SensingFailed
from virtksm.host.bounded import BoundedCalls, Waiting

SHORT_S = 0.01


@pytest.fixture
def calls() -> BoundedCalls:
    return BoundedCalls(SensingFailed)


def test_a_call_that_returns_in_time_gives_its_result_or_its_exception(calls: BoundedCalls) -> None:
    assert calls.run("adding", lambda: 1 + 1, 60.0) == 2
    with pytest.raises(ZeroDivisionError):
        calls.run("failing", lambda: 1 // 0, 60.0)
    assert calls.waiting is None


def test_what_a_failed_call_has_used_is_freed_with_its_error(calls: BoundedCalls) -> None:
    """Else a command ends before its connection does, which libvirtd logs."""

    class Connection:
        pass

    def fail() -> None:
        connection = Connection()
        used.append(weakref.ref(connection))
        raise ZeroDivisionError

    used = list[weakref.ref[Connection]]()
    gc.disable()
    try:
        with suppress(ZeroDivisionError):
            calls.run("failing", fail, 60.0)
        join_calls()
        assert used[0]() is None
    finally:
        gc.enable()


def join_calls() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("call-"):
            thread.join()


def test_a_call_over_its_limit_is_abandoned_and_the_next_ones_fail_at_once_until_it_is_back(
    calls: BoundedCalls,
) -> None:
    goes_on, was_called, late = threading.Event(), threading.Event(), list[Waiting | None]()
    with pytest.raises(SensingFailed, match=r"^hanging: no answer within 0\.01 s$"):
        calls.run("hanging", goes_on.wait, SHORT_S, late=lambda _error: late.append(calls.waiting))
    with pytest.raises(SensingFailed, match=r"^next: still waiting for an earlier call: hanging$"):
        calls.run("next", was_called.set, 60.0)
    assert not was_called.is_set()
    assert calls.waiting is not None

    goes_on.set()
    join_calls()
    assert late == [None], "told once it is waited for no longer"
    calls.run("next", was_called.set, 60.0)
    assert was_called.is_set()
