"""Root's commands against an agent that means harm: whatever it answers or plants, a line, an exit code, and an end.

Nothing is run or followed, nothing is written beyond the command's own, no escape code reaches the terminal. What such
an agent says of the host may be false, and is shown.
"""

import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.lab.forked import run_forked
from tests.lab.hang import HANG_S
from tests.lab.hostile_agent import (
    FORMULA,
    NOBODY,
    PLANTED_HISTORIES,
    TEXT,
    UNREADABLE,
    HostileAgent,
    Json,
    answer_to,
    as_line,
    plant_history,
    say_always,
    wrong_answers,
)
from tests.lab.ksm import wait_until
from tests.lab.pseudo_terminal import PseudoTerminal
from virtksm.cli import ask_agent, pause, retune
from virtksm.cli.main import main
from virtksm.errors import ExitCode

pytestmark = pytest.mark.real

PROJECT = Path(__file__).parents[2]
LIMITS = ((resource.RLIMIT_FSIZE, 64 << 20), (resource.RLIMIT_AS, 2 << 30), (resource.RLIMIT_CORE, 0))
URI = "test:///default"
PICTURED = {f"history.events.rows.0.{column} {FORMULA!r}" for column in range(5)}
ASKING = {
    "status": ("status", "history"),
    "status --json": ("status", "history"),
    "explain": ("decisions",),
    "explain --json": ("decisions",),
    "trace plot -o {0}/p.svg": ("history",),
    "trace record {0}/t.jsonl --force --for 0s": ("trace",),
    "wait --timeout 0": ("status",),
    "retune": ("retune",),
    "retune --json": ("retune",),
    "resume": ("resume",),
    "pause": ("pause",),
}
"""The commands that ask the agent, and what they ask."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands that run here wait for an answer no longer than need be, where none may come."""
    monkeypatch.setattr(ask_agent, "ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(retune, "ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(pause, "SLACK_S", 0.5)


@pytest.fixture
def folder() -> Iterator[Path]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with tempfile.TemporaryDirectory(prefix="vb", dir="/tmp") as name:
        made = Path(name)
        (made / "virtksm.toml").write_text("call_timeout_s = 1\n")
        for part in ("run", "lib"):
            (made / part).mkdir()
        yield made
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture
def agent(folder: Path) -> Iterator[HostileAgent]:
    with HostileAgent(folder / "run") as lent:
        yield lent


def arguments(folder: Path, command: str) -> list[str]:
    ours = ["--config", f"{folder}/virtksm.toml", "--runtime-dir", f"{folder}/run", "--state-dir", f"{folder}/lib"]
    there = [] if command.startswith("trace record") else ["--connect", URI]
    return [*ours, *command.format(folder).split(), *there]


def is_harmless(text: str) -> bool:
    return all(line.isprintable() and not line.startswith("FAKE") for line in text.split("\n"))


def run_here(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Run a command in this process: what it raises is a traceback of the real one."""
    code = main(arguments(folder, command))
    said = capsys.readouterr()
    assert code in list(map(int, ExitCode)), said
    assert is_harmless(said.out + said.err), said
    if code == ExitCode.FAILED and not command.startswith(("status", "doctor")):
        assert re.fullmatch(r"virtksm: error: .*\n(hint: .*\n)?", said.err)
    return code


def run_apart(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root does, with less memory and disk than a planted file could take."""
    done = run_forked(arguments(folder, command), HANG_S, limits=LIMITS)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert is_harmless(said), said
    assert done.returncode in list(map(int, ExitCode)), done
    return done


def run_all_apart(folder: Path, *commands: str) -> None:
    """Run them beside each other, as some wait for their limits."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(run_apart, folder), commands))


def say_wrong(op: str, said: bytes, request: Json) -> list[bytes]:
    return [said if request["op"] == op else as_line(answer_to(request["op"]))]


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("command", ASKING)
def test_an_honest_answer_is_understood(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused = dict.fromkeys(("retune", "resume", "pause"), ExitCode.REFUSED)
    expected = {**refused, "trace record": ExitCode.FAILED, "wait": ExitCode.TIMED_OUT}
    codes = [code for name, code in expected.items() if command.startswith(name)] or [ExitCode.DONE]
    assert [run_here(folder, command, capsys)] == codes


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", [one for one in ASKING if one != "resume" and not one.endswith("--json")])
def test_each_field_may_be_anything(
    folder: Path, agent: HostileAgent, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for op in ASKING[command]:
        cases = list(wrong_answers(op))
        if command.startswith("trace plot"):  # a picture takes half a second
            cases = cases[::41] + [case for case in wrong_answers(op, one_in=1) if case[0] in PICTURED]
        for place, said in cases:
            agent.say = partial(say_wrong, op, said)
            try:
                run_here(folder, command, capsys)
            except Exception as error:
                raise AssertionError(f"{command}: {place}") from error


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", [*ASKING, "doctor"])
def test_what_is_no_answer_is_one_error(
    folder: Path, agent: HostileAgent, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in UNREADABLE if "doctor" not in command else UNREADABLE[-3:]:
        agent.say = partial(say_always, said)
        run_here(folder, command, capsys)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("manner", ["drip", "keep_silent"])
@pytest.mark.parametrize("command", [*ASKING, "doctor"])
def test_who_drips_or_keeps_silent_is_waited_for_no_longer_than_the_limit(
    folder: Path, agent: HostileAgent, command: str, manner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.say = getattr(agent, manner)
    run_here(folder, command, capsys)


def test_a_recording_of_an_agent_that_always_has_more_ends_by_its_time_and_by_a_signal(
    folder: Path, agent: HostileAgent
) -> None:
    from tests.unit.test_trace import HEADER, PASS
    from virtksm.trace.text import dump_line

    def flood(_: Json) -> list[bytes]:
        answer = answer_to("trace")
        answer["trace"] |= {"header": dump_line(HEADER), "lines": [dump_line(PASS)], "more": True}
        return [as_line(answer)]

    agent.say = flood
    assert run_apart(folder, "trace record {0}/t --for 1s").returncode == ExitCode.DONE
    command = [sys.executable, "-m", "virtksm", *arguments(folder, "trace record {0}/t --force")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as recording:
        size = (folder / "t").stat().st_size
        try:
            wait_until(lambda: (folder / "t").stat().st_size != size, HANG_S, "it to write")
            recording.send_signal(signal.SIGTERM)
            assert recording.communicate(timeout=HANG_S)[0].startswith("Recorded")
        finally:
            recording.kill()
    assert recording.returncode == ExitCode.DONE


def test_a_screen_that_is_painted_again_and_again_takes_no_code_of_the_agents(
    folder: Path, agent: HostileAgent
) -> None:
    def say(request: Json) -> list[bytes]:
        answer = answer_to(request["op"])
        if request["op"] == "status":
            for name in ("uri", "policy", "version"):
                answer["status"][name] = TEXT
            answer["status"]["last_pass"]["warnings"] = [TEXT]
        return [as_line(answer)]

    agent.say = say
    command = [sys.executable, "-m", "virtksm", *arguments(folder, "status --watch 1s")]
    terminal = PseudoTerminal(command, environ={"PYTHONPATH": str(PROJECT)})
    try:
        terminal.wait_for_frame("FAKE LINE")
        terminal.type(b"q")
        assert terminal.wait_ended() == 0
        assert not any(code in terminal.said for code in ("\x1b]", "\x07", "\x1b[2J", "\u202e", "\nFAKE"))
    finally:
        terminal.close()


@pytest.mark.parametrize("kind", PLANTED_HISTORIES)
def test_a_planted_history_takes_neither_disk_nor_memory(folder: Path, kind: str) -> None:
    plant_history(folder / "lib" / "local.history", PLANTED_HISTORIES[kind])
    assert (folder / "lib" / "local.history").stat().st_size < 1 << 20
    for command in ("status", "explain", "trace plot -o {0}/p.svg"):
        done = run_apart(folder, command)
        assert "local.history: is no history of schema" in done.stdout + done.stderr


def link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def hard_link(path: Path, precious: Path) -> None:
    path.hardlink_to(precious)


def endless(path: Path, _: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def garbage(path: Path, _: Path) -> None:
    path.write_bytes(TEXT.encode() * 100)


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "link": link,
    "hard link": hard_link,
    "fifo": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
    "endless": endless,
    "garbage": garbage,
}
PLACES = (
    "lib/local.history",
    "lib/local.history-journal",
    "lib/local.off",
    "run/agent/local.json",
    "run/agent/local.lock",
    "run/agent/agent.lock",
    "run/agent/coalesce.lock",
    "run/agent/control.sock",
    "run/agent/status.sock",
)
COMMANDS = (
    "status",
    "explain",
    "trace plot -o {0}/p.svg",
    "guests",
    "headroom",
    "doctor",
    "retune --direct",
    "retune --coalesce",
    "retune",
    "restore",
    "pause",
    "resume",
    "verify-off",
    "unmerge --check",
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_in_the_agents_folders_is_neither_followed_nor_waited_for(folder: Path, kind: str) -> None:
    precious = folder / "precious"
    precious.write_text("kept", encoding="ascii")
    before = precious.stat()
    (folder / "run" / "agent").mkdir()
    for place in PLACES:
        KINDS[kind](folder / place, precious)
    for path in (folder / "run" / "agent", folder / "lib"):
        os.chown(path, NOBODY, NOBODY)
    run_all_apart(folder, *COMMANDS)
    assert precious.read_text(encoding="ascii") == "kept"
    after = precious.stat()
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)


def test_a_lock_that_is_never_let_go_is_not_waited_for(folder: Path) -> None:
    (folder / "run" / "agent").mkdir()
    held = []
    for name in ("local.lock", "agent.lock", "coalesce.lock"):
        file = (folder / "run" / "agent" / name).open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        held.append(file)
    run_all_apart(folder, "retune", "retune --coalesce", "pause", "restore", "doctor")
    for file in held:
        file.close()
