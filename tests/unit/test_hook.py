"""The libvirt hook as libvirt runs it, under each shell that /bin/sh may be: it pokes or starts one pass, and is gone.

Every run carries a witness, the write end of a pipe under a number that a shell cannot close with one digit: its end
means that the hook and all it started are over, so that "nothing was started" is seen and not merely not yet seen.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.lab.hook import HOOK, FrozenListener, Listener, Record, install_hook, install_recorder, read_records
from virtksm.paths import RuntimePaths

HANG_S = 30.0
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
    ("guest", "", "", "-"), ("guest", "started now", "begin", "-"), ("guest", "STARTED", "begin", "-"),
    ("guest", "*", "begin", "-"), ("guest", "migrate"), ("guest",), ("started",), (),
]
# fmt: on
SHELLS = {"dash": ("/bin/dash", "dash"), "bash": ("/bin/bash", "bash"), "bash as sh": ("/bin/bash", "sh")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a run of the hook went."""

    pid: int
    status: int
    stdout: bytes
    stderr: bytes


class Place:
    """A folder with an installed copy of the hook, the recording one-shot, and the shell to run it with."""

    def __init__(self, root: Path, shell: str) -> None:
        self.executable, self.name = SHELLS[shell]
        self.hook = root / "hook"
        self.runtime = root / "run"
        self.fifo = self.runtime / "poke"
        self.virtksm = root / "virtksm"
        self.record = root / "record"
        self.hold = root / "hold"
        self.work = root / "work"
        for folder in (self.runtime, self.work):
            folder.mkdir()
        install_hook(self.hook, fifo=self.fifo, virtksm=self.virtksm)
        install_recorder(self.virtksm, record=self.record, hold=self.hold)
        self.ends, witness = os.pipe()
        self._witness = fcntl.fcntl(witness, fcntl.F_DUPFD_CLOEXEC, WITNESS)
        os.close(witness)

    def run(
        self,
        *arguments: str | bytes,
        stdin: int = subprocess.DEVNULL,
        before: str = "",
        inherit: tuple[int, ...] = (),
        wrapped_in: tuple[str, ...] = (),
    ) -> Ran:
        """Run the hook and wait for its own end; `before` is bash to execute in its process first."""
        script = f'{before}\nname=$1 program=$2; shift 2; exec -a "$name" "$program" "$@"'
        program = (*wrapped_in, "/bin/bash", "-c", script, "-", self.name, self.executable, str(self.hook))
        with subprocess.Popen(
            [*program, *arguments],
            stdin=stdin,
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
        return Ran(pid=process.pid, status=process.returncode, stdout=stdout, stderr=stderr)

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


def assert_well(ran: Ran) -> None:
    assert (ran.status, ran.stdout) == (0, b""), ran.stderr


@contextmanager
def open_place(root: Path, shell: str) -> Iterator[Place]:
    place = Place(root, shell)
    try:
        yield place
    finally:
        place.close()
        assert_ends(place.ends)
        os.close(place.ends)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(shell: str, tmp_path: Path) -> Iterator[Place]:
    with open_place(tmp_path, shell) as opened:
        yield opened


def put_dd(place: Place, body: str) -> None:
    """Let the hook find another `dd` first."""
    programs = place.hook.parent / "programs"
    programs.mkdir()
    (programs / "dd").write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (programs / "dd").chmod(0o755)
    install_hook(place.hook, fifo=place.fifo, virtksm=place.virtksm, search=f"{programs}:/usr/bin:/bin")


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
            assert_well(place.run("guest", operation, sub, "-"))
        assert listener.read_pokes() == [operation for operation, _ in ACTING]
    assert place.records() == []


def test_without_a_listener_each_starts_one_pass_whose_words_and_end_are_its_own(place: Place) -> None:
    ran = [place.run("guest", operation, sub, "-", before="export LC_ALL=C.UTF-8") for operation, sub in ACTING]
    assert [(one.status, one.stdout, one.stderr) for one in ran] == [(0, b"", b"")] * len(ACTING)
    records = place.records()  # which print on both and end with 3
    assert sorted(record.environment["VIRTKSM_HOOK_PID"] for record in records) == sorted(str(one.pid) for one in ran)
    for record in records:
        assert record.arguments == ["retune", "--direct", "--coalesce"]
        assert record.environment["LC_ALL"] == "C.UTF-8", "the host's language"
        assert record.session == record.pid


def test_any_other_operation_does_nothing(place: Place) -> None:
    with Listener(place.fifo) as listener:
        for arguments in LEAVING:
            assert_well(place.run(*arguments))
        assert listener.read_pokes() == []
    for arguments in LEAVING:
        assert_well(place.run(*arguments))
    assert place.records() == []


def test_a_pass_runs_on_when_the_hook_is_over_and_holds_nothing_inherited(place: Place) -> None:
    place.hold.touch()
    reading, writing = os.pipe()
    inherited = fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, INHERITED)
    os.close(writing)
    everywhere = " ".join(f"{number}>&{inherited}" for number in range(3, 10))
    ran = place.run("guest", "started", "begin", before=f"exec {everywhere} {inherited}>&-", inherit=(inherited,))
    os.close(inherited)
    assert_well(ran)
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
        assert_well(place.run("guest", "started", "begin", before=before, wrapped_in=wrapped_in))
        assert listener.read_pokes() == ["started"]
    assert_well(place.run("guest", "started", "begin", before=before, wrapped_in=wrapped_in))
    (record,) = place.records()
    assert {number: record.descriptors[number] for number in range(3)} == dict.fromkeys(range(3), "/dev/null")


