"""Storms: from the last event to the final state, at most the agent's window and a pass.

One storm starts and stops extra guests as fast as libvirt can; the other is the hook's pokes, hundreds a second. Every
pass adds one page (STEPPING_LAW), so the final state is the last change of pages_to_scan, and the number of changes is
the number of passes. A storm whose last event is followed by no change, or by none within the time, is a failure.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.observe import Change, Events, KernelValue, Recorder
from bench.stage import Agent, Guests

WINDOW_MS = 250.0
SETTLED_S = 1.5
POKES = 500
POKE_EVERY_S = 0.003


@dataclass(slots=True, kw_only=True)
class Storms:
    """Storms of one kind: `settled_ms` from the last event to the last change, a storm each."""

    kind: str
    settled_ms: list[float] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def take(self, first_ns: int, last_ns: int, events: int, changes: list[Change]) -> None:
        """Judge one storm."""
        self.events.append(events)
        self.passes.append(len(changes))
        self.seconds.append((last_ns - first_ns) / 1e9)
        if not changes or changes[-1].at_ns < last_ns:
            self.failures.append(f"storm {len(self.events)}: no change after the last of {events} events")
            return
        self.settled_ms.append((changes[-1].at_ns - last_ns) / 1e6)


def storm_of_guests(
    *, guests: Guests, events: Events, kernel: KernelValue, storms: int, extra: int, at_once: int = 4
) -> Storms:
    """Start and stop `extra` guests as fast as possible, `storms` times; times are libvirt's deliveries."""
    result = Storms(kind="guests")

    def start_and_stop(number: int) -> None:
        guests.start(f"storm{number}")
        guests.stop(f"storm{number}")

    for _ in range(storms):
        time.sleep(SETTLED_S)
        events.take_all()
        with Recorder(kernel) as recorder:
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(start_and_stop, range(extra)))
            time.sleep(SETTLED_S)
        heard = events.take_all()
        if len(heard) != 2 * extra:
            result.failures.append(f"{len(heard)} events heard of {2 * extra}")
        result.take(heard[0].at_ns, heard[-1].at_ns, len(heard), recorder.changes)
    return result


def storm_of_pokes(*, agent: Agent, kernel: KernelValue, storms: int) -> Storms:
    """Poke the agent as the hook does, `storms` times; times are right before each write."""
    result = Storms(kind="pokes")
    for _ in range(storms):
        time.sleep(SETTLED_S)
        with Recorder(kernel) as recorder:
            times_ns = poke(agent.poke_fifo)
            time.sleep(SETTLED_S)
        result.take(times_ns[0], times_ns[-1], len(times_ns), recorder.changes)
    return result


def poke(fifo: Path) -> list[int]:
    """Write POKES pokes; returns when each was written. Raises OSError when nobody listens, or it is full."""
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    times_ns = []
    try:
        for _ in range(POKES):
            times_ns.append(time.monotonic_ns())
            os.write(descriptor, b"started\n")
            time.sleep(POKE_EVERY_S)
    finally:
        os.close(descriptor)
    return times_ns
