"""Blocking calls beside the loop: one at a time, bounded, and a hanging one costs one thread and no more."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.lab.hang import HANG_S
from virtksm.agent.calls import MAX_LEFT, BlockingCalls, GuestCalls
from virtksm.errors import LibvirtTimeout
from virtksm.host.bounded import Waiting

AT_ONCE_S = 0.01
MORE_THAN_THERE_IS = 1 << 46
"""Bytes for a thread's stack."""


@pytest.fixture
def calls() -> BlockingCalls:
    return BlockingCalls()


async def over(calls: BlockingCalls, hanging: Callable[[], object]) -> None:
    with pytest.raises(LibvirtTimeout, match=r"slow: no answer within 0\.01 s"):
        await calls.run("slow", hanging, AT_ONCE_S)


async def works_again(calls: BlockingCalls) -> None:
    while True:
        try:
            assert await calls.run("next", lambda: 1, HANG_S) == 1
        except LibvirtTimeout:
            await asyncio.sleep(0)
        else:
            return


async def fails(calls: BlockingCalls, fail: Callable[[], object], error: type[BaseException], told: str) -> None:
    """Hold a call to fail so, and the next to be made all the same."""
    with pytest.raises(error, match=told):
        await calls.run("fail", fail, HANG_S)
    assert calls.waiting is None
    assert await calls.run("next", lambda: 1, HANG_S) == 1


@pytest.mark.parametrize(
    ("error", "comes_as", "told"),
    [
        (KeyError("mine"), KeyError, "mine"),
        (StopIteration("mine"), RuntimeError, "StopIteration: mine"),
        (SystemExit("mine"), RuntimeError, "SystemExit: mine"),
    ],
)
async def test_an_error_is_its_calls_alone_also_one_that_no_future_can_raise_or_that_would_end_the_loop(
    calls: BlockingCalls, error: BaseException, comes_as: type[BaseException], told: str
) -> None:
    def fail() -> None:
        raise error

    await fails(calls, fail, comes_as, told)


async def test_where_the_system_has_no_thread_left_nothing_is_waited_for_and_the_next_call_is_made(
    calls: BlockingCalls,
) -> None:
    usual = threading.stack_size(MORE_THAN_THERE_IS)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await calls.run("fail", lambda: 0, HANG_S)
    finally:
        threading.stack_size(usual)
    assert calls.waiting is None
    assert await calls.run("next", lambda: 1, HANG_S) == 1


async def test_calls_run_one_after_the_other_in_their_order(calls: BlockingCalls) -> None:
    order: list[tuple[str, int]] = []

    def work(number: int) -> None:
        order.append(("begun", number))
        order.append(("ended", number))

    await asyncio.gather(*(calls.run(f"call {n}", lambda n=n: work(n), HANG_S) for n in range(20)))  # type: ignore[misc]
    assert order == [(what, number) for number in range(20) for what in ("begun", "ended")]


async def test_a_call_over_its_limit_is_abandoned_and_the_next_fail_at_once_without_a_thread(
    calls: BlockingCalls,
) -> None:
    let_go = threading.Event()
    await over(calls, let_go.wait)
    threads = threading.active_count()
    for _ in range(3):
        with pytest.raises(LibvirtTimeout, match="next: still waiting for an earlier call: slow"):
            await calls.run("next", lambda: 1, HANG_S)
    assert threading.active_count() == threads
    let_go.set()
    await works_again(calls)


async def test_when_the_abandoned_call_returns_its_result_is_discarded_what_is_owed_is_done_and_calls_work_again(
    calls: BlockingCalls,
) -> None:
    let_go, discarded, closed = threading.Event(), threading.Event(), threading.Event()
    taken: list[str] = []

    def hang() -> str:
        let_go.wait()
        return "late connection"

    def discard(result: str) -> None:
        taken.append(result)
        discarded.set()

    with pytest.raises(LibvirtTimeout):
        await calls.run("open", hang, AT_ONCE_S, discard=discard)
    with pytest.raises(LibvirtTimeout, match="close: still waiting for an earlier call: open"):
        await calls.run("close", closed.set, HANG_S, is_deferred=True)
    assert (taken, closed.is_set()) == ([], False)
    let_go.set()
    assert await asyncio.to_thread(closed.wait, HANG_S)
    assert await asyncio.to_thread(discarded.wait, HANG_S)
    assert taken == ["late connection"]
    await works_again(calls)


