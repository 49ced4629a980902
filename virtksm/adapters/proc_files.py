"""Files of /proc/PID, and numbers as the kernel writes them. Reads only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from virtksm.processes import ProcessKsm

MAX_BYTES = 1 << 17
"""Most of a process's command line that is read: anybody's may be endless, and -uuid is in QEMU's first KiB."""
NUMBER = "[0-9]{1,20}"
"""What a 64-bit counter looks like; Python would take other scripts' digits, and refuse too many of them."""


def read_private(pid: int, name: str) -> str | None:
    """Return a file of /proc/PID that its owner and root may read; None to others, "" where the kernel has no such."""
    try:
        with open(f"{psutil.PROCFS_PATH}/{pid}/{name}", encoding="ascii", errors="replace") as file:
            return file.read(MAX_BYTES)
    except PermissionError:
        return None
    except OSError:
        return ""


def read_process(pid: int, name: str) -> bytes:
    """Return a file of /proc/PID, nothing if the process has ended; a quarter of what a psutil.Process costs."""
    try:
        with open(f"{psutil.PROCFS_PATH}/{pid}/{name}", "rb") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return b""


def parse_counter(text: str) -> int | None:
    """Parse a file that holds one number; None if it does not."""
    return int(text) if re.fullmatch(rf"{NUMBER}\n?", text) else None


def parse_signed(text: str) -> int | None:
    """Parse a file that holds one number, negative perhaps; None if it does not."""
    return int(text) if re.fullmatch(rf"-?{NUMBER}\n?", text) else None


def parse_process_ksm(stat: str, merging_pages: str = "") -> ProcessKsm:
    """Parse /proc/PID/ksm_stat, and /proc/PID/ksm_merging_pages for kernels whose ksm_stat lacks it (before 6.4)."""
    from virtksm.processes import ProcessKsm  # making it is start-up time, and no pass asks

    fields = dict(re.findall(r"^(\w+):? (\S+)$", stat, re.MULTILINE))

    def answer(name: str) -> bool | None:
        return {"yes": True, "no": False}.get(fields.get(name, ""))

    return ProcessKsm(
        rmap_items=parse_counter(fields.get("ksm_rmap_items", "")),
        zero_pages=parse_counter(fields.get("ksm_zero_pages", "")),
        merging_pages=parse_counter(fields.get("ksm_merging_pages", merging_pages)),
        profit_bytes=parse_signed(fields.get("ksm_process_profit", "")),
        merges_any=answer("ksm_merge_any"),
        is_mergeable=answer("ksm_mergeable"),
    )


def parse_anonymous_kib(statm: bytes, page_kib: int) -> int:
    """Return a process's resident memory that is no file's, by its /proc/PID/statm; 0 for what is none (it ended)."""
    fields = statm.split()
    counts = [parse_counter(field.decode("ascii", "replace")) for field in fields[1:3]]  # resident, shared
    if len(counts) < 2 or counts[0] is None or counts[1] is None:
        return 0
    return max(counts[0] - counts[1], 0) * page_kib
