"""The agent as a process of its own, for tests: started as systemd would, watched through its JSON log.

In go a libvirt URI and a configuration; out come its log lines, in order, its exit code, and its runtime folder.
`AgentProcess.wait_for` takes lines one after the other: each wait goes on where the one before has ended. Waits have a
limit that only guards against hanging; no test may judge how long something took.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from tests.lab.forked import Forked, Start, run_forked
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd

Line = Mapping[str, Any]

VIRTKSM = str(Path(sys.executable).with_name("virtksm"))

STEPPING_LAW = """\
policy = "ksmtuned"
coalesce_ms = 20
[ksmtuned]
monitor_interval = 3600
thres_coef = 100
npages_boost = 1
npages_min = 1
npages_max = 100000
"""
"""Memory always counts as short, so each step adds exactly one page: pages_to_scan counts the steps, in the kernel."""

PARKING_LAW = """\
policy = "ksmtuned"
coalesce_ms = 20
[ksmtuned]
monitor_interval = 3600
thres_coef = 0
thres_const = 0
"""
"""Memory never counts as short, so every pass parks."""

SWEEPING_LAW = """\
policy = "adaptive"
[adaptive]
engage = "always"
settle_s = 1
"""
"""Sweeps whatever there is, a second after it has settled; more keys of [adaptive] may follow."""

UNSETTLED_LAW = SWEEPING_LAW.replace("settle_s = 1", "settle_s = 0")
"""The same for `AgentProcess.sweep`, which knows that memory has settled."""


QEMUS_OWN_BYTES = 1 << 20
"""Less is no guest's memory: QEMU takes some pages of its own now and then, for which alone no law has ksmd scan."""


class AgentSilent(Exception):
    """The agent did not say in time what was waited for, or ended before it did."""


