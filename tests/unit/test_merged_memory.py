"""What is merged of guests is read where a pass wants it, each guest once, and a user without the right is told."""

import threading
from collections.abc import Iterator

from tests.fakes import FakeClock, FakeFacts
from tests.lab.hang import HANG_S
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.merged_memory import MAX_SHARE, MergedMemory
from virtksm.errors import SensingFailed, VirtksmError
from virtksm.host.local_facts import ProcFacts, read_merged
from virtksm.host.proc_files import parse_rollup_kib
from virtksm.model.snapshot import Guest, MergedReading
from virtksm.values import replace

ONE, TWO = (Guest(uuid=name, name=name, domain_id=1) for name in ("one", "two"))
READING = MergedReading(taken_s=1.0, counted_kib=100, mapped_kib=40)


class Bench:
    """The agent's part over fake facts, and what it reports; `paused_s` is how long it has rested."""

    def __init__(self) -> None:
        self.facts, self.reported = FakeFacts(readings={"one": READING, "two": READING}), list[VirtksmError | None]()
        self.clock, self.paused_s = FakeClock(), list[float]()

        async def pause(seconds: float) -> None:
            self.paused_s.append(seconds)

        self.part = MergedMemory({}, self.reported.append, clock=self.clock, pause=pause)
        self.part.connect(self.facts)
        self.reported.clear()


async def test_each_pass_that_wants_it_has_every_guest_that_can_merge_read_once() -> None:
    bench = Bench()
    bench.part.see((ONE, TWO), is_wanted=False)
    assert not bench.part.seen.is_set()
    bench.part.see((ONE, replace(TWO, can_merge=False)), is_wanted=True)
    await bench.part.read_when_wanted()
    assert (bench.part.merged, bench.reported) == ({ONE.key: READING}, [None])
    assert not bench.part.seen.is_set()
    bench.part.see((ONE, TWO), is_wanted=True)
    await bench.part.read_when_wanted()
    assert bench.part.merged == {ONE.key: READING, TWO.key: READING}
    bench.part.see((TWO,), is_wanted=False)
    assert bench.part.merged == {TWO.key: READING}, "it has ended"


async def test_it_takes_a_hundredth_of_a_core_at_most() -> None:
    bench = Bench()

    class Slow(FakeFacts):
        def merged(self, running: tuple[Guest, ...]) -> Iterator[tuple[str, MergedReading]]:
            for guest in running:
                bench.clock.now_s += 2.0
                yield guest.key, READING

    bench.part.facts = Slow()
    bench.part.see((ONE, TWO), is_wanted=True)
    await bench.part.read_when_wanted()
    assert bench.paused_s == [4.0 / MAX_SHARE]


async def test_once_ksmd_scans_again_no_further_guest_is_read() -> None:
    bench = Bench()

    class Scanned(FakeFacts):
        def merged(self, running: tuple[Guest, ...]) -> Iterator[tuple[str, MergedReading]]:
            bench.part.see((ONE, TWO), is_wanted=False)
            yield running[0].key, READING
            raise AssertionError("asked for another")

    bench.part.facts = Scanned()
    bench.part.see((ONE, TWO), is_wanted=True)
    await bench.part.read_when_wanted()
    assert (bench.part.merged, bench.reported) == ({ONE.key: READING}, [None])


async def test_a_user_without_the_right_and_a_host_elsewhere_know_of_no_guest_and_say_why() -> None:
    bench = Bench()
    bench.facts.readings = {}
    bench.part.see((ONE,), is_wanted=True)
    await bench.part.read_when_wanted()
    assert bench.part.failure is not None
    assert "CAP_SYS_PTRACE" in str(bench.part.failure)
    assert bench.reported == [bench.part.failure]
    bench.part.connect(None)
    assert bench.reported[-1] is None
    bench.part.see((ONE,), is_wanted=True)
    await bench.part.read_when_wanted()
    assert bench.part.merged == {}


async def test_a_guest_that_does_not_answer_is_given_up_and_told() -> None:
    bench, hang = Bench(), threading.Event()

    class Hanging(FakeFacts):
        def merged(self, running: tuple[Guest, ...]) -> Iterator[tuple[str, MergedReading]]:
            assert hang.wait(HANG_S)
            yield running[0].key, READING

    bench.part.facts, bench.part.calls = Hanging(), BlockingCalls(SensingFailed, 0.0)
    bench.part.see((ONE,), is_wanted=True)
    try:
        await bench.part.read_when_wanted()
    finally:
        hang.set()
    assert [str(error) for error in bench.reported] == ["read what is merged: no answer within 0 s"]


def test_the_kernels_files_are_taken_whole_or_not_at_all() -> None:
    text = "00400000-7ffc rollup\nRss:     2048 kB\nKSM:      1200 kB\nLocked:   0 kB\n"
    assert parse_rollup_kib(text) == 1200
    assert parse_rollup_kib("Rss:  2048 kB\n") is None
    assert parse_rollup_kib("KSM:  many kB\n") is None
    assert read_merged(2**22 + 1) is None, "no process has that number"
    assert list(ProcFacts(FakeClock()).merged((ONE,))) == []
