"""What a process costs while nothing happens: memory, wake-ups, CPU time, from /proc and its CPU clock.

A wake-up is a voluntary context switch of one of its threads. Threads that live for one pass only (one a minute with
the default configuration) are in the CPU time, but not in the wake-ups.
"""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A process over `seconds` of quiet; wake-ups by thread, memory at the end."""

    seconds: float
    rss_mib: float
    cpu_s: float
    wakeups: Mapping[str, int]

    @property
    def wakeups_per_s(self) -> float:
        return sum(self.wakeups.values()) / self.seconds


def watch_rest(pid: int, seconds: float) -> Rest:
    """Watch a process for some seconds; raises OSError when it ends meanwhile."""
    began_s, cpu_s, switches = time.monotonic(), process_cpu_s(pid), read_switches(pid)
    time.sleep(seconds)
    return Rest(
        seconds=time.monotonic() - began_s,
        cpu_s=process_cpu_s(pid) - cpu_s,
        wakeups={thread: count - switches.get(thread, 0) for thread, count in read_switches(pid).items()},
        rss_mib=read_rss_mib(pid),
    )


def process_cpu_s(pid: int) -> float:
    """Read a process's CPU time, ended threads included."""
    # As clock_getcpuclockid(3) makes the clock's id of the pid.
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e9


def read_switches(pid: int) -> dict[str, int]:
    """Read the voluntary context switches of each thread, by name/tid."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it ended meanwhile
            status = (task / "status").read_text(encoding="utf-8")
            fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
            found[f"{fields['Name']}/{task.name}"] = int(fields["voluntary_ctxt_switches"])
    return found


def read_rss_mib(pid: int) -> float:
    """Read a process's resident memory (smaps_rollup)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    (kib,) = re.findall(r"^Rss:\s+(\d+) kB$", text, re.MULTILINE)
    return int(kib) / 1024
