"""Reads how much of a guest's huge pages is zero, by a sample of its memory. For root alone; writes nothing.

Of each page that is read nothing is kept but whether all of it is zero. Only pages that are there are read, so that no
reading takes memory. Sources: Documentation/admin-guide/mm/pagemap.rst, proc_pid_mem(5).
"""

from __future__ import annotations

import os
import random
import re
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from virtksm.host.proc_files import MAX_BYTES, read_process

SAMPLES = 256
"""Pages of a guest that are looked at: where a twentieth is zero, some 13 of these are."""
MIN_MAPPING_BYTES = 8 << 20
"""A smaller mapping is no guest's memory."""
IS_PRESENT, FRAME = 1 << 63, (1 << 55) - 1
IS_HUGE, IS_ZERO_PAGE = 1 << 22, 1 << 24
"""KPF_THP and KPF_ZERO_PAGE of kernel-page-flags.h: a transparent huge page, and the kernel's own zero page."""


class ZeroPages(NamedTuple):
    """What of a guest's anonymous memory is there, and what of that is zero in huge pages, by estimate."""

    present_kib: int
    zero_kib: int


def sample_zero_pages(pid: int) -> ZeroPages | None:
    """Sample a process's memory; None where this user may not, or it has ended. It may hang, as `LimitedReads` says."""
    mappings = parse_anonymous(read_process(pid, "maps", MAX_BYTES))
    page_bytes, total_bytes = os.sysconf("SC_PAGE_SIZE"), sum(high - low for low, high in mappings)
    present = zero = 0
    try:
        with ExitStack() as stack:
            pagemap, memory, flags = (
                stack.enter_context(Path(path).open("rb", buffering=0)).fileno()
                for path in (f"/proc/{pid}/pagemap", f"/proc/{pid}/mem", "/proc/kpageflags")
            )
            for number in range(SAMPLES if mappings else 0):
                address = _address(mappings, int((number + random.random()) * total_bytes / SAMPLES))  # noqa: S311  # a sample
                entry = _word(pagemap, address // page_bytes)
                if entry & IS_PRESENT:
                    present += 1
                    is_huge = _word(flags, entry & FRAME) & (IS_HUGE | IS_ZERO_PAGE) == IS_HUGE
                    zero += is_huge and not any(os.pread(memory, page_bytes, address // page_bytes * page_bytes))
    except OSError:
        return None
    kib = total_bytes // 1024
    return ZeroPages(present_kib=kib * present // SAMPLES, zero_kib=kib * zero // SAMPLES)


def parse_anonymous(maps: bytes) -> list[tuple[int, int]]:
    """Return the large private mappings of no file in a /proc/PID/maps, as first address and end."""
    found = re.findall(rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) rw-p 00000000 00:00 0 *$", maps, re.MULTILINE)
    mappings = [(int(low, 16), int(high, 16)) for low, high in found]
    return [(low, high) for low, high in mappings if high - low >= MIN_MAPPING_BYTES]


def _address(mappings: list[tuple[int, int]], offset: int) -> int:
    for low, high in mappings:
        if offset < high - low:
            return low + offset
        offset -= high - low
    return mappings[-1][1] - 1


def _word(descriptor: int, number: int) -> int:
    return int.from_bytes(os.pread(descriptor, 8, number * 8), "little")
