"""Everything at once, for a long time: does the agent hold out, and does it grow?

In: seconds, and a number of guests for the storm at the beginning. Guests start and stop, the hook's FIFO is poked,
control clients ask, the configuration is reloaded, and libvirtd is killed, restarted and frozen in turn. Beside it are
hostile neighbours: a guest that chatters by its balloon, a user who connects to the metrics' port three thousand times
a second, one who holds his process's mmap lock, and a journal that hangs.
Out: by how much the agent's memory, descriptors, threads and CPU time rose over the run's later part, how soon the
agent was connected again after libvirtd's socket answered. Exit code 1 if something is not flat, a connection took
longer than 2 s, a scrape was not answered, a guest was missed, or the settings were not restored. Started by
`script/bench soak`, which locks and restores KSM.
"""

import argparse
import contextlib
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import libvirt

from bench.figures import Goal, median, tell_goals
from bench.neighbours import Journal, flood
from bench.rest import process_cpu_s
from bench.stage import PAYLOAD, STEPPING_LAW, Guests, private_libvirtd, running_agent
from demo.guests import PayloadGuest, start_guest
from tests.lab.churn import Churn
from tests.lab.footprint import read_footprint
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.lock_holder import lock_holders
from tests.lab.ports import free_port
from tests.lab.prometheus import fetch
from tests.real.agent_process import AgentProcess
from virtksm.agent.control_client import ask

FROZEN_S, WEDGED_S, HELD_S, ASK_AGAIN_S = 4.0, 15.0, 10.0, 0.01
USERS_GUEST_UUID = "5d1a3c1e-2222-4000-8000-0123456789ab"
SAMPLE_EVERY_S = 2.0
WARM_SHARE = 0.3
"""What comes before is warming up: the allocator, caches, the first connection."""
SOAKING_LAW = f"call_timeout_s = 2\nkeepalive_s = 1\nreconnect_max_ms = 1000\n{STEPPING_LAW}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The agent at a moment, `t_s` seconds from the beginning."""

    t_s: float
    rss_mib: float
    descriptors: int
    threads: int
    cpu_s: float

    def __str__(self) -> str:
        return (
            f"{self.t_s:6.0f} s: RSS {self.rss_mib:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads, "
            f"{self.cpu_s:.1f} s of CPU"
        )


