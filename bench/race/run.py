"""One run: one contender over one work, from a cleared ground to a `Run`.

The order is the same for all: clear, let the guests settle that have long been there, begin the contender, wait until
it is ready, start the clock and the first guest, follow the work's steps, take samples to the end. Whatever fails ends
the contender first.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from bench.race.contenders import Contender, Moment
from bench.race.ground import Ground, GuestLife
from bench.race.works import Work
from bench.steps import Drift, Start
from demo.guests import PAGES_PER_MIB
from tests.lab.ksm import Ksm, find_ksmd, wait_until
from virtksm.cli.progress import Progress
from virtksm.host.local_facts import parse_vmstat

STEP_S = 0.05
LEAD_S = 5.0
READY_TIMEOUT_S = 120.0
CHECK_EVERY_S = 10.0
SAMPLE_EVERY_S = 0.25
MIB = 1 << 20
VMSTAT = Path("/proc/vmstat")
NEIGHBOUR = """
import sys, time, zlib
piece = bytes(range(256)) * 16384
with open(sys.argv[1], "w", buffering=1) as lines:
    while True:
        began_ns = time.monotonic_ns()
        for _ in range(5):
            zlib.crc32(piece)
        lines.write(f"{began_ns / 1e9:.3f} {(time.monotonic_ns() - began_ns) / 1e6:.3f}\\n")
        time.sleep(0.25)
"""
"""A program of its own that times a fixed piece of work, on the cores that ksmd and the guests use, too.

A piece is the CRC of 4 MiB five times, about 5 ms of computing and reading memory. It takes about 2 % of a core. A line
a piece: CLOCK_MONOTONIC in seconds at its beginning, and the ms that it took.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The kernel's KSM at one moment, in seconds since the first guest's start.

    `ksmd_cpu_s` is ksmd's CPU time since the machine's boot. `cow_ksm` counts merged pages that were written to; None
    where the kernel does not count. `resident_mib` is what all guests hold, shared pages in each, `available_mib` what
    the host has (MemAvailable).
    """

    at_s: float
    pages_sharing: int
    pages_shared: int
    cow_ksm: int | None
    ksmd_cpu_s: float
    is_idle: bool
    resident_mib: float = 0.0
    available_mib: float = 0.0

    @property
    def used_mib(self) -> float:
        """Tell what guests take of the host's memory: also what came free and no counter of KSM's tells."""
        return self.resident_mib - self.pages_sharing / PAGES_PER_MIB


class Sampler:
    """Collects samples from entering to leaving; times count from `began_s`, of CLOCK_MONOTONIC.

    Raises LookupError when made where ksmd is not to be seen, and on leaving what went wrong in its thread.
    """

    def __init__(self, began_s: float, resident_mib: Callable[[], float]) -> None:
        self._began_s = began_s
        self._resident_mib = resident_mib
        self._ksm = Ksm()
        self._schedstat = find_ksmd() / "schedstat"
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
            cow_ksm=parse_vmstat(VMSTAT.read_text(encoding="ascii"), "cow_ksm"),
            ksmd_cpu_s=int(self._schedstat.read_text(encoding="ascii").split()[0]) / 1e9,
            is_idle=self._ksm.read("run") != 1 or self._ksm.read("pages_to_scan") == 0,
            resident_mib=self._resident_mib(),
            available_mib=psutil.virtual_memory().available / MIB,
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
            while not self._ending.wait(SAMPLE_EVERY_S):
                self.samples.append(self.read(time.monotonic() - self._began_s))
        except (OSError, ValueError) as error:
            self._failure = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run gave. All times are seconds since the first guest's start.

    `neighbour` are pairs of the time and the ms that the neighbour's piece of work took then. `decisions` are an
    agent's, in order, and `told_mib` is what it said last that is saved. `merged_pages` are merged in the end: KSM's
    own counters learn of a write at ksmd's next visit, for which an idle one never comes.
    """

    work: Work
    contender: str
    guests: Sequence[GuestLife]
    samples: Sequence[Sample]
    neighbour: Sequence[tuple[float, float]]
    decisions: Sequence[Mapping[str, Any]] = ()
    told_mib: float | None = None
    merged_pages: int | None = None

    @property
    def last_settled_s(self) -> float:
        """Tell when the last guest had filled its memory; the run's end, if one never did."""
        return max((self.work.length_s if guest.settled_s is None else guest.settled_s) for guest in self.guests)


def run_work(ground: Ground, work: Work, name: str, contender: Contender) -> Run:
    """Run one contender over one work, `work.length_s` and some seconds before."""
    ground.clear()
    ground.ksm.write(use_zero_pages=int(work.use_zero_pages))
    if work.already:
        ground.settle(work.already)
    times = ground.folder / "neighbour"
    with ExitStack() as stack:
        stack.enter_context(_neighbour(times))
        stack.callback(contender.end)
        contender.begin(ground, work)
        time.sleep(LEAD_S)
        wait_until(lambda: contender.is_ready, READY_TIMEOUT_S, f"{name} to be ready")
        passes_before, began_s = len(contender.decisions()), time.monotonic()
        with Sampler(began_s, ground.resident_mib) as sampler:
            _follow(ground, work, contender, began_s)
        passes, merged_pages = contender.decisions()[passes_before:], ground.merged_pages()
    return Run(
        work=work,
        contender=name,
        guests=ground.guests,
        samples=sampler.samples,
        neighbour=parse_times(times.read_text(encoding="ascii"), began_s),
        decisions=[line["decision"] for line in passes],
        told_mib=passes[-1]["sensed"]["saved_bytes"] / MIB if passes else None,
        merged_pages=merged_pages,
    )


def _follow(ground: Ground, work: Work, contender: Contender, began_s: float) -> None:
    due = [step for step in sorted(work.steps, key=lambda step: step.at_s) if not isinstance(step, Drift)]
    starts = sum(isinstance(step, Start) for step in due)
    check_s = 0.0
    progress = Progress()
    while (now_s := time.monotonic() - began_s) < work.length_s:
        progress.show(f"{now_s:.0f} of {work.length_s:.0f} s")
        if now_s >= check_s:
            ground.check_alone()
            check_s = now_s + CHECK_EVERY_S
        while due and due[0].at_s <= now_s:
            step = due.pop(0)
            if isinstance(step, Start):
                ground.start(step.guest)
            else:
                ground.stop(step.name)
        ground.note_settled(began_s=began_s)
        all_started = len(ground.guests) == starts
        all_settled = all_started and all(guest.settled_s is not None for guest in ground.guests)
        contender.act(Moment(all_started=all_started, all_settled=all_settled))
        time.sleep(STEP_S)
    progress.clear()
    ground.check_alone()


@contextmanager
def _neighbour(times: Path) -> Iterator[None]:
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-I", "-S", "-c", NEIGHBOUR, str(times)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def parse_times(text: str, began_s: float) -> list[tuple[float, float]]:
    """Read what the neighbour wrote, as (seconds since `began_s`, ms); a line cut short by its end is left out."""
    rows = [line.split() for line in text.split("\n")[:-1]]
    return [(round(float(at_s) - began_s, 3), float(ms)) for at_s, ms in rows if float(at_s) >= began_s]
