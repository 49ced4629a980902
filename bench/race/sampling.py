"""The race's eyes: KSM's counters and settings and ksmd's CPU time, about four times a second, from a thread.

Read only. ksmd's CPU time is /proc/PID/schedstat's, in nanoseconds, where the kernel has it, else the ticks of
/proc/PID/stat (10 ms). One look costs well under a millisecond.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Self

from bench.race.records import Sample
from tests.lab.ksm import KSM_ROOT
from virtksm.host.local_facts import parse_vmstat

PROC = Path("/proc")
EVERY_S = 0.25


class NoKsmd(Exception):
    """No process of that name is to be seen: another pid namespace (a container)."""


class Eyes:
    """Reads one sample at a time; raises NoKsmd when made where ksmd is not to be seen."""

    def __init__(self, ksm: Path = KSM_ROOT, proc: Path = PROC) -> None:
        self._ksm = ksm
        self._proc = proc
        self._ksmd = find_ksmd(proc)

    def read(self, at_s: float) -> Sample:
        """Read everything now; `at_s` is the time to write beside it. Raises OSError."""
        return Sample(
            at_s=round(at_s, 3),
            pages_sharing=self._number("pages_sharing"),
            pages_shared=self._number("pages_shared"),
            full_scans=self._number("full_scans"),
            pages_scanned=self._number_if_there("pages_scanned"),
            pages_skipped=self._number_if_there("pages_skipped"),
            cow_ksm=parse_vmstat((self._proc / "vmstat").read_text(encoding="ascii"), "cow_ksm"),
            ksmd_cpu_s=round(self.read_ksmd_cpu_s(), 6),
            run=self._number("run"),
            pages_to_scan=self._number("pages_to_scan"),
            sleep_millisecs=self._number("sleep_millisecs"),
        )

    def read_ksmd_cpu_s(self) -> float:
        """Read ksmd's CPU time since boot."""
        schedstat = self._ksmd / "schedstat"
        if schedstat.exists():
            return int(schedstat.read_text(encoding="ascii").split()[0]) / 1e9
        return parse_stat_cpu_ticks((self._ksmd / "stat").read_text(encoding="ascii")) / os.sysconf("SC_CLK_TCK")

    def _number(self, name: str) -> int:
        return int((self._ksm / name).read_text(encoding="ascii"))

    def _number_if_there(self, name: str) -> int | None:
        return self._number(name) if (self._ksm / name).exists() else None


class Sampler:
    """Collects samples from entering to leaving; times count from `began_s`, of CLOCK_MONOTONIC.

    What went wrong in its thread is raised on leaving.
    """

    def __init__(self, eyes: Eyes, began_s: float) -> None:
        self._eyes = eyes
        self._began_s = began_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="sampler")
        self._failure: OSError | ValueError | None = None
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self.samples.append(self._eyes.read(0.0))
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _collect(self) -> None:
        try:
            while not self._ending.wait(EVERY_S):
                self.samples.append(self._eyes.read(time.monotonic() - self._began_s))
        except (OSError, ValueError) as error:
            self._failure = error


def find_ksmd(proc: Path) -> Path:
    """Find ksmd's folder in /proc; raises NoKsmd."""
    for comm in proc.glob("[0-9]*/comm"):
        try:
            name = comm.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if name == "ksmd\n":
            return comm.parent
    raise NoKsmd(f"no ksmd in {proc}: its CPU time cannot be measured here")


def parse_stat_cpu_ticks(text: str) -> int:
    """Take utime + stime, in clock ticks, of /proc/PID/stat (proc(5): fields 14 and 15)."""
    after_name = text.rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])
