"""The agent's writer of the history over a fake history and a clock of the test's: what it writes, when, what fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.fakes import SAMPLE, FakeClock, FakeHistory
from tests.lab.hang import HANG_S
from tests.lab.samples import a_pass
from virtksm.agent.history import MAX_WAITING_DECISIONS, MAX_WAITING_EVENTS, MAX_WAITING_SAMPLES, HistoryWriter
from virtksm.agent.requests import BadRequest, answer_decisions, answer_history
from virtksm.agent.trace_buffer import TraceBuffer
from virtksm.config.schema import Config
from virtksm.errors import VirtksmError
from virtksm.history.samples import GuestEvent
from virtksm.host.libvirt_events import DomainEvent
from virtksm.model.decision import Trigger
from virtksm.trace import Pass
from virtksm.trace.text import parse_summary
from virtksm.values import replace

NEVER_S = 3600.0
WALL_S = 1_800_000_000.0
EVENT = DomainEvent(trigger=Trigger.STARTED, guest="vm", uuid="u", detail="booted", heard_s=1.0)


def line_of_a_pass(at_s: float = WALL_S) -> Pass:
    return TraceBuffer().add(a_pass(), Config(), now_s=0.0, at_s=at_s)


@dataclass
class Desk:
    """A writer, its history, its clocks, and what it has reported."""

    history: FakeHistory = field(default_factory=FakeHistory)
    clock: FakeClock = field(default_factory=FakeClock)
    written: list[str | None] = field(default_factory=list)
    failed: list[Exception] = field(default_factory=list)
    history_writer: HistoryWriter = field(init=False)

    def take(self, *, is_news: bool = True) -> Pass:
        """Have the writer take note of a pass that ends now."""
        line = line_of_a_pass(WALL_S + self.clock.now_s)
        self.history_writer.take(line, line.summary() if is_news else None)
        return line

    @asynccontextmanager
    async def writing(self, **limits: float) -> AsyncIterator[None]:
        """Run the writer, and then to its end."""
        self.history_writer = HistoryWriter(
            self.written.append,
            self.failed.append,
            wall_clock=lambda: WALL_S + self.clock.now_s,
            **{"write_s": 0.001, "disk_limit_s": HANG_S, **limits},
        )
        self.history_writer.write_to(self.history)
        writing = asyncio.create_task(self.history_writer.keep_writing())
        async with asyncio.timeout(HANG_S):
            yield
        self.history_writer.end()
        await asyncio.wait_for(writing, HANG_S)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():  # noqa: ASYNC110  # a fake history sets no event
            await asyncio.sleep(0.001)


async def failed_again(desk: Desk) -> None:
    """Wait for a write that began after this and failed."""
    failures = len(desk.failed)
    await until(lambda: len(desk.failed) > failures + 1)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_pass_becomes_a_sample_and_a_decision_an_event_an_event(desk: Desk) -> None:
    lines: list[Pass] = []
    async with desk.writing():
        desk.history_writer.hear(EVENT)
        lines.append(desk.take())
    at_s = WALL_S + desk.clock.now_s
    assert desk.history.kept_events == [GuestEvent(at_s=at_s, kind="started", domain="vm", uuid="u", detail="booted")]
    assert [parse_summary(line) for line in desk.history.kept_decisions] == [lines[0].summary()]
    numbers = {"committed_kib": 1000, "saved_kib": 480, "ksmd_cpu_seconds": 1.5, "pages_to_scan": 400}
    parts = {"zero_kib": 80, "freed_kib": 0}
    expected = replace(SAMPLE, at_s=at_s, guests=1, sleep_millisecs=10, rule="told", **numbers, **parts)
    assert desk.history.kept_samples == [expected]


async def test_passes_in_ten_seconds_share_the_sample_of_the_last_and_routine_is_no_decision(desk: Desk) -> None:
    async with desk.writing(write_s=NEVER_S):
        for _ in range(41):
            desk.take(is_news=False)
            desk.clock.now_s += 1.0
    assert [one.at_s - WALL_S for one in desk.history.kept_samples] == [1009.0, 1019.0, 1029.0, 1039.0, 1040.0]
    assert desk.history.kept_decisions == []


async def test_a_sample_that_may_still_be_shared_waits_for_the_next_write(desk: Desk) -> None:
    async with desk.writing():
        desk.take()
        await until(lambda: desk.history.kept_decisions)
        assert desk.history.kept_samples == []
        desk.clock.now_s += 10.0
        await until(lambda: desk.history.kept_samples)
    assert len(desk.history.kept_samples) == 1


async def test_it_writes_at_once_only_to_look_whether_the_history_is_sound_and_rests_while_there_is_nothing(
    desk: Desk,
) -> None:
    desk.history.aside = "elsewhere"
    async with desk.writing(write_s=NEVER_S):
        await until(lambda: desk.written)
        desk.history_writer.hear(EVENT)
        await asyncio.sleep(0.05)
        assert desk.history.kept_events == [], "it waits for more"
    assert desk.written == ["elsewhere", None]
    assert (len(desk.history.kept_events), desk.history.writes) == (1, 2), "its end waits for nothing"


async def test_a_full_disk_is_told_and_what_waits_is_bounded_and_written_when_it_has_room(desk: Desk) -> None:
    desk.history.is_full = True
    async with desk.writing():
        desk.history_writer.hear(EVENT)
        await until(lambda: len(desk.failed) > 2)
        for number in range(MAX_WAITING_EVENTS + 50):
            desk.history_writer.hear(replace(EVENT, uuid=str(number)))
        for _ in range(MAX_WAITING_SAMPLES + 50):
            desk.take()
            desk.clock.now_s += 10.0
        await failed_again(desk)
        desk.history.is_full = False
    assert str(desk.failed[0]) == "no space left on device"
    assert len(desk.history.kept_events) == MAX_WAITING_EVENTS
    assert len(desk.history.kept_samples) == MAX_WAITING_SAMPLES
    assert len(desk.history.kept_decisions) == MAX_WAITING_DECISIONS
    newest = [one.at_s for one in desk.history.kept_samples]
    assert newest == sorted(newest)
    assert newest[-1] == WALL_S + desk.clock.now_s - 10.0, "the oldest are given up"


class HangingHistory(FakeHistory):
    """A disk that does not answer until released; `tries` counts who has come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.tries = 0

    def add(self, *batch: Any) -> str | None:  # noqa: ANN401  # as the port has it
        self.tries += 1
        self.released.wait(HANG_S)
        return super().add(*batch)


