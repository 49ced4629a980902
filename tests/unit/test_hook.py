"""The libvirt hook as libvirt runs it, under each shell that /bin/sh may be: it pokes or starts one pass, and is gone.

Every run carries a witness, the write end of a pipe under a number that a shell cannot close with one digit: its end
means that the hook and all it started are over, so that "nothing was started" is seen and not merely not yet seen.
"""

import fcntl
import os
import resource
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.lab.hang import HANG_S
from tests.lab.hook import HOOK, Listener, Record, install_hook, install_recorder, read_records
from virtksm.paths import RuntimePaths

WITNESS = 51
INHERITED = 50
NOBODY = 65534
# fmt: off
ACTING = [
    ("started", "begin"), ("release", "end"), ("reconnect", "begin"), ("attach", "begin"), ("migrate", "begin"),
    ("restore", "begin"),
]
LEAVING = [
    ("guest", "prepare", "begin", "-"), ("guest", "migrate", "end", "-"), ("guest", "restore", "", "-"),
    ("guest", "started now", "begin", "-"), ("guest", "STARTED", "begin", "-"), ("guest", "migrate"), ("guest",), (),
]
# fmt: on
SHELLS = {"dash": ("/bin/dash", "dash"), "bash as sh": ("/bin/bash", "sh")}
EVENT = ("guest", "started", "begin", "-")


