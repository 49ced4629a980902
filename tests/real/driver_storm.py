"""A storm of real libvirt events through the real agent, as a program: libvirt has one event loop a process.

libvirt's test driver sends lifecycle events as fast as its guests start and stop. It cannot tune, so the passes list
its guests and write to the fake of the port. Prints one JSON object. Usage: python driver_storm.py EVENTS
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fakes import FakeFacts, FakeHypervisor, FakeStore, FakeSwitch, TargetPolicy
from tests.lab.footprint import read_footprint
from virtksm.agent.agent import Agent
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.configuration import Configuration, FreshConfig
from virtksm.agent.connection import Connection
from virtksm.agent.history import HistoryWriter
from virtksm.agent.log import Reporter
from virtksm.config.schema import Config
from virtksm.host.clock import boottime_s
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.host.libvirt_events import EventLoop
from virtksm.host.systemd import Notifier
from virtksm.log_setup import configure
from virtksm.model.snapshot import Settings
from virtksm.tuning.cycle import Cycle, Tenure

URI = "test:///default"
HANG_S = 60.0


class Log:
    """Takes the agent's log events as they are said, in its loop."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.last: dict[str, Any] = {}
        self._said = asyncio.Event()

    def take(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        """Be structlog's last processor."""
        self.counts[event["event"]] += 1
        self.last = dict(event)
        self._said.set()
        return ""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that changes only with what is said."""
        while not condition():
            self._said.clear()
            await asyncio.wait_for(self._said.wait(), HANG_S)


async def storm(events: int) -> dict[str, object]:
    """Stop and start a guest until `events` events were sent, then stop it; tell what the agent made of it.

    Memory is counted from a tenth of them on.
    """
    log = Log()
    configure("info", "json", stream=io.StringIO(), renderers=[log.take])
    reporter = Reporter(Notifier({}))
    kernel, store = FakeHypervisor(uri=URI), FakeStore()

    def make_cycle(host: LibvirtHost, _config: Config, tenure: Tenure) -> Cycle[int]:
        kernel.running_guests = host.running_guests  # type: ignore[method-assign]
        policy = TargetPolicy(target=Settings(pages_to_scan=400, sleep_millisecs=10))
        return Cycle(
            hypervisor=kernel,
            local=FakeFacts(),
            policy=policy,
            store=store,
            switch=FakeSwitch(),
            clock=boottime_s,
            on_conflict="reassert",
            tenure=tenure,
        )

    connection = Connection(URI, BlockingCalls(), reporter.connect_failed)
    agent = Agent(
        configuration=Configuration(Config(), lambda: FreshConfig(config=Config())),
        connection=connection,
        reporter=reporter,
        history_writer=HistoryWriter(),
        make_cycle=make_cycle,
    )
    running = asyncio.create_task(agent.run())
    await log.until(lambda: log.counts["pass_completed"] == 1)
    assert connection.host is not None
    domain = connection.host.connection.lookupByName("test")

    def churn(turns: int) -> None:
        for _ in range(turns):
            domain.destroy()
            domain.create()

    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await loop.run_in_executor(None, churn, events // 20)
    warm = read_footprint(os.getpid())
    await loop.run_in_executor(None, churn, events // 2 - events // 20)
    domain.destroy()
    await log.until(lambda: log.counts["event_received"] == events + 1)
    await log.until(lambda: log.last["event"] == "pass_completed" and not agent.passes.coalescer.pending)
    took_s, seen = loop.time() - began_s, log.last["sensed"]["guests"]
    agent.stop()
    await running
    return {
        "events": log.counts["event_received"],
        "passes": log.counts["pass_completed"],
        "windows": took_s / agent.passes.coalescer.window_s,
        "guests_seen": seen,
        "growth_kib": read_footprint(os.getpid()).rss_kib - warm.rss_kib,
    }


if __name__ == "__main__":
    libvirt_events = EventLoop()
    libvirt_events.start()
    print(json.dumps(asyncio.run(storm(int(sys.argv[1])))))  # noqa: T201 - its result
    libvirt_events.stop()
