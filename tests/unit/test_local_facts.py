"""Facts from /proc and /sys: processes told apart by their UUID, kernel files by what they hold."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.fakes import FakeClock
from virtksm.adapters.local_facts import FORGET_S, YOUNG_S, ProcFacts, parse_choice, parse_meminfo, parse_vmstat
from virtksm.model import Guest, HostMemory


class Qemus:
    """Processes that look like QEMU on their command line."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.qemu = folder / "qemu-system-x86_64"
        self.qemu.symlink_to("/bin/sh")
        self._stack = stack

    def start(self, uuid: str) -> subprocess.Popen[bytes]:
        return self._start([str(self.qemu), "-c", "echo up; read line", "sh", "-uuid", uuid])

    def start_forked(self, uuid: str) -> subprocess.Popen[bytes]:
        """Start what becomes QEMU only when told by a line, as libvirt forks before it executes QEMU."""
        command = 'echo up; read line; exec "$0" -c "read line" sh -uuid "$1"'
        return self._start(["/bin/sh", "-c", command, str(self.qemu), uuid])

    def execute(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        command_line = Path(f"/proc/{process.pid}/cmdline")
        while not command_line.read_bytes().startswith(bytes(self.qemu)):
            pass

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        process = self._stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
        self._stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()  # it is up, with all its libraries
        return process


@pytest.fixture
def qemus(tmp_path: Path) -> Iterator[Qemus]:
    with ExitStack() as stack:
        yield Qemus(tmp_path, stack)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def facts(clock: FakeClock) -> ProcFacts:
    return ProcFacts(clock)


def guest(uuid: str, domain_id: int = 1) -> Guest:
    return Guest(uuid=uuid, name="guest", domain_id=domain_id)


def rss_kib(facts: ProcFacts, running: Guest) -> int | None:
    return facts.guests((running,))[0].rss_kib


def test_a_guests_memory_is_that_of_the_process_with_its_uuid(qemus: Qemus, facts: ProcFacts) -> None:
    uuid = str(uuid4())
    qemus.start(str(uuid4()))
    process = qemus.start(uuid)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    found = rss_kib(facts, guest(uuid))
    assert found is not None
    assert abs(found - int(status["VmRSS"].split()[0])) <= 512


def test_an_ended_process_is_unread_and_its_successor_found(qemus: Qemus, facts: ProcFacts) -> None:
    uuid = str(uuid4())
    first = qemus.start(uuid)
    assert rss_kib(facts, guest(uuid))
    first.kill()
    first.wait()
    assert rss_kib(facts, guest(uuid)) is None
    qemus.start(uuid)
    assert rss_kib(facts, guest(uuid, domain_id=2))


def test_a_process_that_executes_qemu_a_moment_later_is_found(qemus: Qemus, facts: ProcFacts, clock: FakeClock) -> None:
    uuid = str(uuid4())
    process = qemus.start_forked(uuid)
    assert rss_kib(facts, guest(uuid)) is None
    qemus.execute(process)
    clock.now_s += YOUNG_S - 1
    assert rss_kib(facts, guest(uuid))


def test_a_process_long_known_as_another_is_not_looked_at_again_until_its_number_may_be_anothers(
    qemus: Qemus, facts: ProcFacts, clock: FakeClock
) -> None:
    uuid = str(uuid4())
    process = qemus.start_forked(uuid)
    assert rss_kib(facts, guest(uuid)) is None
    qemus.execute(process)
    clock.now_s += YOUNG_S + 1
    assert rss_kib(facts, guest(uuid)) is None
    clock.now_s += FORGET_S
    assert rss_kib(facts, guest(uuid))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[none] scan-time\n", "none"),
        ("none [scan-time]\n", "scan-time"),
        ("none\n", "none"),
        ("", ""),
        ("[", "["),
    ],
)
def test_the_chosen_word_is_the_one_in_brackets(text: str, choice: str) -> None:
    assert parse_choice(text) == choice


@pytest.mark.parametrize(("text", "run"), [("1\n", 1), ("0\n", 0), ("2", 2), ("", None), ("yes\n", None), ("-1", None)])
def test_the_switch_is_a_number_or_unknown(tmp_path: Path, text: str, run: int | None) -> None:
    (tmp_path / "run").write_text(text, encoding="ascii")
    assert ProcFacts(FakeClock(), sys_ksm=str(tmp_path)).ksm_counter("run") == run


@pytest.mark.parametrize(
    ("text", "writes"), [("xcow_ksm 1\ncow_ksm 2\ncow_ksm_3 3\n", 2), ("cow_ksm_3 3\n", None), ("cow_ksm -1\n", None)]
)
def test_a_counter_is_found_by_its_whole_name(text: str, writes: int | None) -> None:
    assert parse_vmstat(text, "cow_ksm") == writes


def test_older_kernels_and_kernels_without_ksm_have_no_such_files(tmp_path: Path) -> None:
    facts = ProcFacts(FakeClock(), sys_ksm=str(tmp_path / "none"))
    assert (facts.ksm_counter("run"), facts.advisor_mode()) == (None, None)


def test_what_is_not_ascii_is_survived(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"\xff\xfe1")
    (tmp_path / "advisor_mode").write_bytes(b"none [\xff]")
    facts = ProcFacts(FakeClock(), sys_ksm=str(tmp_path))
    assert facts.ksm_counter("run") is None
    assert facts.advisor_mode() not in (None, "none")


def test_meminfo_is_read_as_the_kernel_writes_it() -> None:
    text = "MemTotal:       16000 kB\nMemFree:         4000 kB\nMemAvailable: 9000 kB\nBuffers: 10 kB\nCached: 20 kB\n"
    assert parse_meminfo(text) == HostMemory(
        total_kib=16000, free_kib=4000, buffers_kib=10, cached_kib=20, available_kib=9000
    )
    assert parse_meminfo(text.replace("MemAvailable", "Other")).available_kib is None


@pytest.mark.parametrize(
    "text", ["", "MemTotal: 1 kB\n", "MemTotal: x\nMemFree: 1\nBuffers: 1\nCached: 1\n", "a\0b:\n"]
)
def test_a_meminfo_that_tells_too_little_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"missing|invalid"):
        parse_meminfo(text)