class Place:
    """A folder with an installed copy of the hook, the recording one-shot, and the shell to run it with."""

    def __init__(self, root: Path, shell: str) -> None:
        self.executable, self.name = SHELLS[shell]
        self.hook, self.virtksm = root / "hook", root / "virtksm"
        self.runtime, self.work, self.programs = root / "run", root / "work", root / "programs"
        self.fifo = self.runtime / "poke"
        self.record, self.hold = root / "record", root / "hold"
        for folder in (self.runtime, self.work, self.programs):
            folder.mkdir()
        self.install()
        install_recorder(self.virtksm, record=self.record, hold=self.hold)
        self.ends, witness = os.pipe()
        self._witness = fcntl.fcntl(witness, fcntl.F_DUPFD_CLOEXEC, WITNESS)
        os.close(witness)

    def install(self, *, search: str | None = None, systemd: Path | None = None) -> None:
        install_hook(self.hook, fifo=self.fifo, virtksm=self.virtksm, search=search, systemd=systemd)

    def run(
        self,
        *arguments: str | bytes,
        before: str = "",
        inherit: tuple[int, ...] = (),
        wrapped_in: tuple[str, ...] = (),
        says: bool = False,
    ) -> int:
        """Run the hook, wait for its own end, and return its pid; `before` is bash to execute in its process first.

        It must succeed in silence; with `says` it may write to stderr.
        """
        script = f'{before}\nname=$1 program=$2; shift 2; exec -a "$name" "$program" "$@"'
        program = (*wrapped_in, "/bin/bash", "-c", script, "-", self.name, self.executable, str(self.hook))
        with subprocess.Popen(
            [*program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.work,
            pass_fds=(self._witness, *inherit),
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=HANG_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert (process.returncode, stdout) == (0, b""), stderr
        assert says or stderr == b""
        return process.pid

    def records(self) -> list[Record]:
        """Wait until everything that the runs started is over, and tell which one-shots there were."""
        self.close()
        assert_ends(self.ends)
        return read_records(self.record)

    def wait_record(self) -> Record:
        """Wait until the one-shot has recorded itself; it may still run."""
        while not read_records(self.record):
            assert not select.select([self.ends], [], [], 0.01)[0], "everything ended, and no one-shot was recorded"
        return read_records(self.record)[0]

    def close(self) -> None:
        self.hold.unlink(missing_ok=True)
        if self._witness >= 0:
            os.close(self._witness)
            self._witness = -1


def assert_ends(pipe: int) -> None:
    """Wait until nobody holds the pipe's other end; the limit is a guard against a hang."""
    ended, _, _ = select.select([pipe], [], [], HANG_S)
    assert ended, "somebody keeps an inherited descriptor open"
    assert os.read(pipe, 1) == b""


@pytest.fixture(params=SHELLS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path, request.param)
    try:
        yield place
    finally:
        place.close()
        assert_ends(place.ends)
        os.close(place.ends)


def test_the_shipped_hook_is_executable_and_names_the_agents_fifo() -> None:
    lines = HOOK.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/sh"
    assert os.access(HOOK, os.X_OK)
    assert f"FIFO={RuntimePaths().poke_fifo}" in lines
    assert "VIRTKSM=/usr/bin/virtksm" in lines
    assert "SYSTEMD=/run/systemd/system" in lines  # sd_booted(3)


def test_a_listener_is_told_every_operation_of_a_burst_and_nothing_is_started(place: Place) -> None:
    with Listener(place.fifo) as listener:
        for operation, sub in ACTING:
            place.run("guest", operation, sub, "-")
        assert listener.read_pokes() == [operation for operation, _ in ACTING]
    assert place.records() == []


def test_without_a_listener_each_starts_one_pass_whose_words_and_end_are_its_own(place: Place) -> None:
    pids = [place.run("guest", operation, sub, "-", before="export LC_ALL=C.UTF-8") for operation, sub in ACTING]
    records = place.records()  # which print on both and end with 3
    assert sorted(record.environment["VIRTKSM_HOOK_PID"] for record in records) == sorted(map(str, pids))
    for record in records:
        assert record.arguments == ["retune", "--direct", "--coalesce"]
        assert record.environment["LC_ALL"] == "C.UTF-8", "the host's language"
        assert record.session == record.pid


def test_any_other_operation_does_nothing(place: Place) -> None:
    for arguments in LEAVING:
        place.run(*arguments)
    assert place.records() == []


def test_a_pass_runs_on_when_the_hook_is_over_and_holds_nothing_inherited(place: Place) -> None:
    place.hold.touch()
    reading, writing = os.pipe()
    inherited = fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, INHERITED)
    os.close(writing)
    everywhere = " ".join(f"{number}>&{inherited}" for number in range(3, 10))
    place.run(*EVENT, before=f"exec {everywhere} {inherited}>&-", inherit=(inherited,))
    os.close(inherited)
    assert_ends(reading)
    os.close(reading)

    running = place.wait_record()
    os.kill(running.pid, 0)  # raises if it is over
    (record,) = place.records()
    standard = {number: to for number, to in record.descriptors.items() if number < 10}
    assert standard == dict.fromkeys(range(3), "/dev/null")


@pytest.mark.parametrize(("before", "wrapped_in"), [("exec <&- >&- 2>&-", ()), ("", ("/usr/bin/env", "-i"))])
def test_closed_standard_descriptors_and_an_empty_environment_do_no_harm(
    place: Place, before: str, wrapped_in: tuple[str, ...]
) -> None:
    with Listener(place.fifo) as listener:
        place.run(*EVENT, before=before, wrapped_in=wrapped_in)
        assert listener.read_pokes() == ["started"]
    place.run(*EVENT, before=before, wrapped_in=wrapped_in)
    (record,) = place.records()
    assert {number: record.descriptors[number] for number in range(3)} == dict.fromkeys(range(3), "/dev/null")


def test_a_listener_that_does_not_read_finds_the_poke_later_and_a_full_fifo_blocks_nothing(place: Place) -> None:
    with Listener(place.fifo) as listener:
        place.run(*EVENT)
        assert listener.read_pokes() == ["started"]
        filled = listener.fill()
        place.run(*EVENT)
        assert listener.empty() == filled
    assert place.records() == []


def test_whatever_is_in_the_place_of_a_fifo_with_a_reader_stays_as_it_is_and_a_pass_is_started(place: Place) -> None:
    elsewhere = place.runtime / "elsewhere"
    place.run(*EVENT)
    assert list(place.runtime.iterdir()) == [], "it makes none"
    place.fifo.write_text("kept", encoding="ascii")
    place.run(*EVENT)
    assert place.fifo.read_text(encoding="ascii") == "kept"
    place.fifo.unlink()
    os.mkfifo(place.fifo)
    place.run(*EVENT)
    place.fifo.unlink()
    place.fifo.symlink_to(elsewhere)
    with Listener(elsewhere) as listener:
        place.run(*EVENT)
        assert listener.read_pokes() == [], "no link is followed"
    elsewhere.unlink()
    place.fifo.unlink()
    place.runtime.rmdir()
    place.run(*EVENT)
    assert not place.runtime.exists()
    assert len(place.records()) == 5


def test_a_virtksm_that_cannot_run_does_no_harm(place: Place) -> None:
    place.virtksm.unlink()
    place.run(*EVENT)
    place.virtksm.touch(0o644)
    place.run(*EVENT)
    place.virtksm.write_bytes(b"\x7fELF, but no more of it")
    place.virtksm.chmod(0o755)
    place.run(*EVENT)
    place.virtksm.unlink()
    place.virtksm.mkdir()
    place.run(*EVENT)
    assert place.records() == []


def test_whether_a_pass_is_needed_is_seen_from_what_dd_says(place: Place) -> None:
    dd = place.programs / "dd"
    place.install(search=f"{place.programs}:/usr/bin:/bin")

    needed = {
        "echo \"dd: error writing 'poke': Resource temporarily unavailable\" >&2; exit 1": False,
        'echo "dd: IO error: Would block" >&2; exit 1': False,  # uutils, FIFO full
        "echo words; echo words >&2; exit 0": False,
        "echo \"dd: failed to open 'poke': No such device or address\" >&2; exit 1": True,
        "kill -PIPE $$": True,  # the listener ended between open and write
        "echo words; echo words >&2; exit 5": True,
    }
    pids = []
    for body in needed:
        dd.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        dd.chmod(0o755)
        with Listener(place.fifo):
            pids.append(str(place.run(*EVENT)))
    starters = {record.environment["VIRTKSM_HOOK_PID"] for record in place.records()}
    assert [pid in starters for pid in pids] == list(needed.values())


def test_under_systemd_it_pokes_and_starts_nothing(place: Place) -> None:
    place.install(systemd=place.work)
    place.run(*EVENT)
    with Listener(place.fifo) as listener:
        place.run(*EVENT)
        assert listener.read_pokes() == ["started"]
    assert place.records() == []


def test_a_path_without_programs_does_no_harm(place: Place) -> None:
    place.install(search="/nonexistent")
    with Listener(place.fifo) as listener:
        place.run(*EVENT, says=True)
        assert listener.read_pokes() == []
    assert place.records() == []


@pytest.mark.parametrize("with_fifo", [True, False], ids=["with FIFO", "without FIFO"])
def test_a_host_that_cannot_fork_gets_a_success(with_fifo: bool) -> None:
    # dash alone: bash does the same, but tries again for 15 s first. In a folder that everybody may enter, because the
    # limit does not bind root.
    with tempfile.TemporaryDirectory(prefix="vkhook", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        hook, fifo = Path(folder) / "hook", Path(folder) / "poke"
        install_hook(hook, fifo=fifo, virtksm=Path("/bin/true"))
        if with_fifo:
            os.mkfifo(fifo, 0o666)
        result = subprocess.run(
            ["/bin/dash", str(hook), "guest", "reconnect", "begin", "-"],
            capture_output=True,
            timeout=HANG_S,
            check=False,
            user=NOBODY if os.geteuid() == 0 else None,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)),
        )
    assert (result.returncode, result.stdout) == (0, b"")
    assert b"fork" in result.stderr, "the limit did not bind"