async def test_of_what_a_guest_makes_by_itself_the_last_of_a_kind_waits_alone_also_while_the_disk_is_full(
    desk: Desk,
) -> None:
    desk.history.is_full = True

    def balloon(uuid: str, kib: int) -> DomainEvent:
        return DomainEvent(trigger=Trigger.BALLOON, guest=uuid, uuid=uuid, detail=f"balloon {kib} KiB", heard_s=1.0)

    async with desk.writing():
        for round_ in range(2):
            desk.history_writer.hear(replace(EVENT, detail=str(round_)))
            for number in range(3 * MAX_WAITING_EVENTS):
                desk.history_writer.hear(balloon("loud", number + round_))
            desk.history_writer.hear(balloon("quiet", 5))
            await failed_again(desk)
        desk.history.is_full = False
    assert [(one.uuid, one.detail) for one in desk.history.kept_events] == [
        ("u", "0"),
        ("u", "1"),
        ("loud", f"balloon {3 * MAX_WAITING_EVENTS} KiB"),
        ("quiet", "balloon 5 KiB"),
    ]


async def test_the_chatter_of_many_guests_is_given_up_before_a_start(desk: Desk) -> None:
    async with desk.writing(write_s=NEVER_S):
        await until(lambda: desk.written)
        desk.history_writer.hear(EVENT)
        for number in range(MAX_WAITING_EVENTS + 50):
            desk.history_writer.hear(replace(EVENT, trigger=Trigger.BALLOON, uuid=str(number)))
    assert desk.history.kept_events[0].kind == "started"


async def test_a_hanging_disk_costs_one_thread_and_blocks_nobody_and_nothing_is_written_twice(desk: Desk) -> None:
    desk.history = history = HangingHistory()
    try:
        async with desk.writing(disk_limit_s=0.01):
            await until(lambda: desk.failed)
            threads = threading.active_count()
            for number in range(5):
                desk.history_writer.hear(replace(EVENT, uuid=str(number)))
                await asyncio.sleep(0.01)
            assert (history.tries, threading.active_count()) == (1, threads)
            with pytest.raises(VirtksmError, match="does not answer"):
                await desk.history_writer.samples(0)
            desk.history_writer._calls.limit_s = HANG_S
            history.released.set()
            await until(lambda: len(desk.history.kept_events) == 5)
            assert len(await desk.history_writer.events(0, 100)) == 5
    finally:
        history.released.set()
    assert "no answer within" in str(desk.failed[0])
    assert len(desk.failed) > 1, "as long as it hangs each minute has a failure, by which the alert goes"
    assert all("still waiting for an earlier call" in str(error) for error in desk.failed[1:])


async def test_what_is_not_written_yet_is_told_all_the_same(desk: Desk) -> None:
    async with desk.writing(write_s=NEVER_S):
        await until(lambda: desk.written)
        desk.history.add([], [GuestEvent(at_s=WALL_S, kind="stopped", domain="old", uuid="u")], [])
        desk.history_writer.hear(EVENT)
        desk.take()
        answer = await answer_history(desk.history_writer, {"op": "history", "seconds": 5000})
        told: Any = answer["history"]
        assert told["now_s"] == WALL_S + desk.clock.now_s
        assert [row[2] for row in told["events"]["rows"]] == ["old", "vm"]
        assert len(told["samples"]["rows"]) == 1
        assert "curves" not in told
        wanted = {"op": "history", "width_s": 10, "seconds": 5000}
        drawn: Any = (await answer_history(desk.history_writer, wanted))["history"]
        assert [len(piece) for piece in drawn["curves"]["saved_kib"]] == [1]
        decisions: Any = (await answer_decisions(desk.history_writer, {"op": "decisions"}))["decisions"]
        assert [parse_summary(line).at_s for line in decisions] == [told["now_s"]]
        assert await desk.history_writer.samples(told["now_s"] + 1) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seconds", value) for value in (0, True, "60", float("nan"), 10**400)),
        ("points", 1001),
        ("width_s", 0),
        ("last", 101),
    ],
)
async def test_a_question_out_of_bounds_is_refused(name: str, value: object) -> None:
    with pytest.raises(BadRequest, match=f"{name} must be a number from 1 to"):
        await (answer_decisions if name == "last" else answer_history)(HistoryWriter(), {name: value})
