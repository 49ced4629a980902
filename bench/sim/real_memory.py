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
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.guests import PAGES_PER_MIB, PayloadGuest

_REPO = Path(__file__).resolve().parents[2]
PAGE = 4096
COMMON, ZERO, OWN = 1, 2, 3
_FILLING = bytes(range(1, 129)) * (PAGE // 128)
_TICK_S = 0.01


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
        self._say(f"write {kind} {low} {high} {version}")
        self._hear()

    def rewrite(self, kind: int, per_s: int) -> None:
        """From now on rewrite so many pages of a kind a second, in turn, for ever."""
        self._say(f"rewrite {kind} {per_s}")

    def end(self) -> None:
        """End it, and wait until its memory is gone."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the process with mergeable memory ended")


class _Memory:
    def __init__(self, common: int, zero: int, own: int, image: int, seed: int) -> None:
        self._first = {COMMON: 0, ZERO: common, OWN: common + zero}
        self.pages = {COMMON: common, ZERO: zero, OWN: own}
        self._owner = {COMMON: image, OWN: seed}
        self._map = mmap.mmap(-1, (common + zero + own) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self._map.madvise(mmap.MADV_MERGEABLE)
        for kind, count in self.pages.items():
            self.write(kind, 0, count, 0)

    def write(self, kind: int, low: int, high: int, version: int) -> None:
        for index in range(low, high):
            at = (self._first[kind] + index) * PAGE
            page = bytes(PAGE)
            if kind != ZERO:
                head = struct.pack("<4I", index, version, self._owner[kind], kind)
                page = head + _FILLING[len(head) :]
            self._map[at : at + PAGE] = page

    def rewrite(self, kind: int, per_s: int) -> None:
        begin_s, written = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - begin_s) * per_s)
            for number in range(written, due):
                cycle, index = divmod(number, self.pages[kind])
                self.write(kind, index, index + 1, cycle + 1)
            written = due
            time.sleep(_TICK_S)


def _serve() -> None:
    common, zero, own, image, seed = map(int, sys.argv[1:])
    memory = _Memory(common * PAGES_PER_MIB, zero * PAGES_PER_MIB, own * PAGES_PER_MIB, image, seed)
    print("done", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["write", *numbers]:
                kind, low, high, version = map(int, numbers)
                memory.write(kind, low, high, version)
            case ["rewrite", kind_text, per_s_text]:
                memory.rewrite(int(kind_text), int(per_s_text))
        print("done", flush=True)


if __name__ == "__main__":
    _serve()
