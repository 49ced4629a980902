"""What a process holds: descriptors, threads and memory, to see whether they grow."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.ksm import wait_until

AGENTS_THREADS = 2
"""An agent's own, and libvirt's event loop's."""
HANG_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A process at a moment."""

    descriptors: int
    threads: int
    rss_kib: int


def read_footprint(pid: int) -> Footprint:
    """Read what a process holds; raises OSError when it ended."""
    proc = Path(f"/proc/{pid}")
    (rss_kib,) = re.findall(r"^VmRSS:\s+(\d+) kB$", (proc / "status").read_text(encoding="utf-8"), re.MULTILINE)
    return Footprint(
        descriptors=len(list((proc / "fd").iterdir())),
        threads=len(list((proc / "task").iterdir())),
        rss_kib=int(rss_kib),
    )


def calm_footprint(pid: int) -> Footprint:
    """Read what an agent holds while no call of libvirt or to the disk is out; raises TimeoutError."""
    found: list[Footprint] = []

    def is_calm() -> bool:
        found.append(read_footprint(pid))
        return found[-1].threads == AGENTS_THREADS

    wait_until(is_calm, HANG_S, "the agent to have two threads")
    return found[-1]


def peak_bytes(do: Callable[[], object]) -> int:
    """Tell how much memory of Python's own something takes at once, beside what was there."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