class AgentHome:
    """A configuration file, a runtime and a state folder, short enough for a socket, for any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "virtksm.toml"
        self.runtime_dir = folder / "run"
        self.state_dir = folder / "lib"

    @property
    def poke_fifo(self) -> Path:
        return self.runtime_dir / "poke"

    @property
    def control_socket(self) -> str:
        return str(self.runtime_dir / "agent" / "control.sock")

    @property
    def state(self) -> Path:
        """Tell where the state of this machine's own KSM is kept."""
        return self.runtime_dir / "agent" / "local.json"

    @property
    def switch(self) -> Path:
        """Tell where it is kept that virtksm is off for this machine."""
        return self.state_dir / "local.off"

    def is_held(self, lock: str) -> bool:
        """Tell whether a process holds a lock: `local` in a pass, `coalesce` while it waits for hooks."""
        file = self.runtime_dir / "agent" / f"{lock}.lock"
        if not file.exists():
            return False
        with file.open() as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def configure(self, text: str) -> None:
        """Write the configuration file whole."""
        self.config.write_text(text, encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        """Write the command line of a virtksm process that uses this home."""
        folders = ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)]
        return [VIRTKSM, "--config", str(self.config), *folders, *arguments]

    def start(self, *arguments: str) -> Start:
        """Say how a virtksm process that uses this home is forked."""
        return Start(self.command(*arguments)[1:])

    def run(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        hurried: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a virtksm command to its end, whatever its exit code; `hurried` waits for nobody longer than a second."""
        command = self.command(*arguments)
        if environ or prefix:
            return subprocess.run(
                [*prefix, *command],
                check=False,
                capture_output=True,
                text=True,
                timeout=HANG_S,
                env={**os.environ, **(environ or {})},
            )
        return run_forked(command[1:], HANG_S, hurried=hurried)

    def told(self, *arguments: str) -> dict[str, Any]:
        """Run a command that succeeds and return its JSON."""
        done = self.run(*arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        told: dict[str, Any] = json.loads(done.stdout)
        return told


class AgentProcess:
    """A running `virtksm agent`. Whoever starts it ends it: `stop`, `kill` or `close`.

    `log` is the file that its log is in at last, `stderr` what it writes to if not that file. It dies with the thread
    that has started it, or `is_forked`, which starts it sooner, with this process.
    """

    def __init__(
        self,
        home: AgentHome,
        uri: str,
        *,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        options: Sequence[str] = ("--log-level", "debug"),
        log: IO[bytes] | None = None,
        stderr: int | None = None,
        is_forked: bool = False,
    ) -> None:
        self.home = home
        self.uri = uri
        self._log = log or tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self._read_bytes = 0
        self._lines: list[Line] = []
        self._garbage: list[str] = []
        self._next = 0
        command = home.command("agent", "--connect", uri, "--log-format", "json", *options)
        if is_forked:
            said = f"/proc/{os.getpid()}/fd/{self._log.fileno()}"
            self._process: subprocess.Popen[bytes] | Forked = Forked(Start(command[1:], os.devnull, said))
            return
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log if stderr is None else stderr,
            env={**os.environ, **(environ or {})},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self, event: str) -> list[Line]:
        """Return every line of one event since the start."""
        self._read()
        return [line for line in self._lines if line["event"] == event]

    def wait_for(self, event: str, predicate: Callable[[Line], bool] = lambda _: True) -> Line:
        """Return the next line of `event` that `predicate` takes, skipping what comes before it.

        Raises AgentSilent when it does not come, or the agent ends without saying it.
        """
        deadline = time.monotonic() + HANG_S
        number = self._next
        while True:
            has_ended = self._process.poll() is not None  # before the last look: nothing is written after it
            self._read()
            while number < len(self._lines):
                line, number = self._lines[number], number + 1
                if line["event"] == event and predicate(line):
                    self._next = number
                    return line
            if has_ended or time.monotonic() > deadline:
                said = "\n".join([*map(json.dumps, self._lines[-12:]), *self._garbage[-20:]])
                raise AgentSilent(f"no {event} from the agent ({'ended' if has_ended else 'silent'}):\n{said}")
            time.sleep(0.003)

    def wait_for_pass(self, *triggers: str) -> Line:
        """Return the next pass; with `triggers`, the next one that answers these, and what came at the same time."""
        return self.wait_for("pass_completed", lambda line: {*triggers} <= {*line["triggers"]})

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def step(self) -> Line:
        """Ask for a pass by SIGUSR1 and return it."""
        self.signal(signal.SIGUSR1)
        return self.wait_for("pass_completed", lambda line: "signal" in line["triggers"])

    def sweep(self) -> Line:
        """Have it merge what there is, and return the first pass that scanned; the law is UNSETTLED_LAW.

        A pass that an administrator asks for begins a full scan at once, without waiting for more guests.
        """

        def scanning() -> list[Line]:
            return [line for line in self.lines("pass_completed") if line["decision"]["rule"] == "full_scan"]

        self.reload()
        wait_until(lambda: self.step()["decision"]["rule"] == "idle" and scanning() != [], HANG_S, "all to be scanned")
        return scanning()[0]

    def reload(self) -> Line:
        """Have it read its configuration again (SIGHUP), and return the pass that follows."""
        self.signal(signal.SIGHUP)
        line = self.wait_for("pass_completed", lambda line: bool({"reload", "signal"} & {*line["triggers"]}))
        assert "reload" in line["triggers"], self.lines("config_rejected")
        return line

    def poke(self) -> None:
        """Write to the FIFO, as the hook does."""
        descriptor = os.open(self.home.poke_fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(descriptor, b"p")
        finally:
            os.close(descriptor)

    def wait_ended(self) -> int:
        """Wait for its end and return its exit code, negative for a signal; its log is complete then."""
        code = self._process.wait(HANG_S)
        self._read()
        assert self._garbage == [], "what is not JSON on stderr is a traceback or a warning"
        return code

    def stop(self) -> int:
        """End it in order (SIGTERM) and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_ended()

    def kill(self) -> None:
        """Kill it (SIGKILL), as a crash does."""
        self.signal(signal.SIGKILL)
        self.wait_ended()

    def close(self) -> None:
        """End it for good, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(HANG_S)
        self._log.close()

    def _read(self) -> None:
        """Take in the whole lines that have come."""
        new = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size - self._read_bytes, self._read_bytes)
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for text in whole.decode("utf-8").split("\n")[:-1]:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and "event" in line:
                self._lines.append(line)
            else:
                self._garbage.append(text)


class AgentFactory:
    """Starts agents and ends all of them with `close`."""

    def __init__(self, home: AgentHome, uri: str) -> None:
        self.home = home
        self._uri = uri
        self._agents: list[AgentProcess] = []

    def __call__(
        self,
        config: str | None = STEPPING_LAW,
        *,
        uri: str | None = None,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        connected: bool = True,
        is_forked: bool = True,
    ) -> AgentProcess:
        """Start an agent; wait for its first pass unless `connected` is False. None keeps the configuration.

        It is forked, unless its memory is to be measured, or it needs a program of its own.
        """
        is_forked = is_forked and not environ and not prefix
        if config is not None:
            self.home.configure(config)
        agent = AgentProcess(self.home, uri or self._uri, environ=environ, prefix=prefix, is_forked=is_forked)
        self._agents.append(agent)
        if connected:
            agent.wait_for_pass("connected")
        return agent

    def close(self) -> None:
        for agent in self._agents:
            agent.close()


def wait_until_covered(agent: AgentProcess, guests: int) -> Line:
    """Wait until so many guests run and all of their memory, which they have filled, is scanned; return that pass."""

    def has_no_backlog(line: Line) -> bool:
        decision = line["decision"]
        numbers = decision["numbers"]
        backlog = [numbers[name] for name in ("settling_bytes", "new_bytes", "scanned_once_bytes", "exited_bytes")]
        return (decision["rule"], numbers["guests"]) == ("idle", guests) and int(sum(backlog)) < QEMUS_OWN_BYTES

    line = agent.step()  # what it says of passes before this one tells nothing
    return line if has_no_backlog(line) else agent.wait_for("pass_completed", has_no_backlog)


@pytest.fixture
def agent_home() -> Iterator[AgentHome]:
    """Lend a configuration file and a runtime folder of this test's own."""
    folder = Path(tempfile.mkdtemp(prefix="va", dir="/tmp"))  # a socket's path has at most 108 characters
    home = AgentHome(folder)
    home.configure(STEPPING_LAW)
    try:
        yield home
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def start_agent(
    ksm: Ksm,  # noqa: ARG001  # an agent writes to it: lent as long as one may run
    libvirtd: PrivateLibvirtd,
    agent_home: AgentHome,
) -> Iterator[AgentFactory]:
    """Lend a factory of agents on the private libvirtd; they end with the test."""
    factory = AgentFactory(agent_home, libvirtd.uri)
    try:
        yield factory
    finally:
        factory.close()
