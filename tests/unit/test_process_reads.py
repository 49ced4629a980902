"""Reads of processes with a limit: what hangs is left out, named, and costs its limit once."""

import threading

import pytest

from tests.fake_proc import FakeProc
from virtksm.host.proc_files import AT_ONCE, MAX_STUCK, LimitedReads, read_process


def read(pid: int) -> bytes:
    return read_process(pid, "cmdline")


@pytest.fixture
def proc(proc: FakeProc) -> FakeProc:
    for pid in range(10, 40):
        proc.process(pid, "x", arguments=(str(pid),))
    return proc


def troubles(reads: LimitedReads) -> tuple[str, ...]:
    return reads.trouble


def waiting() -> int:
    return sum(thread.name.startswith("call-/proc") for thread in threading.enumerate())


@pytest.mark.usefixtures("proc")
def test_all_are_read_in_one_call() -> None:
    assert LimitedReads().read([10, 11], read) == {10: b"10\0", 11: b"11\0"}
    assert LimitedReads(0.0).read([], read) == {}


def test_behind_what_hangs_the_rest_is_read_as_often_as_the_caller_waits(proc: FakeProc) -> None:
    for pid in (11, 13):
        proc.hang(pid, "cmdline")
    reads = LimitedReads(wait=proc.wait)
    assert list(reads.read([10, 11, 12, 13, 14], read, max_hangs=5)) == [10, 12, 14]
    assert len(reads.trouble) == 2
    assert list(LimitedReads(wait=proc.wait).read([10, 11, 12, 13, 14], read)) == [10]


def test_what_hangs_is_told_in_the_same_words_until_it_answers_and_waited_for_once(proc: FakeProc) -> None:
    proc.write(11, "comm", "e\x1bvil\n")
    proc.hang(11, "cmdline")
    reads = LimitedReads(wait=proc.wait)
    before = waiting()
    reads.read([10, 11], read)
    (trouble,) = reads.trouble
    assert trouble.startswith("process 11 (e\\x1bvil) ")
    proc.write(11, "comm", "other\n")
    for _ in range(5):
        assert list(reads.read([10, 11, 12], read)) == [10, 12]
    assert reads.trouble == (trouble,)
    assert waiting() == before + 1

    proc.release()
    while troubles(reads):
        pass
    proc.process(11, "x", arguments=("11",))
    assert list(reads.read([10, 11], read)) == [10, 11]


def test_however_many_hang_few_threads_wait(proc: FakeProc) -> None:
    for pid in range(10, 10 + MAX_STUCK + 5):
        proc.hang(pid, "cmdline")
    reads = LimitedReads(wait=proc.wait)
    before = waiting()
    for _ in range(MAX_STUCK + 5):
        reads.read(range(10, 40), read)
    assert waiting() == before + MAX_STUCK
    assert len(reads.trouble) == MAX_STUCK


@pytest.mark.usefixtures("proc")
def test_many_are_read_in_several_calls() -> None:
    many = range(1000, 1000 + 2 * AT_ONCE + 1)
    assert LimitedReads().read(many, lambda pid: pid) == {pid: pid for pid in many}
