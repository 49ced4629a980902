"""Real mergeable memory for comparisons: a process of its own with pages filled exactly as the simulator's guests have.

`MergeableProcess` starts it and tells it what to write; run as a module, this file is that process. Its pages are
small ones, common, zero and own in this order. The first words of a page say what it is, as in the payload guest, so
comparing two pages ends early, and the rest is the same everywhere.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
import sys
from pathlib import Path
from typing import Self

from demo.guests import PAGES_PER_MIB, PayloadGuest

_REPO = Path(__file__).resolve().parents[2]
PAGE = 4096
COMMON, ZERO, OWN = 1, 2, 3
_FILLING = bytes(range(1, 129)) * (PAGE // 128)


class MergeableProcess:
    """A process with the content of `spec`; a context manager that ends it."""

    def __init__(self, spec: PayloadGuest) -> None:
        words = [sys.executable, "-m", "bench.sim.real_memory"]
        sizes = [spec.common_mib, spec.zero_mib, spec.own_mib, spec.image, spec.seed]
        self._process = subprocess.Popen(
            [*words, *map(str, sizes)], cwd=_REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._hear()

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def write(self, kind: int, low: int, high: int, version: int) -> None:
        """Give pages low..high-1 of a kind the content of another version."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {low} {high} {version}\n")
        self._process.stdin.flush()
        self._hear()

    def end(self) -> None:
        """End it, and wait until its memory is gone."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the process with mergeable memory ended")


class _Memory:
    def __init__(self, common: int, zero: int, own: int, image: int, seed: int) -> None:
        self._first = {COMMON: 0, ZERO: common, OWN: common + zero}
        self._owner = {COMMON: image, OWN: seed}
        self._map = mmap.mmap(-1, (common + zero + own) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self._map.madvise(mmap.MADV_MERGEABLE)
        for kind, count in {COMMON: common, ZERO: zero, OWN: own}.items():
            self.write(kind, 0, count, 0)

    def write(self, kind: int, low: int, high: int, version: int) -> None:
        for index in range(low, high):
            at = (self._first[kind] + index) * PAGE
            page = bytes(PAGE)
            if kind != ZERO:
                head = struct.pack("<4I", index, version, self._owner[kind], kind)
                page = head + _FILLING[len(head) :]
            self._map[at : at + PAGE] = page


def _serve() -> None:
    common, zero, own, image, seed = map(int, sys.argv[1:])
    memory = _Memory(common * PAGES_PER_MIB, zero * PAGES_PER_MIB, own * PAGES_PER_MIB, image, seed)
    print("done", flush=True)
    for line in sys.stdin:
        memory.write(*map(int, line.split()))
        print("done", flush=True)


if __name__ == "__main__":
    _serve()
