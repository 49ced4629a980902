"""KSM's counters and settings and ksmd's CPU time, about four times a second, from a thread. Read only."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab.ksm import Ksm, find_ksmd
from virtksm.host.local_facts import parse_vmstat

VMSTAT = Path("/proc/vmstat")
EVERY_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The kernel's KSM at one moment, in seconds since the first guest's start.

    `ksmd_cpu_s` is ksmd's CPU time since the machine's boot. `cow_ksm` counts merged pages that were written to; None
    where the kernel does not count.
    """

    at_s: float
    pages_sharing: int
    pages_shared: int
    cow_ksm: int | None
    ksmd_cpu_s: float
    is_idle: bool


class Sampler:
    """Collects samples from entering to leaving; times count from `began_s`, of CLOCK_MONOTONIC.

    Raises LookupError when made where ksmd is not to be seen, and on leaving what went wrong in its thread.
    """

    def __init__(self, began_s: float, ksm: Ksm | None = None, ksmd: Path | None = None, vmstat: Path = VMSTAT) -> None:
        self._began_s = began_s
        self._ksm = ksm or Ksm()
        self._schedstat = (ksmd or find_ksmd()) / "schedstat"
        self._vmstat = vmstat
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="sampler")
        self._failure: OSError | ValueError | None = None
        self.samples: list[Sample] = []

    def read(self, at_s: float) -> Sample:
        """Read everything now; `at_s` is the time to write beside it."""
        return Sample(
            at_s=at_s,
            pages_sharing=self._ksm.read("pages_sharing"),
            pages_shared=self._ksm.read("pages_shared"),
            cow_ksm=parse_vmstat(self._vmstat.read_text(encoding="ascii"), "cow_ksm"),
            ksmd_cpu_s=int(self._schedstat.read_text(encoding="ascii").split()[0]) / 1e9,
            is_idle=self._ksm.read("run") != 1 or self._ksm.read("pages_to_scan") == 0,
        )

    def __enter__(self) -> Self:
        self.samples.append(self.read(0.0))
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
                self.samples.append(self.read(time.monotonic() - self._began_s))
        except (OSError, ValueError) as error:
            self._failure = error
