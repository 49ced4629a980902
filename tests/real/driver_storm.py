"""A storm of real libvirt events through the real agent, as a program: libvirt has one event loop a process.

libvirt's test driver sends lifecycle events as fast as its guests start and stop. It cannot tune, so the passes list
its guests and write to the fake of the port. Prints one JSON object. Usage: python driver_storm.py EVENTS
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fakes import FakeHypervisor
from tests.lab.agent_bench import Bench
from tests.lab.footprint import read_footprint
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.connection import AgentConnection
from virtksm.config.schema import Config
from virtksm.host.libvirt_events import EventLoop
from virtksm.model.snapshot import Guest

URI = "test:///default"
BATCHES = 10
"""A batch is heard before the next: how far libvirt gets ahead, and how much waits then, is the machine's."""


@dataclass
class ListingHost(FakeHypervisor):
    """Takes settings as the fake does, and lists the guests of a real connection."""

    connection: AgentConnection = field(
        default_factory=lambda: AgentConnection(URI, BlockingCalls(), lambda _error, _wait_s: None)
    )

    def running_guests(self, *, with_max: bool) -> tuple[Guest, ...]:
        assert self.connection.host is not None
        return self.connection.host.running_guests(with_max=with_max)


class Storm(Bench):
    """Counts what the agent says, and keeps the last of it alone: its memory is looked at."""

    def __init__(self) -> None:
        host = ListingHost()
        super().__init__(config=Config(), hypervisor=host, connection=host.connection)
        self.counts: Counter[str] = Counter()

    def take(self, logger: object, method: str, event: MutableMapping[str, Any]) -> str:
        self.counts[event["event"]] += 1
        self.said.clear()
        return super().take(logger, method, event)


async def storm(events: int) -> dict[str, object]:
    """Stop and start a guest until `events` events were sent, then stop it; tell what the agent made of it.

    Memory is counted from the first batch on.
    """
    bench, loop = Storm(), asyncio.get_running_loop()
    async with bench.running():
        assert bench.connection is not None
        assert bench.connection.host is not None
        domain = bench.connection.host.connection.lookupByName("test")

        def churn() -> None:
            for _ in range(events // 2 // BATCHES):
                domain.destroy()
                domain.create()

        async def churn_until_heard(batches: int) -> None:
            await loop.run_in_executor(None, churn)
            await bench.until(lambda: bench.counts["event_received"] == batches * events // BATCHES)

        began_s = loop.time()
        await churn_until_heard(1)
        warm = read_footprint(os.getpid())
        for batches in range(2, BATCHES + 1):
            await churn_until_heard(batches)
        domain.destroy()
        await bench.until(lambda: bench.counts["event_received"] == events + 1)
        await bench.until(lambda: bench.events("pass_completed") != [] and not bench.passes.coalescer.pending)
        took_s, seen = loop.time() - began_s, bench.events("pass_completed")[0]["sensed"]["guests"]
    return {
        "events": bench.counts["event_received"],
        "passes": bench.counts["pass_completed"],
        "windows": took_s / bench.passes.coalescer.window_s,
        "guests_seen": seen,
        "growth_kib": read_footprint(os.getpid()).rss_kib - warm.rss_kib,
    }


if __name__ == "__main__":
    libvirt_events = EventLoop()
    libvirt_events.start()
    print(json.dumps(asyncio.run(storm(int(sys.argv[1])))))  # noqa: T201 - its result
    libvirt_events.stop()
