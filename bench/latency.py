"""How soon a guest's start or stop has changed KSM's settings, and what the agent costs at rest.

In: numbers of guests and of events. Out: figures on stdout, and exit code 1 if a goal is missed or an event
failed. With each number of real (paused) guests running:
- isolated events: starts and stops of one extra guest take turns, a second or more apart, from libvirt's delivery to
  the changed value in the kernel. Each must change pages_to_scan by exactly one page (STEPPING_LAW), once. Between two
  of them `virsh node-memory-tune` sets the same parameter; its value is put back before the next pass;
- an agent with its default configuration, left in peace.
Started by script/bench, which locks and restores KSM.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.figures import Goal, in_words, percentile, tell_goals, tell_machine
from bench.observe import Events, KernelValue, time_virsh
from bench.rest import read_rss_mib, watch_rest
from bench.stage import STEPPING_LAW, Guests, private_libvirtd, running_agent
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import AgentProcess
from virtksm.cli.progress import Progress
from virtksm.host.libvirt_events import EventLoop

P99_GOAL_MS = 20.0
RSS_GOAL_MIB = 45.0
WAKEUPS_GOAL_PER_S = 1.0
APART_S, GIVE_UP_S, FIRST_CALM_S = 1.0, 5.0, 5.0


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/bench latency", description="Time guest events to KSM's settings.")
    parser.add_argument("--guests", default="1,50,150", help="numbers of guests, ascending (default %(default)s)")
    parser.add_argument("--events", type=int, default=200, help="isolated events with each (%(default)s)")
    parser.add_argument("--rest-s", type=float, default=60.0, help="seconds at rest, 0 for none (%(default)s)")
    options = parser.parse_args(arguments)
    options.guests = [int(text) for text in options.guests.split(",")]
    return options


class Benchmark:
    """One run over one libvirtd: prints as it goes, and collects goals and failures."""

    def __init__(self, options: argparse.Namespace, libvirtd: PrivateLibvirtd) -> None:
        self._options = options
        self._libvirtd = libvirtd
        self._guests = Guests(libvirtd.uri)
        self._kernel = KernelValue()
        self._what = ""
        self.goals: list[Goal] = []
        self.failures: list[str] = []

    def run(self) -> None:
        for count in self._options.guests:
            self._guests.grow_to(count)
            self._what = f"{count} guests"
            print(f"\n{self._what}", flush=True)
            self._measure_events()
            if self._options.rest_s > 0:
                self._measure_rest()

    def _measure_events(self) -> None:
        events = Events(self._libvirtd.uri)
        with folder_in_memory() as folder, running_agent(folder, self._libvirtd.uri, STEPPING_LAW) as agent:
            self._measure_isolated(agent, events)
            print(f"  agent's RSS after all that: {read_rss_mib(agent.pid):.1f} MiB")
        events.close()

    def _measure_isolated(self, agent: AgentProcess, events: Events) -> None:
        to_kernel_ms, virsh_ms, applied = [], [], []
        events.take_all()
        with ThreadPoolExecutor(1) as pool, Progress() as progress:
            for number in range(self._options.events):
                progress.show(f"event {number + 1} of {self._options.events}")
                kind = "stopped" if number % 2 else "started"
                known = self._kernel.read()
                acting = pool.submit(self._guests.stop if number % 2 else self._guests.start, "extra")
                try:
                    at_ns = events.next(kind, "extra", GIVE_UP_S)
                    change = self._kernel.wait_changed(known, GIVE_UP_S)
                except TimeoutError as error:
                    self._fail(f"event {number}: {error}")
                    acting.result()
                    continue
                acting.result()
                to_kernel_ms.append((change.at_ns - at_ns) / 1e6)
                applied.append(change.value)
                time.sleep(APART_S / 2)
                if not change.value == known + 1 == self._kernel.read():
                    self._fail(f"event {number}: from {known} to {change.value}, then {self._kernel.read()}")
                virsh_ms.append(time_virsh(self._libvirtd.uri, self._kernel))
                # The jitter keeps events from falling into step with anything periodic.
                time.sleep(APART_S / 2 + random.uniform(0, 0.1))
        if self._options.events % 2:
            self._guests.stop("extra")
        by_value = {line["after"]["pages_to_scan"]: line for line in agent.lines("pass_completed")}
        if missing := [value for value in applied if value not in by_value]:
            self._fail(f"the agent's log has no pass that set {missing}")
        passes = [by_value[value] for value in applied if value in by_value]
        for name, series in (
            ("delivery to kernel, ms", to_kernel_ms),
            ("agent's own figure, ms", [1000 * line["event_to_applied_s"] for line in passes]),
            ("of it, the pass, ms", [1000 * line["duration_s"] for line in passes]),
            ("virsh, ms", virsh_ms),
        ):
            if series:
                print(f"  {name:26}{in_words(series)}", flush=True)
        if to_kernel_ms:
            self._goal("p99 delivery to kernel", percentile(to_kernel_ms, 99), P99_GOAL_MS, "ms")

    def _measure_rest(self) -> None:
        with folder_in_memory() as folder, running_agent(folder, self._libvirtd.uri, "") as agent:
            time.sleep(FIRST_CALM_S)
            passes = len(agent.lines("pass_completed"))
            rest = watch_rest(agent.pid, self._options.rest_s)
            passes = len(agent.lines("pass_completed")) - passes
        print(
            f"  at rest for {rest.seconds:.0f} s (default configuration, {passes} passes): RSS {rest.rss_mib:.1f} MiB, "
            f"{rest.wakeups_per_s:.2f} wake-ups/s, {rest.cpu_s * 3600 / rest.seconds:.1f} s of CPU an hour\n"
            f"    wake-ups by thread: {', '.join(f'{name} {times}' for name, times in rest.wakeups.items())}",
            flush=True,
        )
        self._goal("RSS at rest", rest.rss_mib, RSS_GOAL_MIB, "MiB")
        self._goal("wake-ups at rest", rest.wakeups_per_s, WAKEUPS_GOAL_PER_S, "a second")

    def _goal(self, what: str, measured: float, limit: float, unit: str) -> None:
        self.goals.append(Goal(what=f"{self._what}, {what}", measured=measured, limit=limit, unit=unit))

    def _fail(self, failure: str) -> None:
        self.failures.append(f"{self._what}: {failure}")


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Lend a folder for an agent's files that no disk slows down, as /run is on a host."""
    with tempfile.TemporaryDirectory(prefix="vk", dir="/dev/shm") as folder:
        yield Path(folder)


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    tell_machine()
    EventLoop().start()  # before any connection is opened
    with private_libvirtd() as libvirtd:
        benchmark = Benchmark(options, libvirtd)
        benchmark.run()
    return tell_goals(benchmark.goals, benchmark.failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
