"""What the libvirt hook adds to every start and stop of a guest: its wall time less that of /bin/true.

In: hooks/virtksm, copied with constants that point into a temporary folder; the number of rounds. Out: a table on
stdout, one line for each shell and situation, and exit code 1 if a goal is missed. Each round runs /bin/true and every
contender once, in an order drawn anew, so that whatever the machine does meanwhile falls on all of them alike; compared
are medians. It must not touch KSM, libvirt or the FIFO of the real agent.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOOK = Path(__file__).resolve().parents[1] / "hooks" / "virtksm"
SHELLS = ("dash", "bash")
FULL_BYTES = 65536
PAUSE_S = 0.004  # lets the detached one-shot of the fallback end before the next is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One thing the hook may meet: what it is called with, what is around it, and what it may cost (None: no goal)."""

    name: str
    operation: str
    goal_ms: float | None
    listener: bool = False
    full: bool = False
    one_shot: bool = False


SITUATIONS = (
    Situation(name="nothing to do", operation="prepare", goal_ms=2.0),
    Situation(name="poke", operation="started", goal_ms=5.0, listener=True),
    Situation(name="poke, FIFO full", operation="started", goal_ms=5.0, listener=True, full=True),
    Situation(name="FIFO, no reader, no virtksm", operation="started", goal_ms=5.0),
    Situation(name="FIFO, no reader, starts virtksm", operation="started", goal_ms=None, one_shot=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A command to time, and what to do around it."""

    shell: str
    situation: Situation
    command: tuple[str, ...]
    before: Callable[[], None]
    after: Callable[[], None]


def time_command(command: tuple[str, ...], null: int) -> float:
    """Run the command as libvirt would, waiting for its end; returns milliseconds, raises RuntimeError if it fails."""
    streams = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
    start = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=streams)
    _, status = os.waitpid(pid, 0)
    elapsed_ms = (time.perf_counter() - start) * 1000
    if status != 0:
        raise RuntimeError(f"{command}: ended with status {status:#x}")
    return elapsed_ms


def make_contender(folder: Path, shell: str, situation: Situation) -> Contender:
    """Put a copy of the hook, its FIFO and (if wanted) a listener into the folder."""
    folder.mkdir()
    fifo = folder / "poke"
    os.mkfifo(fifo)
    one_shot = "/bin/true" if situation.one_shot else str(folder / "absent")
    text = re.sub(r"(?m)^FIFO=.*$", f"FIFO={fifo}", HOOK.read_text(encoding="utf-8"))
    hook = folder / "hook"
    hook.write_text(re.sub(r"(?m)^VIRTKSM=.*$", f"VIRTKSM={one_shot}", text), encoding="utf-8")
    command = (f"/bin/{shell}", str(hook), "guest", situation.operation, "begin", "-")
    if not situation.listener:
        return Contender(shell=shell, situation=situation, command=command, before=pass_by, after=pass_by)

    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, FULL_BYTES)

    def fill() -> None:
        os.write(reader, bytes(FULL_BYTES))

    def drain() -> None:
        expected = bytes(FULL_BYTES) if situation.full else f"{situation.operation}\n".encode()
        if os.read(reader, 2 * FULL_BYTES) != expected:
            raise RuntimeError(f"{situation.name} under {shell}: the FIFO does not hold what it should")

    before = fill if situation.full else pass_by
    return Contender(shell=shell, situation=situation, command=command, before=before, after=drain)


def pass_by() -> None:
    """Do nothing."""


def measure(contenders: list[Contender], rounds: int) -> tuple[list[float], list[list[float]]]:
    """Time /bin/true and all contenders in turn; returns milliseconds: true's, then each contender's."""
    null = os.open(os.devnull, os.O_RDWR)
    true_ms: list[float] = []
    contenders_ms: list[list[float]] = [[] for _ in contenders]
    order = [-1, *range(len(contenders))]
    for number in range(rounds + 5):  # the first few warm the page cache
        random.shuffle(order)
        for index in order:
            if index < 0:
                elapsed_ms = time_command(("/bin/true",), null)
            else:
                contenders[index].before()
                elapsed_ms = time_command(contenders[index].command, null)
                contenders[index].after()
                if contenders[index].situation.one_shot:
                    time.sleep(PAUSE_S)
            if number >= 5:
                (true_ms if index < 0 else contenders_ms[index]).append(elapsed_ms)
    os.close(null)
    return true_ms, contenders_ms


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the libvirt hook beside /bin/true.")
    parser.add_argument("--rounds", type=int, default=300, help="measurements of each (default 300)")
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="vkhook") as temporary:
        contenders = [
            make_contender(Path(temporary) / f"{shell}{number}", shell, situation)
            for shell in SHELLS
            for number, situation in enumerate(SITUATIONS)
        ]
        true_ms, contenders_ms = measure(contenders, rounds)
    true_median = statistics.median(true_ms)
    print(f"kernel {platform.release()}, {os.cpu_count()} cores, {rounds} rounds, interleaved")
    print(f"/bin/true: median {true_median:.2f} ms, p99 {statistics.quantiles(true_ms, n=100)[98]:.2f} ms")
    print(f"{'shell':6}{'situation':34}{'over true':>10}{'p99':>8}{'goal':>7}  met")
    missed = 0
    for contender, times_ms in zip(contenders, contenders_ms, strict=True):
        over_ms = statistics.median(times_ms) - true_median
        goal_ms = contender.situation.goal_ms
        met = goal_ms is None or over_ms <= goal_ms
        missed += not met
        goal = ["", "-"] if goal_ms is None else [f"{goal_ms:.0f}", "yes" if met else "NO"]
        p99_ms = statistics.quantiles(times_ms, n=100)[98]
        print(f"{contender.shell:6}{contender.situation.name:34}{over_ms:10.2f}{p99_ms:8.2f}{goal[0]:>7}  {goal[1]}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