def test_a_stopped_listener_finds_the_poke_later_and_one_with_a_full_fifo_blocks_nothing(place: Place) -> None:
    with FrozenListener(place.fifo, full=False), Listener(place.fifo) as other:
        assert_well(place.run("guest", "started", "begin"))
        assert other.read_pokes() == ["started"]
        filled = other.fill()
        assert_well(place.run("guest", "started", "begin"))
        assert other.empty() == filled
    assert place.records() == []


def test_whatever_is_in_the_place_of_a_fifo_with_a_reader_stays_as_it_is_and_a_pass_is_started(place: Place) -> None:
    elsewhere = place.runtime / "elsewhere"

    def start() -> None:
        assert_well(place.run("guest", "started", "begin"))

    start()
    assert list(place.runtime.iterdir()) == [], "it makes none"
    place.fifo.write_text("kept", encoding="ascii")
    start()
    assert place.fifo.read_text(encoding="ascii") == "kept"
    place.fifo.unlink()
    os.mkfifo(place.fifo)
    start()
    place.fifo.unlink()
    place.fifo.mkdir()
    start()
    place.fifo.rmdir()
    place.fifo.symlink_to(elsewhere)
    with Listener(elsewhere) as listener:
        start()
        assert listener.read_pokes() == [], "no link is followed"
    elsewhere.unlink()
    place.fifo.unlink()
    place.runtime.rmdir()
    start()
    assert not place.runtime.exists()
    assert len(place.records()) == 6


@pytest.mark.parametrize("with_fifo", [True, False], ids=["with FIFO", "without FIFO"])
def test_a_read_only_folder_does_no_harm(place: Place, with_fifo: bool) -> None:
    make_fifo = f"mkfifo {place.fifo}" if with_fifo else "true"
    before = f"mount -t tmpfs none {place.runtime} && {make_fifo} && mount -o remount,ro {place.runtime} || exit 9"
    own_mounts = ("unshare", "--mount", "--map-root-user")
    assert_well(place.run("guest", "started", "begin", before=before, wrapped_in=own_mounts))
    assert len(place.records()) == 1


@pytest.mark.parametrize("kind", ["missing", "not executable", "a folder", "not a program"])
def test_a_virtksm_that_cannot_run_does_no_harm(place: Place, kind: str) -> None:
    place.virtksm.unlink()
    if kind == "not executable":
        place.virtksm.touch(0o644)
    elif kind == "a folder":
        place.virtksm.mkdir()
    elif kind == "not a program":
        place.virtksm.write_bytes(b"\x7fELF, but no more of it")
        place.virtksm.chmod(0o755)
    ran = place.run("guest", "started", "begin")
    assert (ran.status, ran.stdout, ran.stderr) == (0, b"", b"")
    assert place.records() == []


@pytest.mark.parametrize(
    ("body", "started"),
    [
        ("echo \"dd: error writing 'poke': Resource temporarily unavailable\" >&2; exit 1", 0),
        ('echo "dd: IO error: Would block" >&2; exit 1', 0),  # uutils, FIFO full
        ("echo \"dd: failed to open 'poke': No such device or address\" >&2; exit 1", 1),
        ("kill -PIPE $$", 1),  # the listener ended between open and write
        ("echo words; echo words >&2; exit 0", 0),
        ("echo words; echo words >&2; exit 5", 1),
    ],
)
def test_whether_a_pass_is_needed_is_seen_from_what_dd_says(place: Place, body: str, started: int) -> None:
    put_dd(place, body)
    with Listener(place.fifo):
        ran = place.run("guest", "started", "begin")
    assert (ran.status, ran.stdout, ran.stderr) == (0, b"", b"")
    assert len(place.records()) == started


def test_under_systemd_it_pokes_and_starts_nothing(place: Place) -> None:
    install_hook(place.hook, fifo=place.fifo, virtksm=place.virtksm, systemd=place.work)
    assert_well(place.run("guest", "started", "begin"))
    with Listener(place.fifo) as listener:
        assert_well(place.run("guest", "started", "begin"))
        assert listener.read_pokes() == ["started"]
    assert place.records() == []


def test_a_path_without_programs_does_no_harm(place: Place) -> None:
    install_hook(place.hook, fifo=place.fifo, virtksm=place.virtksm, search="/nonexistent")
    with Listener(place.fifo) as listener:
        assert_well(place.run("guest", "started", "begin"))
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


NAMES = st.sampled_from(["", "--", "-c", "a\nstarted\n", "$HOME", "a;b", "$(touch owned)", "`touch owned`"]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60
)
WORDS = st.binary(max_size=60).map(lambda word: word.replace(b"\0", b""))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, acting=st.sampled_from(ACTING), extra=WORDS)
@example(name="`touch owned`; touch owned", acting=ACTING[4], extra=b"$(touch owned)")
@example(name="x" * 10240, acting=ACTING[0], extra=b"-" * 10240)
def test_a_guests_name_is_data(place: Place, name: str, acting: tuple[str, str], extra: bytes) -> None:
    with Listener(place.fifo) as listener:
        assert_well(place.run(name, acting[0], acting[1], extra))
        assert listener.read_pokes() == [acting[0]]
    assert list(place.work.iterdir()) == []
    assert not place.record.exists()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=5))
@example(words=[b"guest", b"$(touch owned)", b"`touch owned`"])
@example(words=[b"guest", b"started\nrelease", b"begin"])
@example(words=[b"guest", b"migrate", b"begin ] || touch owned #"])
def test_strange_operations_do_nothing(place: Place, words: list[bytes]) -> None:
    with Listener(place.fifo) as listener:
        assert_well(place.run(*words))
        assert listener.read_pokes() == []
    assert list(place.work.iterdir()) == []
    assert not place.record.exists()
