"""A payload guest's pages, read from its QEMU process: the second witness beside KSM's counters.

The first four words of a page are its index, generation, owner and kind (bench/guest/payload.c).
"""

import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

COMMON = 0x636F6D6D
OWN = 0x6F776E21
DRIFTED = 0x64726966
_PAGE_BYTES = 4096
_PAGE_KIB = _PAGE_BYTES // 1024
_FIRST_MIB = 2
_PFN = (1 << 55) - 1
_IS_PRESENT = 1 << 63
_IS_ZERO_PAGE = 1 << 24
_IS_KSM = 1 << 21
_MAX_SHARERS = 256


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


def mergeable_kib(pid: int) -> list[int]:
    """Tell the resident memory of each of a process's mappings that may merge."""
    text = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8")
    mappings = re.findall(r"^Rss: +(\d+) kB$.*?^VmFlags:([^\n]*)$", text, re.MULTILINE | re.DOTALL)
    return [int(kib) for kib, flags in mappings if " mg" in flags]


def zero_mapped_kib(pid: int) -> int:
    """Tell how much of a process's anonymous memory is the kernel's zero page, for root to read.

    KSM shares no page of its own so often.
    """
    often = {frame: count for frame, count in _mapped_frames(pid).items() if count > _MAX_SHARERS}
    return _flagged_kib(often, _IS_ZERO_PAGE)


def merged_kib(pid: int) -> int:
    """Tell how much of a process's anonymous memory is KSM's, as smaps does since Linux 6.7, for root to read."""
    return _flagged_kib(_mapped_frames(pid), _IS_KSM)


def page_identity(page: bytes) -> tuple[int, int, int, int]:
    """Tell index, generation, owner and kind of a page."""
    index, generation, owner, kind = struct.unpack_from("<4I", page)
    return index, generation, owner, kind


def _mapped_frames(pid: int) -> Mapping[int, int]:
    """Count how often a process maps each page frame (Documentation/admin-guide/mm/pagemap.rst)."""
    frames = Counter[int]()
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for low, high in _anonymous(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")):
            pages = (high - low) // _PAGE_BYTES
            entries = struct.unpack(f"<{pages}Q", os.pread(pagemap.fileno(), pages * 8, low // _PAGE_BYTES * 8))
            frames.update(entry & _PFN for entry in entries if entry & _IS_PRESENT)
    return frames


def _flagged_kib(frames: Mapping[int, int], flag: int) -> int:
    with Path("/proc/kpageflags").open("rb", buffering=0) as flags:
        return _PAGE_KIB * sum(
            count
            for frame, count in frames.items()
            if struct.unpack("<Q", os.pread(flags.fileno(), 8, frame * 8))[0] & flag
        )


def _ram_address(maps: str, size_bytes: int) -> int:
    # The guest's memory is the one anonymous mapping of exactly its size.
    for low, high in _anonymous(maps):
        if high - low == size_bytes:
            return low
    raise LookupError(f"no anonymous mapping of {size_bytes} bytes")


def _anonymous(maps: str) -> Iterator[tuple[int, int]]:
    for low, high in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *$", maps, re.MULTILINE):
        yield int(low, 16), int(high, 16)
