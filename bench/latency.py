"""How soon a guest's start or stop has changed KSM's settings, and what the agent costs at rest.

In: numbers of guests, of events, of storms. Out: a table on stdout, all samples as JSON if wanted, and exit code 1 if
a goal is missed or an event failed. With each number of real (paused) guests running: isolated events beside
`virsh node-memory-tune` (isolated.py), storms (storm.py), and an agent with its default configuration left in peace
(rest.py). Started by script/bench, which locks and restores KSM; `virsh`'s value is put back by this program.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench.figures import Goal, Summary, read_machine, summarize
from bench.isolated import Isolated, measure_isolated
from bench.observe import Events, KernelValue
from bench.rest import Rest, read_memory_mib, read_rest
from bench.stage import STEPPING_LAW, Agent, Guests, private_libvirtd
from bench.storm import WINDOW_MS, Storms, storm_of_guests, storm_of_pokes
from tests.lab.libvirtd import PrivateLibvirtd
from virtksm.host.libvirt_events import EventLoop

P99_GOAL_MS = 20.0
STORM_GOAL_MS = WINDOW_MS + 20.0
RSS_GOAL_MIB = 45.0
WAKEUPS_GOAL_PER_S = 1.0
STORM_FROM_GUESTS = 50
"""Storms are measured from this many guests on, or with the most there are."""
FIRST_CALM_S = 5.0
EVENTS_MEANT = 200


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/bench latency", description="Time guest events to KSM's settings.")
    parser.add_argument("--guests", default="1,50,150", help="numbers of guests, ascending (default %(default)s)")
    parser.add_argument("--events", type=int, default=EVENTS_MEANT, help="isolated events with each (%(default)s)")
    parser.add_argument("--storms", type=int, default=10, help="storms of each kind (%(default)s)")
    parser.add_argument("--storm-guests", type=int, default=8, help="guests started and stopped in each (%(default)s)")
    parser.add_argument("--rest-s", type=float, default=60.0, help="seconds at rest, 0 for none (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args(arguments)
    options.guests = [int(text) for text in options.guests.split(",")]
    if options.guests != sorted(options.guests) or options.guests[0] < 0 or options.events < 1:
        parser.error("--guests must ascend from 0 or more, --events be 1 or more")
    return options


class Benchmark:
    """One run over one libvirtd: prints as it goes, and collects goals, failures and samples."""

    def __init__(self, options: argparse.Namespace, libvirtd: PrivateLibvirtd) -> None:
        self._options = options
        self._libvirtd = libvirtd
        self._guests = Guests(libvirtd.uri)
        self._kernel = KernelValue()
        self.goals: list[Goal] = []
        self.failures: list[str] = []
        self.samples: list[dict[str, object]] = []

    def run(self) -> None:
        for count in self._options.guests:
            began_s = time.monotonic()
            self._guests.grow_to(count)
            print(f"\n{count} guests ({time.monotonic() - began_s:.0f} s to start those that were missing)", flush=True)
            self._events_with(count)
            if self._options.rest_s > 0:
                self._rest_with(count)

    def _events_with(self, count: int) -> None:
        events = Events(self._libvirtd.uri)
        folder = self._libvirtd.root / f"a{count}"
        try:
            with Agent(folder, self._libvirtd.uri, STEPPING_LAW) as agent:
                isolated = measure_isolated(
                    uri=self._libvirtd.uri,
                    agent=agent,
                    guests=self._guests,
                    events=events,
                    kernel=self._kernel,
                    count=self._options.events,
                )
                self._tell_isolated(count, isolated)
                if self._options.events % 2:
                    self._guests.stop("extra")
                if self._options.storms and count >= min(STORM_FROM_GUESTS, self._options.guests[-1]):
                    self._storms_with(count, agent, events)
                rss_mib = read_memory_mib(agent.pid, "Rss")
                print(f"  agent's RSS after all that: {rss_mib:.1f} MiB")
                self.samples.append({"guests": count, "rss_mib_after_events": rss_mib})
        finally:
            events.close()

    def _storms_with(self, count: int, agent: Agent, events: Events) -> None:
        options = self._options
        self._tell_storms(
            count,
            storm_of_guests(
                guests=self._guests,
                events=events,
                kernel=self._kernel,
                storms=options.storms,
                extra=options.storm_guests,
            ),
        )
        self._tell_storms(count, storm_of_pokes(agent=agent, kernel=self._kernel, storms=options.storms))

    def _rest_with(self, count: int) -> None:
        with Agent(self._libvirtd.root / f"r{count}", self._libvirtd.uri, "") as agent:
            time.sleep(FIRST_CALM_S)
            passes = len(agent.passes())
            rest = read_rest(agent.pid, self._options.rest_s)
            self._tell_rest(count, rest, len(agent.passes()) - passes)

    def _tell_isolated(self, count: int, isolated: Isolated) -> None:
        self._fail(count, isolated.failures)
        self.samples.append({"guests": count, "isolated": asdict(isolated)})
        print(f"  {isolated.events} isolated events, {len(isolated.failures)} failures; ms:")
        for name, series in (
            ("delivery to kernel", isolated.delivery_to_kernel_ms),
            ("agent's own figure", isolated.agents_own_ms),
            ("of it, the pass", isolated.pass_ms),
            ("virsh node-memory-tune", isolated.virsh_ms),
        ):
            if series:
                print(f"    {name:24}{in_words(summarize(series))}", flush=True)
        if isolated.delivery_to_kernel_ms:
            p99_ms = summarize(isolated.delivery_to_kernel_ms).p99
            self._goal(f"{count} guests, p99 delivery to kernel", p99_ms, P99_GOAL_MS, "ms")

    def _tell_storms(self, count: int, storms: Storms) -> None:
        self._fail(count, storms.failures)
        self.samples.append({"guests": count, "storms": asdict(storms)})
        events, passes, seconds = sum(storms.events), sum(storms.passes), sum(storms.seconds)
        print(
            f"  {len(storms.events)} storms of {storms.kind}: {events} events in {seconds:.1f} s, {passes} passes, "
            f"{len(storms.failures)} failures; last event to final state, ms:"
        )
        if storms.settled_ms:
            summary = summarize(storms.settled_ms)
            print(f"    {'':24}{in_words(summary)}", flush=True)
            self._goal(f"{count} guests, storm of {storms.kind}, longest", summary.most, STORM_GOAL_MS, "ms")

    def _tell_rest(self, count: int, rest: Rest, passes: int) -> None:
        self.samples.append({"guests": count, "rest": asdict(rest), "passes": passes})
        print(
            f"  at rest for {rest.seconds:.0f} s (default configuration, {passes} passes): RSS {rest.rss_mib:.1f} MiB "
            f"(PSS {rest.pss_mib:.1f}), {rest.wakeups_per_s:.2f} wake-ups/s, {rest.cpu_seconds * 1000:.0f} ms CPU = "
            f"{rest.cpu_seconds_per_hour:.1f} s an hour"
        )
        by_thread = ", ".join(f"{name} {times}" for name, times in rest.wakeups.items())
        print(f"    wake-ups by thread: {by_thread}", flush=True)
        self._goal(f"{count} guests, RSS at rest", rest.rss_mib, RSS_GOAL_MIB, "MiB")
        self._goal(f"{count} guests, wake-ups at rest", rest.wakeups_per_s, WAKEUPS_GOAL_PER_S, "a second")

    def _goal(self, what: str, measured: float, at_most: float, unit: str) -> None:
        self.goals.append(Goal(what=what, measured=measured, at_most=at_most, unit=unit))

    def _fail(self, count: int, failures: list[str]) -> None:
        self.failures += [f"{count} guests: {failure}" for failure in failures]


def in_words(summary: Summary) -> str:
    return (
        f"median {summary.median:8.2f}   p99 {summary.p99:8.2f}   max {summary.most:8.2f}   min {summary.least:8.2f}   "
        f"(n={summary.samples})"
    )


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    machine = read_machine()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    loop = EventLoop()
    loop.start()  # before any connection is opened
    with private_libvirtd() as libvirtd:
        benchmark = Benchmark(options, libvirtd)
        benchmark.run()
    print("\n" + "\n".join(goal.line() for goal in benchmark.goals))
    print("\n".join(["", *(f"FAILED {failure}" for failure in benchmark.failures)]), end="")
    if options.events < EVENTS_MEANT:
        print(f"note: {options.events} events are fewer than the {EVENTS_MEANT} that a p99 here is meant to have")
    if options.json is not None:
        report = {
            "machine": machine,
            "options": {name: str(value) for name, value in vars(options).items()},
            "goals": [goal.as_dict() for goal in benchmark.goals],
            "failures": benchmark.failures,
            "samples": benchmark.samples,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if benchmark.failures or not all(goal.met for goal in benchmark.goals) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
