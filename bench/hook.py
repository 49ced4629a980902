"""What the libvirt hook adds to every start and stop of a guest: its wall time less that of /bin/true.

In: hooks/virtksm, copied with constants that point into a temporary folder; the number of runs. Out: a line for each
shell and situation, and exit code 1 if a goal is missed. Compared are medians. It must not touch KSM, libvirt or the
FIFO of the real agent.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Goal, in_words, interleave, median, tell_goals, tell_machine
from bench.startup import time_process
from tests.lab.hook import install_hook

BASE = "/bin/true"
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


def prepare(folder: Path, shell: str, situation: Situation) -> Callable[[], float]:
    """Put a copy of the hook, its FIFO and (if wanted) a listener into the folder; return what times the hook in ms."""
    folder.mkdir()
    fifo, hook = folder / "poke", folder / "hook"
    os.mkfifo(fifo)
    install_hook(hook, fifo=fifo, virtksm=Path(BASE) if situation.one_shot else folder / "absent")
    command = [f"/bin/{shell}", str(hook), "guest", situation.operation, "begin", "-"]
    reader = None
    if situation.listener:
        reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, FULL_BYTES)
    expected = bytes(FULL_BYTES) if situation.full else f"{situation.operation}\n".encode()

    def timed() -> float:
        if reader is not None and situation.full:
            os.write(reader, bytes(FULL_BYTES))
        elapsed_ms = time_process(command)
        if reader is not None and os.read(reader, 2 * FULL_BYTES) != expected:
            raise RuntimeError(f"{situation.name} under {shell}: the FIFO does not hold what it should")
        if situation.one_shot:
            time.sleep(PAUSE_S)
        return elapsed_ms

    return timed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench hook", description="Time the libvirt hook beside /bin/true.")
    parser.add_argument("--runs", type=int, default=300, help="measurements of each (%(default)s)")
    runs: int = parser.parse_args(arguments).runs
    tell_machine()
    situations = {f"{shell}, {one.name}": (shell, one) for shell in ("dash", "bash") for one in SITUATIONS}
    with tempfile.TemporaryDirectory(prefix="vkhook") as temporary:
        timed = {
            name: prepare(Path(temporary) / str(number), shell, situation)
            for number, (name, (shell, situation)) in enumerate(situations.items())
        }
        times_ms = interleave({BASE: lambda: time_process([BASE]), **timed}, runs)
    for name, series in times_ms.items():
        print(f"{name:40}{in_words(series)}")
    return tell_goals(
        [
            Goal(
                what=f"{name}, over true",
                measured=median(times_ms[name]) - median(times_ms[BASE]),
                limit=goal_ms,
                unit="ms",
            )
            for name, (_, situation) in situations.items()
            if (goal_ms := situation.goal_ms) is not None
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
