"""One run: one contender over one work, from a cleared ground to a `Run`.

The order is the same for all: clear, let the guests settle that have long been there, begin the contender, wait until
it is ready, start the clock and the first guest, follow the work's steps, take samples to the end. Whatever fails ends
the contender first.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.race import neighbour
from bench.race.contenders import Contender, Moment
from bench.race.ground import Ground, GuestLife
from bench.race.sampling import Sample, Sampler
from bench.race.works import Work
from bench.steps import Start
from tests.lab.ksm import wait_until
from virtksm.cli.progress import Progress

STEP_S = 0.05
LEAD_S = 5.0
READY_TIMEOUT_S = 120.0
CHECK_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run gave. All times are seconds since the first guest's start.

    `neighbour` are pairs of the time and the ms that the neighbour's piece of work took then. `decisions` are an
    agent's, in order.
    """

    work: Work
    contender: str
    guests: Sequence[GuestLife]
    samples: Sequence[Sample]
    neighbour: Sequence[tuple[float, float]]
    decisions: Sequence[Mapping[str, Any]] = ()

    @property
    def last_settled_s(self) -> float:
        """Tell when the last guest had filled its memory; the run's end, if one never did."""
        return max((self.work.length_s if guest.settled_s is None else guest.settled_s) for guest in self.guests)


def run_work(ground: Ground, work: Work, name: str, contender: Contender) -> Run:
    """Run one contender over one work, `work.length_s` and some seconds before."""
    ground.clear()
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
        with Sampler(began_s) as sampler:
            _follow(ground, work, contender, began_s)
        decisions = [line["decision"] for line in contender.decisions()[passes_before:]]
    return Run(
        work=work,
        contender=name,
        guests=ground.guests,
        samples=sampler.samples,
        neighbour=neighbour.parse_times(times.read_text(encoding="ascii"), began_s),
        decisions=decisions,
    )


def _follow(ground: Ground, work: Work, contender: Contender, began_s: float) -> None:
    due = sorted(work.steps, key=lambda step: step.at_s)
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
                ground.start(step.guest, began_s=began_s)
            else:
                ground.stop(step.name, began_s=began_s)
        ground.note_settled(began_s=began_s)
        all_started = len(ground.guests) == starts
        all_settled = all_started and all(guest.settled_s is not None for guest in ground.guests)
        contender.act(Moment(all_started=all_started, all_settled=all_settled))
        time.sleep(STEP_S)
    progress.clear()
    ground.check_alone()


@contextmanager
def _neighbour(times: Path) -> Iterator[None]:
    # The interpreter bare, and our own path on its command line, by which script/bench finds what was left over.
    process = subprocess.Popen([sys.executable, "-I", "-S", neighbour.__file__, str(times)], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