def rise(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Tell how much the straight line through a series rises from the first sample to the last."""
    times = [sample.t_s for sample in samples]
    slope = statistics.linear_regression(times, [value(sample) for sample in samples]).slope
    return slope * (times[-1] - times[0])


def later(samples: Sequence[Sample]) -> list[Sample]:
    """Leave the warming up out."""
    from_s = samples[-1].t_s * WARM_SHARE
    return [sample for sample in samples if sample.t_s >= from_s]


def cpu_rise_percent(samples: Sequence[Sample]) -> float:
    """Tell by how much more CPU time the second half took than the first, per second."""
    middle = len(samples) // 2
    first, mid, last = samples[0], samples[middle], samples[-1]
    before = (mid.cpu_s - first.cpu_s) / (mid.t_s - first.t_s)
    after = (last.cpu_s - mid.cpu_s) / (last.t_s - mid.t_s)
    return 100 * (after / before - 1)


def take_sample(pid: int, began_s: float) -> Sample:
    """Sample the agent."""
    footprint = read_footprint(pid)
    return Sample(
        t_s=time.monotonic() - began_s,
        rss_mib=footprint.rss_kib / 1024,
        descriptors=footprint.descriptors,
        threads=footprint.threads,
        cpu_s=process_cpu_s(pid),
    )


class Repeated(threading.Thread):
    """Does something again and again until `end`; a failure ends the soak with what it says."""

    def __init__(self, every_s: float, do: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._every_s = every_s
        self._do = do
        self._over = threading.Event()
        self.times = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._do()
            except Exception as error:  # noqa: BLE001  # printed at the end, whatever it is
                self.failure = error
                return
            self.times += 1

    def end(self) -> None:
        self._over.set()
        self.join(60.0)


class Soak:
    """One run over one libvirtd and one agent."""

    def __init__(self, libvirtd: PrivateLibvirtd, agent: AgentProcess, journal: Journal, port: int) -> None:
        self._libvirtd = libvirtd
        self._agent = agent
        self._journal = journal
        self._port = port
        self._over = threading.Event()
        self._faults = 0
        self.reconnected_s: list[float] = []

    def poke(self) -> None:
        """Write to the FIFO, as the hook does."""
        with contextlib.suppress(BlockingIOError):  # it is full: a pass is due anyway
            self._agent.poke()

    def ask(self) -> None:
        """Ask for its status, which it knows whatever libvirt does, and for a dry pass, which it may refuse."""
        retune = {"op": "retune", "uri": self._libvirtd.uri, "dry_run": True}
        dry, status = (ask(self._agent.home.control_socket, one, timeout_s=30) for one in (retune, {"op": "status"}))
        if dry is None or status is None or not status["ok"]:
            raise RuntimeError(f"the agent answers {dry} and {status} at its control socket")

    def break_libvirtd(self) -> None:
        """Kill, restart or freeze the daemon, in turn."""
        self._faults += 1
        match self._faults % 3:
            case 0:
                self._libvirtd.pause()
                time.sleep(FROZEN_S)
                self._libvirtd.resume()
                return
            case 1:
                self._libvirtd.kill()
            case 2:
                self._libvirtd.stop()
        self._libvirtd.start()
        answered_s = time.monotonic()
        while not self._is_connected() and time.monotonic() < answered_s + HANG_S:
            time.sleep(ASK_AGAIN_S)
        self.reconnected_s.append(time.monotonic() - answered_s)

    def _is_connected(self) -> bool:
        answer = ask(self._agent.home.control_socket, {"op": "status"}, timeout_s=30)
        status = {} if answer is None else answer["status"]
        return isinstance(status, dict) and bool(status["libvirt"]["answers"])

    def scrape(self) -> None:
        """Ask for the metrics, as Prometheus does; raises OSError where it is not answered in its time."""
        fetch(f"http://127.0.0.1:{self._port}/metrics")

    def hold_lock(self) -> None:
        """Have a user hold the lock of his process's memory for a while, for which every reader of its files waits."""
        with lock_holders() as hold:
            hold(USERS_GUEST_UUID)
            self._over.wait(HELD_S)

    @contextlib.contextmanager
    def everything_at_once(self, churn: Churn) -> Iterator[list[Repeated]]:
        """Do it all until the end."""
        repeated = [
            Repeated(0.05, self.poke),
            Repeated(0.1, self.ask),
            Repeated(3.0, lambda: self._agent.signal(signal.SIGHUP)),
            Repeated(10.0, self.break_libvirtd),
            Repeated(1.0, self.scrape),
            Repeated(20.0, lambda: self._journal.wedge(self._over, WEDGED_S)),
            Repeated(20.0, self.hold_lock),
        ]
        churn.start()
        for one in repeated:
            one.start()
        try:
            yield repeated
        finally:
            self._over.set()
            for one in repeated:
                one.end()
            churn.end()


def count_passes(agent: AgentProcess) -> int:
    return len(agent.lines("pass_completed"))


def storm(uri: str, agent: AgentProcess, guests: int) -> str:
    """Start `guests` paused guests as fast as libvirt can, and end them all; tell what the agent made of it."""
    started = Guests(uri)
    before, passes, began_s = read_footprint(agent.pid), count_passes(agent), time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: started.start(f"storm{number}"), range(guests)))
        agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == guests)
        list(pool.map(lambda number: started.stop(f"storm{number}"), range(guests)))
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 0)
    started.close()
    after = read_footprint(agent.pid)
    return (
        f"{guests} guests started and destroyed in {time.monotonic() - began_s:.0f} s: "
        f"{count_passes(agent) - passes} passes, RSS {before.rss_kib / 1024:.1f} -> {after.rss_kib / 1024:.1f} MiB, "
        f"descriptors {before.descriptors} -> {after.descriptors}, threads {before.threads} -> {after.threads}"
    )


