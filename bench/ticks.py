"""What the agent costs during a full scan of a large host, with hundreds of guests: its passes, and dirty rates.

In: a number of guests. Out: CPU time a pass, in parts, and of measuring dirty rates, as a share of a core at four
passes a second; exit code 1 if the goal is missed. Each guest is a process whose memory is really read. Libvirt, KSM's
files and time are made up: no setting of this machine is touched, and libvirt's own time is not in the figures.
"""

import argparse
import asyncio
import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.figures import Goal, tell_goals, tell_machine
from tests.fakes import FakeClock, FakeHypervisor, FakeSwitch, fake_cycle
from tests.lab.agent_bench import listeners_of
from virtksm.agent.dirty_rates import DirtyRates, min_turn_s
from virtksm.agent.history import HistoryWriter
from virtksm.agent.log import Reporter
from virtksm.agent.passes import DonePass
from virtksm.config.schema import AdaptiveParams, Config
from virtksm.guests.xml import GuestXml
from virtksm.host.local_facts import ProcFacts
from virtksm.host.proc_files import identify
from virtksm.host.systemd import Notifier
from virtksm.log_setup import configure
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.snapshot import Guest
from virtksm.paths import RuntimePaths
from virtksm.policy.adaptive import AdaptivePolicy
from virtksm.store.state import StateFile

PASS_S = 0.25
"""Between two passes during a full scan."""
GOAL_PERCENT = 2.0
"""Of a core (issue 20)."""
PAGES_A_PASS = 30_000
TIMER = Triggers(kinds=frozenset({Trigger.TIMER}))


class FileHypervisor(FakeHypervisor):
    """Sets what the files say, and lists guests as LibvirtHost does: each is made anew."""

    folder: Path
    guests: int

    def running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        return tuple(
            Guest(uuid=f"00000000-0000-4000-8000-{number:012x}", name=f"guest-{number}", domain_id=number)
            for number in range(1, self.guests + 1)
        )

    def changes(self, uuid: str, *, is_measured: bool) -> tuple[int | None, int | None]:
        self.measuring.pop(uuid, None)  # it is over when it is asked for
        return super().changes(uuid, is_measured=is_measured)

    def set_parameters(self, values: Mapping[str, int]) -> None:
        super().set_parameters(values)
        write_files(self.folder, values)


def write_files(folder: Path, values: Mapping[str, int]) -> None:
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n", encoding="ascii")


@contextmanager
def sleeping_processes(count: int) -> Iterator[list[int]]:
    """Have so many children that do nothing."""
    pids = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                while True:
                    signal.pause()
            pids.append(pid)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


async def measure_rates(rates: DirtyRates, clock: FakeClock) -> float:
    """Have each guest measured twice; return the CPU time that the second takes, as a share of the time that passes."""
    turn_s = min_turn_s(len(rates.turns))
    used_s = 0.0
    for _ in range(2):
        end_s, began_s = clock.now_s + turn_s, time.process_time()
        while (due_s := min(map(rates.due_s, rates.turns.values()))) < end_s:
            if due_s > clock.now_s:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0):
                        await rates.measure_when_due()  # it finds nothing, and begins to wait
                clock.now_s = due_s
            await rates.measure_when_due()
        clock.now_s, used_s = end_s, time.process_time() - began_s
    return used_s / turn_s


async def measure(guests: int, passes: int, folder: Path) -> tuple[float, float, float]:
    """Return the CPU seconds that a pass takes in a full scan, those of everything that hears of it, and the share of a
    core that dirty rates take.
    """
    clock, hypervisor, config = FakeClock(), FileHypervisor(), Config(adaptive=AdaptiveParams(engage="always"))
    hypervisor.folder, hypervisor.guests = folder, guests
    counters = {"pages_shared": 0, "pages_sharing": 0, "pages_unshared": 0, "pages_volatile": 0, "pages_scanned": 0}
    write_files(folder, {**hypervisor.values, **counters, "full_scans": 0, "run": 1})
    facts = ProcFacts(clock, sys_ksm=str(folder))
    store = StateFile(RuntimePaths(str(folder / "runtime"), str(folder)), "local")
    policy = AdaptivePolicy(params=config.adaptive)
    cycle = fake_cycle(hypervisor=hypervisor, local=facts, policy=policy, store=store, switch=FakeSwitch(), clock=clock)
    listeners = listeners_of(config, Reporter(Notifier({})), HistoryWriter(), cycle.tenure.notes)
    running = hypervisor.running_guests(with_max=False)
    listeners.guests.known = {guest.key: GuestXml() for guest in running}
    hypervisor.xml = {guest.uuid: "" for guest in running}
    hypervisor.dirty_mib_per_s = dict.fromkeys(hypervisor.xml, 1)
    hypervisor.read_bytes = dict.fromkeys(hypervisor.xml, 0)
    rates = listeners.dirty_rates
    rates.source, rates.clock = lambda: hypervisor, clock
    rates.see(running, is_wanted=True)
    rates_share = await measure_rates(rates, clock)
    assert list(rates.rates.values()) == [1024.0] * guests
    used = [0.0, 0.0]
    with sleeping_processes(guests) as pids:
        facts._search._found = {  # noqa: SLF001  # these are in no guest's control group
            guest.key: process for guest, pid in zip(running, pids, strict=True) if (process := identify(pid))
        }
        rule, number = "", 0
        while number < passes:
            began_s = time.process_time()
            report = cycle.run(TIMER)
            passed_s = time.process_time()
            listeners.passed(
                DonePass(report=listeners.complete(report, config), config=config, heard_s=None, ended_s=clock.now_s)
            )
            ended_s = time.process_time()
            clock.now_s += PASS_S
            rule = report.decision.reason.rule
            if rule == "full_scan":
                number += 1
                counters["pages_scanned"] += PAGES_A_PASS
                write_files(folder, counters)
                used[0] += passed_s - began_s
                used[1] += ended_s - passed_s
    return used[0] / passes, used[1] / passes, rates_share


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="script/bench ticks", description="Time the agent in a long full scan.")
    parser.add_argument("--guests", type=int, default=500, help="(default %(default)s)")
    parser.add_argument("--passes", type=int, default=200, help="(default %(default)s)")
    options = parser.parse_args(arguments)
    tell_machine()
    configure("info", "json", stream=io.StringIO())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # as /run is
        in_pass_s, heard_s, rates_share = asyncio.run(measure(options.guests, options.passes, Path(folder)))
    for what, seconds in (("the pass itself", in_pass_s), ("what hears of it", heard_s)):
        print(f"{what}: {seconds * 1000:.2f} ms of CPU time")
    print(f"measuring dirty rates: {100 * rates_share:.2f} % of a core")
    percent = 100 * ((in_pass_s + heard_s) / PASS_S + rates_share)
    return tell_goals([Goal(what=f"agent, {options.guests} guests", measured=percent, limit=GOAL_PERCENT, unit="%")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
