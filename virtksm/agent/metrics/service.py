"""Serves the agent's metrics where the configuration wants them, and follows it when it is read again.

Off, it opens nothing and does not import the library. An obstacle (the library is missing, a port is taken, a folder
cannot be written to) is reported once, and the agent goes on without metrics: tuning does not depend on them. Values
come from the agent's own knowledge and this machine's own files, never from libvirt, and beside passes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from virtksm.agent.clients import Clients
from virtksm.agent.metrics.counters import Tally
from virtksm.agent.metrics.definitions import Moment
from virtksm.agent.metrics.guests import GuestLedger
from virtksm.agent.metrics.server import bind, serve
from virtksm.agent.metrics.textfile import Textfile
from virtksm.agent.status import AgentFacts
from virtksm.config.schema import MetricsParams, parse_address
from virtksm.errors import VirtksmError
from virtksm.guests.ports import GuestFacts

MAX_AGE_S = 1.0
"""A page is made at most this often, however many ask."""
OFF = MetricsParams()


class Page:
    """What is served. `facts` are its own, apart from those of passes, as another thread uses them."""

    def __init__(self, tally: Tally, read_agent: Callable[[], AgentFacts], facts: GuestFacts) -> None:
        self.tally = tally
        self._read_agent = read_agent
        self._ledger = GuestLedger(facts)
        self._started_at_s = time.time()
        self._lock = asyncio.Lock()
        self._recent = b""
        self._recent_s = -MAX_AGE_S

    async def recent(self, max_guests: int) -> bytes:
        """Return a page that is at most MAX_AGE_S old, for those who ask; as `make`."""
        async with self._lock:
            if time.monotonic() - self._recent_s >= MAX_AGE_S:
                self._recent = await self.make(max_guests, with_process=True)
                self._recent_s = time.monotonic()
            return self._recent

    async def make(self, max_guests: int, *, with_process: bool) -> bytes:
        """Make a page with so many guests, and with the process_* metrics of this one; raises VirtksmError."""
        from virtksm.agent.metrics.exposition import render

        agent = self._read_agent()
        last = None if agent.last is None else agent.last.snapshot
        moment = Moment(
            agent=agent,
            tally=self.tally,
            savings=await self._ledger.read(last, max_guests),
            profit_bytes=self._ledger.profit_bytes(last),
            started_at_s=self._started_at_s,
        )
        try:
            return render(moment, with_process=with_process)
        except Exception as error:  # the library may raise anything: tuning does not depend on it
            remedy = "if prometheus_client is 0.16 or newer, this is a fault of virtksm: report it"
            raise VirtksmError(f"metrics cannot be made: {error!r}", remedy=remedy) from error


class Metrics:
    """To be used from one asyncio loop. `report` is given an obstacle, and None once there is none."""

    def __init__(self, page: Page, report: Callable[[Exception | None], None]) -> None:
        self._page = page
        self._report = report
        self._params = OFF
        self._server: Clients | None = None
        self._textfile: Textfile | None = None
        self._writing: asyncio.Task[None] | None = None

    def follow(self, params: MetricsParams) -> None:
        """Serve as `params` say from now on; what failed before is tried again."""
        if params.is_wanted:
            try:
                import virtksm.agent.metrics.exposition  # noqa: F401  # the first import is the one that can fail
            except ImportError as error:
                remedy = (
                    "install python3-prometheus-client (apt), python3-prometheus_client (dnf) or virtksm[metrics] "
                    "(pip), or empty metrics.listen and metrics.textfile; then reload"
                )
                self._report(VirtksmError(f"[metrics] needs the package prometheus_client ({error})", remedy=remedy))
                params = OFF
        self._listen(params.listen)
        self._write_to(params.textfile, params.textfile_s)
        self._params = params

    async def close(self) -> None:
        """Stop serving; returns when the file is removed."""
        self._listen("")
        self._write_to("", 0)
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def _listen(self, listen: str) -> None:
        if self._server is not None:
            if listen == self._params.listen:
                return
            self._server.close()
            self._server = None
        if not listen:
            return
        from virtksm.agent.metrics.exposition import CONTENT_TYPE

        try:
            listener = bind(*parse_address(listen))
        except OSError as error:
            remedy = (
                "choose an address of this machine and a free port, or see docs/metrics.md for the unit; then reload"
            )
            self._report(VirtksmError(f"metrics.listen {listen}: {error.strerror}", remedy=remedy))
            return
        self._server = serve(listener, self._asked, CONTENT_TYPE)

    def _write_to(self, path: str, every_s: float) -> None:
        if self._textfile is not None:
            if path == self._textfile.path:
                self._textfile.every_s = every_s
                self._textfile.stir()
                return
            self._textfile.end()
            self._textfile, self._page.tally.changed = None, lambda: None
        if not path:
            return
        self._textfile = Textfile(path, every_s, self._file, self._report)
        self._page.tally.changed = self._textfile.stir
        self._writing = asyncio.get_running_loop().create_task(self._textfile.keep_writing(self._writing))

    async def _asked(self) -> bytes:
        try:
            return await self._page.recent(self._params.guests)
        except VirtksmError as error:
            self._report(error)
            raise

    async def _file(self) -> bytes:
        return await self._page.make(self._params.guests, with_process=False)  # node_exporter has process_* of its own
