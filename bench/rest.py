"""What the agent costs while nothing happens: memory, wake-ups, CPU time, from /proc and its CPU clock.

A wake-up is a voluntary context switch of one of its threads. Threads that live for one pass only (one a minute with
the default configuration) are in the CPU time, but not in the wake-ups.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The agent over `seconds` of quiet; `wakeups_per_s` by thread name, memory at the end."""

    seconds: float
    passes: int
    rss_mib: float
    pss_mib: float
    cpu_seconds: float
    wakeups: Mapping[str, int]

    @property
    def wakeups_per_s(self) -> float:
        return sum(self.wakeups.values()) / self.seconds

    @property
    def cpu_seconds_per_hour(self) -> float:
        return self.cpu_seconds * 3600 / self.seconds


def read_rest(pid: int, seconds: float, passes: int = 0) -> Rest:
    """Watch a process for some seconds; raises OSError when it ends meanwhile."""
    began_s, cpu_ns, switches = time.monotonic(), process_cpu_ns(pid), read_switches(pid)
    time.sleep(seconds)
    ended_s, ended_cpu_ns, ended_switches = time.monotonic(), process_cpu_ns(pid), read_switches(pid)
    return Rest(
        seconds=ended_s - began_s,
        passes=passes,
        rss_mib=read_memory_mib(pid, "Rss"),
        pss_mib=read_memory_mib(pid, "Pss"),
        cpu_seconds=(ended_cpu_ns - cpu_ns) / 1e9,
        wakeups={
            f"{name}/{tid}": count - switches.get((tid, name), 0) for (tid, name), count in ended_switches.items()
        },
    )


def process_cpu_ns(pid: int) -> int:
    """Read a process's CPU time in ns, ended threads included."""
    # As clock_getcpuclockid(3) makes the clock's id of the pid.
    return time.clock_gettime_ns(~pid << 3 | 2)


def read_switches(pid: int) -> dict[tuple[int, str], int]:
    """Read the voluntary context switches of each thread, by (tid, name)."""
    found = {}
    for task in (PROC / str(pid) / "task").iterdir():
        try:
            status = (task / "status").read_text(encoding="utf-8")
        except OSError:  # it ended meanwhile
            continue
        fields = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
        found[int(task.name), fields["Name"]] = int(fields["voluntary_ctxt_switches"])
    return found


def read_memory_mib(pid: int, name: str) -> float:
    """Read a sum over a process's memory, such as Rss or Pss, in MiB (smaps_rollup)."""
    text = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    (kib,) = re.findall(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(kib) / 1024
