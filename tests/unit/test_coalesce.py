"""Coalescing: at once after quiet, one trailing pass a window, and the last trigger never forgotten."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from virtksm.agent.coalesce import Coalescer
from virtksm.model.decision import Trigger
from virtksm.values import replace

QUIET = Coalescer(window_s=0.25)


def test_the_first_trigger_after_quiet_and_an_explicit_request_are_due_at_once() -> None:
    assert QUIET.due_s(5.0) is None
    assert QUIET.offer(Trigger.STARTED, 5.0).due_s(5.0) == 5.0
    _, busy = QUIET.offer(Trigger.STARTED, 5.0).take(5.0)
    assert busy.offer(Trigger.RETUNE, 5.01).due_s(5.01) == 5.01
    assert busy.offer(Trigger.STOPPED, 9.0).due_s(9.0) == 9.0


def test_triggers_within_the_window_make_one_trailing_pass() -> None:
    _, busy = QUIET.offer(Trigger.STARTED, 5.0).take(5.0)
    busy = busy.offer(Trigger.STOPPED, 5.05).offer(Trigger.BALLOON, 5.08)
    assert busy.heard_s == 5.05
    assert busy.due_s(5.1) == 5.25
    triggers, rest = busy.take(5.25)
    assert triggers.kinds == {Trigger.STOPPED, Trigger.BALLOON}
    assert (rest.due_s(5.3), rest.heard_s) == (None, None)


def test_the_timer_is_a_trigger_once_its_time_has_come_and_keeps_to_the_window() -> None:
    _, waiting = QUIET.offer(Trigger.STARTED, 5.0).take(5.0)
    waiting = replace(waiting, timer_s=5.1)
    assert (waiting.due_s(5.05), waiting.next_s(5.05)) == (None, 5.1)
    assert waiting.ring(5.05) is waiting
    rung = waiting.ring(5.15)
    assert rung.pending == {Trigger.TIMER}
    assert (rung.heard_s, rung.timer_s) == (5.15, None)
    assert rung.next_s(5.15) == 5.25


@given(gaps=st.lists(st.floats(0, 0.5), min_size=1, max_size=300), window=st.floats(0.01, 1.0))
def test_a_storm_costs_at_most_a_pass_a_window_and_the_last_trigger_is_answered(
    gaps: list[float], window: float
) -> None:
    coalescer, now_s, passes, answered = Coalescer(window_s=window), 0.0, [], 0
    for number, gap in enumerate(gaps):
        now_s += gap
        due_s = coalescer.due_s(now_s - gap)
        if due_s is not None and due_s <= now_s:
            _, coalescer = coalescer.take(due_s)
            passes.append(due_s)
            answered = number
        coalescer = coalescer.offer(Trigger.STARTED, now_s)
    due_s = coalescer.due_s(now_s)
    assert due_s is not None
    assert due_s <= now_s + window
    _, coalescer = coalescer.take(due_s)
    passes.append(due_s)
    assert answered < len(gaps)
    assert all(later - earlier >= window * 0.999 for earlier, later in pairwise(passes))
    assert coalescer.due_s(due_s + 10) is None


@given(before=st.floats(0, 1e6), after=st.floats(0, 1e6))
def test_a_stepped_clock_delays_a_pass_by_no_more_than_the_window(before: float, after: float) -> None:
    _, coalescer = QUIET.offer(Trigger.STARTED, before).take(before)
    due_s = coalescer.offer(Trigger.STOPPED, after).due_s(after)
    assert due_s is not None
    assert after <= due_s <= after + 0.25
