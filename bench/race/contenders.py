"""The contenders that are nothing but settings of the kernel, and what every contender has to be able to do.

A contender begins before the first guest of a run starts, is told what has happened some twenty times a second, and
ends after the last sample. It writes to the KSM that script/bench has locked, and to nothing else. Those that are
processes are in peers.py; the list of all is there, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.race.ground import Ground
from bench.race.steps import Work
from bench.sim.real_memory import MergeableProcess
from demo.guests import KEPT_MIB, PayloadGuest

WARM_MIB, WARM_SCANS = 4, 5
FRUITLESS_SCANS = 10
"""More than smart_scan's 8: so many full scans without more savings, and there is no more to find."""
FRUITFUL_SHARE = 0.001
MERGED_SHARE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a contender may know: all guests of the work have been started, have filled their memory."""

    all_started: bool
    all_settled: bool


class Contender:
    """One contender in one run; this one leaves the kernel's defaults as they are.

    `concession` is what a reader has to know about how it was run.
    """

    concession = ""

    def begin(self, ground: Ground, work: Work) -> None:
        """Take up work; KSM is on, at the kernel's defaults."""

    @property
    def is_ready(self) -> bool:
        """Tell whether the clock may start."""
        return True

    def act(self, moment: Moment) -> None:
        """Do what is due now."""

    def end(self) -> None:
        """Stop; the ground is cleared afterwards."""

    @property
    def own_cpu_s(self) -> float | None:
        """Tell the CPU time of its own processes so far, None if it has none."""
        return None

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        """Tell what it decided and why, in order, as far as it says so."""
        return ()


class Default(Contender):
    concession = "100 pages every 20 ms for ever, as a kernel with run=1 and nobody to tune it"


class Off(Contender):
    concession = "run=0: no contender, but what the neighbour is compared with"

    def begin(self, ground: Ground, work: Work) -> None:
        ground.ksm.write(run=0)


class Flat(Contender):
    concession = "100,000 pages, sleep 0, for ever: the most that ksmd can"

    def begin(self, ground: Ground, work: Work) -> None:
        ground.ksm.write(pages_to_scan=100_000, sleep_millisecs=0)


class AdvisorBoot(Contender):
    """Switched on before any guest, and past its first full scan, to which it charges all of ksmd's CPU time so far."""

    concession = (
        "the kernel's advisor (scan-time, defaults) switched on before the first guest; since it takes all of the CPU "
        "time that ksmd ever used for that of its first full scan, which leads it to 10 pages where that is much, it "
        f"makes {WARM_SCANS} over a process of {WARM_MIB} MiB first: as if the machine had just been booted"
    )

    def begin(self, ground: Ground, work: Work) -> None:
        self._ksm = ground.ksm
        self._process: MergeableProcess | None = MergeableProcess(
            PayloadGuest(name="warm", memory_mib=WARM_MIB + KEPT_MIB, own_mib=WARM_MIB)
        )
        self._ksm.write(advisor_mode="scan-time")
        self._until_scans = self._ksm.read("full_scans") + WARM_SCANS

    @property
    def is_ready(self) -> bool:
        if self._process is not None and self._ksm.read("full_scans") >= self._until_scans:
            self.end()
        return self._process is None

    def end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class AdvisorLate(Contender):
    concession = "the kernel's advisor (scan-time, defaults) switched on when the last guest has been started"

    def __init__(self) -> None:
        self._ground: Ground | None = None

    def begin(self, ground: Ground, work: Work) -> None:
        self._ground = ground

    def act(self, moment: Moment) -> None:
        if moment.all_started and self._ground is not None:
            self._ground.ksm.write(advisor_mode="scan-time")
            self._ground = None


class Clairvoyant(Contender):
    """Scans flat out from the moment in which the last guest has settled until 99 % is merged."""

    concession = (
        "knows when the last guest has filled its memory and how much can merge: flat out between the two, nothing "
        f"else; where 99 % is out of reach it ends after {FRUITLESS_SCANS} full scans that brought no more"
    )

    def __init__(self) -> None:
        self._scanning: bool | None = None
        self._best_pages = 0
        self._best_at_scan = 0

    def begin(self, ground: Ground, work: Work) -> None:
        self._ksm = ground.ksm
        self._enough_pages = round(work.expected_sharing_pages * MERGED_SHARE)
        self._ksm.write(pages_to_scan=0, sleep_millisecs=1000)

    def act(self, moment: Moment) -> None:
        if self._scanning is None and moment.all_settled:
            # Smaller batches than Flat's: within one it could not stop, and sleep 0 makes them as fast.
            self._ksm.write(pages_to_scan=10_000, sleep_millisecs=0)
            self._scanning = True
            self._best_at_scan = self._ksm.read("full_scans")
        elif self._scanning and self._is_done():
            self._ksm.write(pages_to_scan=0, sleep_millisecs=10_000)
            self._scanning = False

    def _is_done(self) -> bool:
        pages, scan = self._ksm.read("pages_sharing"), self._ksm.read("full_scans")
        if pages > self._best_pages + self._enough_pages * FRUITFUL_SHARE:
            self._best_pages, self._best_at_scan = pages, scan
        return pages >= self._enough_pages or scan > self._best_at_scan + FRUITLESS_SCANS
