"""What a process holds: descriptors, threads and memory, to see whether they grow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


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