def chatter(uri: str) -> None:
    """Start a guest that reports another balloon size each second for as long as it lives."""
    connection = libvirt.open(uri)
    start_guest(connection, PayloadGuest(name="chatters", memory_mib=16, chatters=True), kernel=PAYLOAD.resolve())
    connection.close()


def judge(samples: Sequence[Sample], reconnected_s: Sequence[float]) -> list[Goal]:
    """Compare what was measured with what counts as flat."""
    series = later(samples)
    goals = [
        Goal(what="RSS, rise", measured=rise(series, lambda one: one.rss_mib), limit=2.0, unit="MiB"),
        Goal(what="descriptors, rise", measured=rise(series, lambda one: one.descriptors), limit=1.0),
        Goal(what="threads, rise", measured=rise(series, lambda one: one.threads), limit=1.0),
        Goal(what="CPU time, rise", measured=cpu_rise_percent(series), limit=50.0, unit="%"),
    ]
    if reconnected_s:
        what = "connected again after the socket answered, at worst"
        goals.append(Goal(what=what, measured=max(reconnected_s), limit=2.0, unit="s"))
    return goals


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/bench soak", description="Put everything on the agent at once.")
    parser.add_argument("--seconds", type=float, default=600, help="how long (%(default)s)")
    parser.add_argument("--guests", type=int, default=200, help="paused guests of the first storm (%(default)s)")
    options = parser.parse_args(arguments)
    if options.seconds < 30:
        parser.error("--seconds must be 30 or more")
    return options


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors arrive as exceptions, not on stderr
    failures, port = [], free_port()
    law = f'{SOAKING_LAW}\n[metrics]\nlisten = "127.0.0.1:{port}"\n'
    with private_libvirtd() as libvirtd:
        folder = libvirtd.root / "soak"
        folder.mkdir()
        log = (folder / "log").open("w+b")
        journal = Journal(log)
        with running_agent(folder, libvirtd.uri, law, log=log, stderr=journal.end.fileno()) as agent:
            if options.guests:
                print(storm(libvirtd.uri, agent, options.guests), flush=True)
            chatter(libvirtd.uri)
            soak, churn = Soak(libvirtd, agent, journal, port), Churn(libvirtd.uri, PAYLOAD.resolve())
            began_s, samples = time.monotonic(), list[Sample]()
            with flood(port, options.seconds), soak.everything_at_once(churn) as repeated:
                while time.monotonic() < began_s + options.seconds:
                    time.sleep(SAMPLE_EVERY_S)
                    samples.append(take_sample(agent.pid, began_s))
                    if len(samples) % 30 == 0:
                        print(samples[-1], flush=True)
            failures += [str(one.failure) for one in repeated if one.failure is not None]
            pokes, asked, reloads, faults, scrapes, wedges, holds = (one.times for one in repeated)
            failures += miss_nothing(libvirtd, agent)
            dropped = sum(line["lines"] for line in agent.lines("log_lines_dropped"))
            print(
                f"in {options.seconds:.0f} s: {churn.started} guests started, {pokes} pokes, {asked} requests, "
                f"{reloads} reloads, {scrapes} scrapes beside the flood, libvirtd broken {faults} times, the journal "
                f"{wedges} times ({dropped} lines lost), a user's lock held {holds} times; "
                f"{count_passes(agent)} passes in the log"
            )
            reconnected_s = soak.reconnected_s
        ksm = Ksm()
        if (ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) != (100, 20):
            failures.append("the settings were not restored")
    if reconnected_s:
        print(
            f"connected again after the socket answered: median of {len(reconnected_s)} {median(reconnected_s):.2f} s"
        )
    return tell_goals(judge(samples, reconnected_s), failures)


def miss_nothing(libvirtd: PrivateLibvirtd, agent: AgentProcess) -> list[str]:
    """After all that, the agent has to know the guests that libvirt has; returns what is wrong."""
    connection = libvirt.open(libvirtd.uri)
    running = len(connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
    connection.close()
    agent.signal(signal.SIGUSR1)
    try:
        wait_until(lambda: agent.lines("pass_completed")[-1]["sensed"]["guests"] == running, HANG_S, "all guests")
    except TimeoutError as error:
        return [f"of {running} guests: {error}"]
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
