"""The neighbour: a program that times a fixed piece of work over and over, on the cores that ksmd and the guests use.

A program of its own (`python neighbour.py FILE`), which imports nothing of the project, so that no other thread's
interpreter lock is in its times. A piece is the CRC of 4 MiB five times, about 5 ms of computing and reading memory;
between two it sleeps 250 ms, so that it takes about 2 % of a core. It writes a line a piece: CLOCK_MONOTONIC in seconds
at its beginning, and the ms that it took. SIGTERM ends it.
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path

PIECE_BYTES = 4 * 1024 * 1024
TIMES = 5
PAUSE_S = 0.25


def main(output: Path) -> None:
    """Time pieces until ended."""
    piece = bytes(range(256)) * (PIECE_BYTES // 256)
    with output.open("w", encoding="ascii", buffering=1) as lines:
        while True:
            began_ns = time.monotonic_ns()
            for _ in range(TIMES):
                zlib.crc32(piece)
            taken_ns = time.monotonic_ns() - began_ns
            lines.write(f"{began_ns / 1e9:.3f} {taken_ns / 1e6:.3f}\n")
            time.sleep(PAUSE_S)


def parse_times(text: str, began_s: float) -> list[tuple[float, float]]:
    """Read what it wrote, as (seconds since `began_s`, ms); a line cut short by its end is left out."""
    rows = [line.split() for line in text.split("\n")[:-1]]
    return [(round(float(at_s) - began_s, 3), float(ms)) for at_s, ms in rows if float(at_s) >= began_s]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
