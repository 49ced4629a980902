"""`virtksm status --watch` in a real pseudo-terminal, before an agent that is a fake: frames, keys, signals, sizes."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.contract.test_history import EVENT, NOW_S, SAMPLE
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.pseudo_terminal import PseudoTerminal
from tests.lab.samples import NOW, agent_facts, passed
from tests.lab.stand_in import StandIn
from tests.real.agent_process import VIRTKSM
from virtksm.agent.sockets import bind_socket, remove_socket
from virtksm.cli.terminal import ENTER, LEAVE
from virtksm.history.samples import as_table
from virtksm.model.current import after_pass
from virtksm.model.snapshot import Settings
from virtksm.paths import RuntimePaths

STATUS = agent_facts(current=after_pass(passed(Settings(pages_to_scan=400, sleep_millisecs=10)))).as_dict(NOW)


class StatusAgent(StandIn):
    """Tells its status, which may be changed, and a history."""

    def __init__(self, paths: RuntimePaths) -> None:
        self.status: dict[str, object] = dict(STATUS)
        self.asked = 0
        super().__init__(paths, self._answer)

    async def _answer(self, request: Mapping[str, object]) -> dict[str, object]:
        if request["op"] == "status":
            self.asked += 1
            return {"ok": True, "status": self.status}
        return {"ok": True, "history": {"now_s": NOW_S, **as_table([SAMPLE], [EVENT])}}


@pytest.fixture
def agent(paths: RuntimePaths) -> Iterator[StatusAgent]:
    with StatusAgent(paths) as stand_in:
        yield stand_in
    remove_socket(paths.control_socket)


Start = Callable[..., PseudoTerminal]


@pytest.fixture
def start(paths: RuntimePaths) -> Iterator[Start]:
    """Lend a way to start it in terminals that end with the test."""
    terminals: list[PseudoTerminal] = []

    def start_one(*arguments: str, **how: Any) -> PseudoTerminal:  # noqa: ANN401  # as PseudoTerminal has it
        folders = ["--runtime-dir", paths.root, "--state-dir", paths.state_dir]
        terminals.append(PseudoTerminal([VIRTKSM, *folders, "status", *(arguments or ("--watch", "0.1"))], **how))
        return terminals[-1]

    yield start_one
    for terminal in terminals:
        terminal.close()


def is_given_back(terminal: PseudoTerminal) -> bool:
    said = terminal.said
    return said.count(ENTER) == said.count(LEAVE) and said.rstrip("\r\n").endswith(LEAVE)


def ends(terminal: PseudoTerminal, code: int, end: Callable[[], None]) -> None:
    end()
    assert terminal.process.wait(HANG_S) == code
    assert terminal.mode() == terminal.mode_before
    terminal.wait_ended()
    assert is_given_back(terminal)


def test_it_repaints_in_place_and_q_ends_it(agent: StatusAgent, start: Start) -> None:
    terminal = start()
    frame = terminal.wait_for_frame("Agent      running")
    assert frame[0].startswith("virtksm status, every 0.1 s, q ends")
    assert "KSM        on, scanning 400 pages every 10 ms" in frame
    assert next(line for line in frame if line.startswith("Events")).endswith("started (booted)")
    agent.status["uri"] = "test:///changed"
    terminal.wait_for_frame("test:///changed")
    before = terminal.mode()
    terminal.type(b"q")
    assert terminal.wait_ended() == 0
    assert is_given_back(terminal)
    assert before != terminal.mode_before, "keys came one by one meanwhile"
    assert terminal.said.count("\x1b[2J") == 0, "clearing the whole screen flickers"


@pytest.mark.parametrize(
    ("end", "code"), [(b"\x03", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.usefixtures("agent")
def test_the_terminal_is_given_back_whatever_ends_it(start: Start, end: bytes | signal.Signals, code: int) -> None:
    terminal = start()
    terminal.wait_for_frame("Agent      running")
    ends(terminal, code, lambda: terminal.type(end) if isinstance(end, bytes) else terminal.process.send_signal(end))


def test_a_signal_ends_it_also_while_the_agent_does_not_answer(paths: RuntimePaths, start: Start) -> None:
    with bind_socket(paths.control_socket) as nobody_reads:
        nobody_reads.listen(5)
        terminal = start()
        wait_until(lambda: ENTER in terminal.said, HANG_S, "the screen to be taken")
        ends(terminal, 143, lambda: terminal.process.send_signal(signal.SIGTERM))


def test_frames_wrap_in_the_terminals_size_which_may_change(agent: StatusAgent, start: Start) -> None:
    agent.status["uri"] = "x" * 300
    terminal = start("--watch", "3600", columns=60, rows=5)
    frame = terminal.wait_for_frame("Agent")
    assert (len(frame), max(map(len, frame))) == (5, 59)
    terminal.resize(200, 40)
    frame = terminal.wait_for_frame("KSM ")
    assert max(map(len, frame)) == 199
    assert agent.asked == 1, "a new size repaints what is known"
    terminal.resize(1, 1)
    wait_until(lambda: terminal.frames()[-1] == [""], HANG_S, "a frame for the smallest terminal")
    terminal.type(b"q")
    assert terminal.wait_ended() == 0


def test_stopped_by_ctrl_z_it_gives_the_terminal_back_and_takes_it_again(agent: StatusAgent, start: Start) -> None:
    terminal = start()
    terminal.wait_for_frame("Agent")
    terminal.process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    wait_until(lambda: is_given_back(terminal), HANG_S, "the terminal to be given back")
    assert terminal.mode() == terminal.mode_before
    terminal.process.send_signal(signal.SIGCONT)
    wait_until(lambda: terminal.said.count(ENTER) == 2, HANG_S, "the terminal to be taken again")
    agent.status["uri"] = "test:///again"
    terminal.wait_for_frame("test:///again")
    terminal.type(b"q")
    assert terminal.wait_ended() == 0
    assert is_given_back(terminal)


def test_an_agent_that_dies_meanwhile_is_told_and_one_that_comes_back_is_asked(
    agent: StatusAgent, start: Start, paths: RuntimePaths
) -> None:
    terminal = start()
    terminal.wait_for_frame("Agent      running")
    agent.die()
    frame = terminal.wait_for_frame("Agent      not running")
    assert any(line.startswith("KSM ") for line in frame), "this machine's kernel is told all the same"
    again = StatusAgent(paths)
    terminal.wait_for_frame("Agent      running")
    again.status = {}
    terminal.wait_for_frame("Error")
    terminal.type(b"q")
    assert terminal.wait_ended() == 0
    again.die()


def test_colour_is_for_terminals_and_never_with_no_color(agent: StatusAgent, start: Start, paths: RuntimePaths) -> None:
    stranded = STATUS["stranded"]
    assert isinstance(stranded, dict)
    agent.status = {**STATUS, "last_pass": None, "stranded": {**stranded, "possible": None}}
    painted = start("--watch", "0.1")
    painted.wait_for_frame("may keep scanning")
    assert "\x1b[31mWarning" in painted.said
    plain = start("--watch", "0.1", environ={"NO_COLOR": "1"})
    plain.wait_for_frame("may keep scanning")
    assert "\x1b[31m" not in plain.said
    once = start("--connect", "qemu:///system")
    assert once.wait_ended() == 0
    assert "\x1b[31mWarning" in once.said
    dumb = start(environ={"TERM": "dumb"})
    wait_until(lambda: dumb.said.count("Agent      running") > 2, HANG_S, "three of them: a dumb terminal is no screen")
    assert "\x1b" not in dumb.said
    piped = status_of(paths)
    assert "\x1b" not in piped.stdout
    assert "may keep scanning" in piped.stdout


def status_of(paths: RuntimePaths, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [VIRTKSM, "--runtime-dir", paths.root, "status", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.parametrize("arguments", [("--watch", "0.1"), ("--json", "--watch", "0.1")])
@pytest.mark.usefixtures("agent")
def test_without_a_terminal_one_follows_the_other(paths: RuntimePaths, arguments: tuple[str, ...]) -> None:
    command = [VIRTKSM, "--runtime-dir", paths.root, "status", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while sum(line.startswith(("Agent ", "{")) for line in lines) < 3:
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended"
        if "--json" in arguments:
            assert [json.loads(line)["agent"] for line in lines] == [True] * 3
        assert "\x1b" not in "".join(lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_an_interval_that_is_none_is_refused(paths: RuntimePaths) -> None:
    for interval in ("0", "x", "nan", "1e9"):
        done = status_of(paths, "--watch", interval)
        assert done.returncode == 2
        assert f"argument --watch: {interval!r} is no time from 0.1 s to 1 d" in done.stderr