WORDS = st.binary(max_size=60).map(lambda word: word.replace(b"\0", b""))
HOSTILE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HOSTILE
@given(name=WORDS, acting=st.sampled_from(ACTING), extra=WORDS)
@example(name=b"`touch owned`; touch owned", acting=ACTING[4], extra=b"$(touch owned)")
@example(name=b"a\nstarted\n", acting=ACTING[1], extra=b"-c")
@example(name=b"x" * 10240, acting=ACTING[0], extra=b"-" * 10240)
def test_a_guests_name_is_data(place: Place, name: bytes, acting: tuple[str, str], extra: bytes) -> None:
    with Listener(place.fifo) as listener:
        place.run(name, acting[0], acting[1], extra)
        assert listener.read_pokes() == [acting[0]]
    assert list(place.work.iterdir()) == []
    assert not place.record.exists()


@HOSTILE
@given(words=st.lists(WORDS, max_size=5))
@example(words=[b"guest", b"$(touch owned)", b"`touch owned`"])
@example(words=[b"guest", b"started\nrelease", b"begin"])
@example(words=[b"guest", b"migrate", b"begin ] || touch owned #"])
def test_strange_operations_do_nothing(place: Place, words: list[bytes]) -> None:
    with Listener(place.fifo) as listener:
        place.run(*words)
        assert listener.read_pokes() == []
    assert list(place.work.iterdir()) == []
    assert not place.record.exists()
