"""A payload guest's pages, read from its QEMU process: the second witness beside KSM's counters.

The first four words of a page are its index, generation, owner and kind (bench/guest/payload.c).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

COMMON = 0x636F6D6D
OWN = 0x6F776E21
DRIFTED = 0x64726966
_PAGE_BYTES = 4096
_FIRST_MIB = 2


def payload_pages(pid: int, *, memory_mib: int, pages: int) -> Iterator[bytes]:
    """Read the first `pages` pages that the payload fills; raises OSError when the process ended."""
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        base = _ram_address(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8"), memory_mib << 20)
        content = os.pread(descriptor, pages * _PAGE_BYTES, base + (_FIRST_MIB << 20))
    finally:
        os.close(descriptor)
    for at in range(0, len(content), _PAGE_BYTES):
        yield content[at : at + _PAGE_BYTES]


def page_identity(page: bytes) -> tuple[int, int, int, int]:
    """Tell index, generation, owner and kind of a page."""
    index, generation, owner, kind = struct.unpack_from("<4I", page)
    return index, generation, owner, kind


def _ram_address(maps: str, size_bytes: int) -> int:
    # The guest's memory is the one anonymous mapping of exactly its size.
    for low, high in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *$", maps, re.MULTILINE):
        if int(high, 16) - int(low, 16) == size_bytes:
            return int(low, 16)
    raise LookupError(f"no anonymous mapping of {size_bytes} bytes")
