"""One run: one contender over one work, from a cleared ground to a report.

In: a ground, a work, a contender. Out: a `Record`. The order is the same for all: clear, let the guests settle that
have long been there, begin the contender, wait until it is ready, start the clock and the first guest, follow the
work's steps, take samples to the end. Whatever fails ends the contender first.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.race import neighbour
from bench.race.contenders import Contender, Moment
from bench.race.ground import Ground
from bench.race.records import Record
from bench.race.sampling import Eyes, Sampler
from bench.race.steps import Step, Work
from bench.steps import Start

TICK_S = 0.05
LEAD_S = 5.0
READY_TIMEOUT_S = 120.0
LOOK_AROUND_EVERY_S = 10.0


class Unready(Exception):
    """A contender was not ready for the clock in time."""


def run_work(
    ground: Ground,
    work: Work,
    name: str,
    contender: Contender,
    *,
    quick: bool,
    machine: Mapping[str, object],
    revision: str,
) -> Record:
    """Run one contender over one work, `work.length_s` and some seconds before."""
    ground.clear()
    if work.already:
        ground.settle(work.already)
    eyes = Eyes()
    times = ground.folder / "neighbour"
    with _neighbour(times), _begun(contender, ground, work):
        _wait_ready(contender)
        began_utc, own_cpu_before_s = datetime.now(UTC), contender.own_cpu_s
        began_s = time.monotonic()
        with Sampler(eyes, began_s) as sampler:
            _follow(ground, work, contender, began_s)
        own_cpu_s = contender.own_cpu_s
        decisions = contender.decisions()
    return Record(
        work=work.name,
        told=work.told,
        contender=name,
        quick=quick,
        length_s=work.length_s,
        busy_until_s=work.busy_until_s,
        savings_until_s=work.savings_until_s,
        expected_sharing_pages=work.expected_sharing_pages,
        began_utc=began_utc.isoformat(timespec="seconds"),
        revision=revision,
        machine=machine,
        guests=ground.guests,
        samples=sampler.samples,
        neighbour=neighbour.parse_times(times.read_text(encoding="ascii"), began_s),
        own_cpu_s=None if own_cpu_s is None else own_cpu_s - (own_cpu_before_s or 0.0),
        decisions=_since(decisions, began_utc.timestamp()),
    )


def _follow(ground: Ground, work: Work, contender: Contender, began_s: float) -> None:
    due: list[Step] = sorted(work.steps, key=lambda step: step.at_s)
    starts = sum(isinstance(step, Start) for step in due)
    look_around_s = 0.0
    while (now_s := time.monotonic() - began_s) < work.length_s:
        if now_s >= look_around_s:
            ground.check_alone()
            look_around_s = now_s + LOOK_AROUND_EVERY_S
        while due and due[0].at_s <= now_s:
            step = due.pop(0)
            if isinstance(step, Start):
                ground.start(step.guest, began_s=began_s)
            else:
                ground.stop(step.name, began_s=began_s)
        ground.look(began_s=began_s)
        all_started = len(ground.guests) == starts
        all_settled = all_started and all(guest.settled_s is not None for guest in ground.guests)
        contender.act(Moment(all_started=all_started, all_settled=all_settled))
        time.sleep(TICK_S)
    ground.check_alone()


def _wait_ready(contender: Contender) -> None:
    began_s = time.monotonic()
    time.sleep(LEAD_S)
    while not contender.is_ready:
        if time.monotonic() - began_s > READY_TIMEOUT_S:
            raise Unready(f"not ready {READY_TIMEOUT_S:g} s after it began")
        time.sleep(TICK_S)


@contextmanager
def _begun(contender: Contender, ground: Ground, work: Work) -> Iterator[None]:
    try:
        contender.begin(ground, work)
        yield
    finally:
        contender.end()


@contextmanager
def _neighbour(times: Path) -> Iterator[None]:
    # The interpreter bare, and our own path on its command line, by which script/bench finds what was left over.
    process = subprocess.Popen([sys.executable, "-I", "-S", neighbour.__file__, str(times)], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _since(decisions: Sequence[Mapping[str, Any]], began_unix_s: float) -> list[dict[str, Any]]:
    return [
        {"at_s": round(decision["unix_s"] - began_unix_s, 3)}
        | {name: value for name, value in decision.items() if name != "unix_s"}
        for decision in decisions
    ]
