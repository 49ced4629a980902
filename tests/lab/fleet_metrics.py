"""Many hosts' metrics, served from one process: pages of the agent's own making about made-up hosts."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from tests.fakes import LOCAL_HOST, FakeFacts, FakeHypervisor, fake_cycle
from tests.lab.samples import agent_facts
from virtksm import __version__
from virtksm.agent.metrics.counters import Tally
from virtksm.agent.metrics.definitions import Moment
from virtksm.agent.metrics.exposition import CONTENT_TYPE, render
from virtksm.agent.metrics.guests import GuestSavings
from virtksm.config.schema import Config
from virtksm.model.current import after_pass
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import Outcome, PassReport
from virtksm.model.snapshot import Guest
from virtksm.policy import make_policy
from virtksm.values import replace

GUEST_KIB = 1 << 20
OLD_VERSION = "0.0.9"


class FleetHost:
    """One host: a pass of its agent, which is counted anew each time that somebody asks."""

    def __init__(self, number: int, guests: int, *, refuses: bool) -> None:
        self.name = f"host{number:05}"
        self.room_bytes = (number + 1) << 30
        self._is_old = number % 4 == 0
        self._guests = [
            (f"{self.name}-guest{guest:02}", str(UUID(int=number << 32 | guest))) for guest in range(guests)
        ]
        self._report = pass_over(self._guests, refuses=refuses)
        self._tally = Tally()
        self._tally.exposed = self._tally.mixed_groups = 0
        self._began_s = time.monotonic()

    @property
    def saved_bytes(self) -> int:
        return (self._report.snapshot.ksm.saved_kib or 0) * 1024

    def page(self) -> bytes:
        """Return what the agent would answer; raises nothing."""
        self._tally.passed(self._report, 0.01, time.time())
        current = after_pass(self._report)
        ksm = replace(current.ksm, ksmd_cpu_seconds=0.02 * (time.monotonic() - self._began_s))
        agent = agent_facts(
            last=self._report,
            current=replace(current, ksm=ksm),
            room_kib={
                "safe": self.room_bytes >> 10,
                "unmerged": self.room_bytes >> 9,
                "at_ratio": self.room_bytes >> 8,
            },
        )
        savings = GuestSavings(
            shown={guest: self.saved_bytes // len(self._guests) for guest in self._guests},
            other_bytes=0,
            unattributed_bytes=0,
            unaccounted=0,
        )
        moment = Moment(
            agent=agent, tally=self._tally, savings=savings, profit_bytes=self.saved_bytes, started_at_s=1_790_000_000.0
        )
        page, present = render(moment, with_process=True), f'version="{__version__}"'
        return page.replace(present.encode(), f'version="{OLD_VERSION}"'.encode()) if self._is_old else page


def pass_over(guests: list[tuple[str, str]], *, refuses: bool) -> PassReport:
    """Return a pass beside guests of which a tenth is merged."""
    running = tuple(Guest(uuid=uuid, name=name) for name, uuid in guests)
    cycle = fake_cycle(
        hypervisor=FakeHypervisor(running=running),
        local=FakeFacts(
            memory=replace(LOCAL_HOST, swap_free_kib=0), rss_kib={guest.uuid: GUEST_KIB for guest in running}
        ),
        policy=make_policy(Config()),
    )
    report: PassReport = cycle.run(Triggers(kinds=frozenset({Trigger.TIMER})))
    pages = len(guests) * GUEST_KIB // 40
    ksm = replace(report.snapshot.ksm, pages_shared=pages // 10, pages_sharing=pages, ksm_zero_pages=0, cow_ksm=pages)
    report = replace(report, snapshot=replace(report.snapshot, ksm=ksm))
    return replace(report, outcome=Outcome.REFUSED) if refuses else report


class Fleet:
    """Hosts in clusters, of which `refusing` have settings refused; serves them at a port of the loopback."""

    def __init__(self, hosts: int, *, guests: int, clusters: int = 2, refusing: frozenset[int] = frozenset()) -> None:
        self._clusters = clusters
        self.hosts = [FleetHost(number, guests, refuses=number in refusing) for number in range(hosts)]
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self.hosts))
        self._thread = threading.Thread(target=self._server.serve_forever)

    def cluster_of(self, number: int) -> str:
        return f"c{number % self._clusters}"

    def targets(self) -> list[Mapping[str, Any]]:
        """Return the hosts as a file of targets lists them."""
        address = f"127.0.0.1:{self._server.server_address[1]}"
        return [
            {
                "targets": [address],
                "labels": {"__metrics_path__": f"/{number}", "instance": host.name, "cluster": self.cluster_of(number)},
            }
            for number, host in enumerate(self.hosts)
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hosts: list[FleetHost], *arguments: Any) -> None:  # noqa: ANN401  # socketserver's own
        self._hosts = hosts
        super().__init__(*arguments)

    def do_GET(self) -> None:  # http.server's own name
        body = self._hosts[int(self.path[1:])].page()
        with suppress(ConnectionError):  # it has waited long enough, or has ended
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # http.server's own
        """Log nothing."""
