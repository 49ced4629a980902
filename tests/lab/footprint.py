"""What a process holds: descriptors, threads and memory, to see whether they grow."""

import contextlib
import re
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until

AGENTS_THREADS = 3
"""An agent's own, its log's, and libvirt's event loop's."""
CALM_READINGS = 5
"""So many in turn, 10 ms or more apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A process at a moment. `held`: what its descriptors lead to, sorted; sockets and pipes without their numbers.

    `processes`: how many processes' statm an agent keeps open, guests' and ksmd's, which are not in `held`.
    """

    held: tuple[str, ...]
    processes: int
    threads: int
    rss_kib: int

    @property
    def descriptors(self) -> int:
        return len(self.held)


def read_footprint(pid: int) -> Footprint:
    """Read what a process holds; raises OSError when it ended."""
    proc = Path(f"/proc/{pid}")
    (rss_kib,) = re.findall(r"^VmRSS:\s+(\d+) kB$", (proc / "status").read_text(encoding="utf-8"), re.MULTILINE)
    held = sorted(_read_held(proc / "fd"))
    others = tuple(one for one in held if not re.fullmatch(r"/proc/\d+/statm", one))
    return Footprint(held=others, processes=len(held) - len(others), threads=count_threads(pid), rss_kib=int(rss_kib))


def count_threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _read_held(folder: Path) -> Iterator[str]:
    for descriptor in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield re.sub(r":\[\d+\]$", "", str(descriptor.readlink()))


def calm_footprint(pid: int) -> Footprint:
    """Read what an agent holds while no call of libvirt or to the disk is out; raises TimeoutError."""
    return still_footprint(pid, threads=AGENTS_THREADS)


def still_footprint(pid: int, *, threads: int | None = None) -> Footprint:
    """Read what an agent holds while that does not change, with so many threads; raises TimeoutError.

    It holds the same in CALM_READINGS: less, and a file that it reads just then would count.
    """
    found: list[Footprint] = []

    def is_still() -> bool:
        found.append(read_footprint(pid))
        last = found[-CALM_READINGS:]
        wanted = (last[0].threads if threads is None else threads, last[0].held)
        return len(last) == CALM_READINGS and all((one.threads, one.held) == wanted for one in last)

    wait_until(is_still, HANG_S, f"the agent to hold the same for a moment, with {threads or 'as many'} threads")
    return found[-1]


def peak_bytes(do: Callable[[], object]) -> int:
    """Tell how much memory of Python's own something takes at once, beside what was there."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