async def test_a_failure_that_comes_too_late_is_forgotten(calls: BlockingCalls) -> None:
    let_go, ended = threading.Event(), threading.Event()

    def hang() -> None:
        let_go.wait()
        threading.Thread(target=ended.set).start()
        raise KeyError

    await over(calls, hang)
    let_go.set()
    await asyncio.to_thread(ended.wait, HANG_S)
    await works_again(calls)


async def test_a_cancelled_call_counts_as_abandoned_until_it_returns(calls: BlockingCalls) -> None:
    let_go = threading.Event()
    asked = asyncio.create_task(calls.run("slow", let_go.wait, HANG_S))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    with pytest.raises(LibvirtTimeout):
        await calls.run("next", lambda: 1, HANG_S)
    let_go.set()


def test_a_loop_that_has_ended_meanwhile_does_not_matter() -> None:
    let_go = threading.Event()

    async def test() -> None:
        await over(BlockingCalls(), let_go.wait)

    asyncio.run(test())
    workers = [thread for thread in threading.enumerate() if thread.name == "call-slow"]
    assert len(workers) == 1
    let_go.set()
    workers[0].join(HANG_S)
    assert not workers[0].is_alive()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_is_never_lost_to_a_call_that_ends_in_the_same_moment(
    calls: BlockingCalls, fails: bool
) -> None:
    """The agent's stop cancels whoever opens a connection; a swallowed one would let it go on opening for ever."""
    discarded: list[str] = []
    loop = asyncio.get_running_loop()

    def cancel_behind_the_end(thread: threading.Thread) -> None:
        # The thread's last act is to queue the call's end: after it, and before anybody hears of it.
        thread.join(HANG_S)
        loop.call_soon(opening.cancel)

    def call() -> str:
        loop.call_soon_threadsafe(cancel_behind_the_end, threading.current_thread())
        if fails:
            raise KeyError("refused")
        return "connection"

    opening = asyncio.create_task(calls.run("open", call, HANG_S, discard=discarded.append))
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert await calls.run("next", lambda: 1, HANG_S) == 1
    while not (fails or discarded):  # noqa: ASYNC110  # nobody else closes it
        await asyncio.sleep(0.001)
    assert discarded == ([] if fails else ["connection"])


class Held:
    """Stands for a connection that a call uses."""


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_failed_call_s_connection_is_let_go_without_waiting_for_the_garbage_collector(
    calls: BlockingCalls, *, is_late: bool
) -> None:
    kept: list[weakref.ref[Held]] = []
    go_on = threading.Event()

    def fail() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        go_on.wait(HANG_S)
        raise KeyError("lost")

    async def attempt() -> None:
        with suppress(KeyError, LibvirtTimeout):
            await calls.run("fail", fail, AT_ONCE_S if is_late else HANG_S)

    gc.disable()
    try:
        if not is_late:
            go_on.set()
        await attempt()
        go_on.set()
        while not kept or kept[0]() is not None:  # noqa: ASYNC110  # until its thread has ended
            await asyncio.sleep(0.001)
    finally:
        gc.enable()


def test_over_another_connection_all_begins_anew_until_too_much_is_left_of_others() -> None:
    calls, hung = GuestCalls(1), Waiting("slow", 0.0)
    for number in range(MAX_LEFT + 2):
        calls.one.waiting = hung
        calls.begin_anew()
        assert len(calls.left) == min(number + 1, MAX_LEFT)
        assert (calls.one.waiting is None) is (number < MAX_LEFT)
    calls.left[0].waiting = None
    calls.begin_anew()
    assert (len(calls.left), calls.one.waiting) == (MAX_LEFT, None)
