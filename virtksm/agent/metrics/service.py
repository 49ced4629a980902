"""Serves the agent's metrics where the configuration wants them, and follows it when it is read again.

Off, it opens nothing and does not import the library. An obstacle (the library is missing, a port is taken, a folder
cannot be written to) is reported once, and the agent goes on without metrics: tuning does not depend on them. Values
come from the agent's own knowledge and this machine's own files, never from libvirt, and beside passes.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable

from virtksm.agent.metrics.collect import Moment
from virtksm.agent.metrics.counters import Tally
from virtksm.agent.metrics.guests import GuestLedger, ShownGuests
from virtksm.agent.metrics.server import MetricsServer, bind
from virtksm.agent.metrics.textfile import Textfile
from virtksm.agent.status import AgentFacts
from virtksm.config.schema import MetricsParams, parse_address
from virtksm.errors import VirtksmError
from virtksm.guests.ports import GuestFacts

MAX_AGE_S = 1.0
"""A page is made at most this often, however many ask."""
OFF = MetricsParams()


class Metrics:
    """To be used from one asyncio loop. `report` is given an obstacle, and None once there is none.

    `facts` are its own, apart from those of passes, as another thread uses them.
    """

    def __init__(
        self,
        tally: Tally,
        read_agent: Callable[[], AgentFacts],
        facts: GuestFacts,
        report: Callable[[VirtksmError | None], None],
    ) -> None:
        self._tally = tally
        self._ledger = GuestLedger(facts)
        self._shown = ShownGuests()
        self._read_agent = read_agent
        self._report = report
        self._started_at_s = time.time()
        self._params = OFF
        self._server: MetricsServer | None = None
        self._textfile: Textfile | None = None
        self._writing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._page = b""
        self._page_s = -MAX_AGE_S

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
        self._server = MetricsServer(listener, self._recent_page, CONTENT_TYPE)

    def _write_to(self, path: str, every_s: float) -> None:
        if self._textfile is not None:
            if path == self._textfile.path:
                self._textfile.every_s = every_s
                self._textfile.stir()
                return
            self._textfile.end()
            self._textfile, self._tally.changed = None, lambda: None
        if not path:
            return
        self._textfile = Textfile(path, every_s, self._file, self._report)
        self._tally.changed = self._textfile.stir
        self._writing = asyncio.get_running_loop().create_task(self._textfile.keep_writing(self._writing))

    async def _recent_page(self) -> bytes:
        async with self._lock:
            if time.monotonic() - self._page_s >= MAX_AGE_S:
                try:
                    self._page = await self._render(with_process=True)
                except VirtksmError as error:
                    self._report(error)
                    raise
                self._page_s = time.monotonic()
            return self._page

    async def _file(self) -> bytes:
        return await self._render(with_process=False)  # node_exporter has process_* metrics of its own

    async def _render(self, *, with_process: bool) -> bytes:
        from virtksm.agent.metrics.exposition import render

        agent = self._read_agent()
        last = None if agent.last is None else agent.last.snapshot
        savings = await self._ledger.read(last)
        moment = Moment(
            agent=agent,
            tally=self._tally,
            savings=savings,
            profit_bytes=self._ledger.profit_bytes(last),
            shown=self._shown,
            max_guests=self._params.guests,
            python=platform.python_version(),
            started_at_s=self._started_at_s,
        )
        try:
            return render(moment, with_process=with_process)
        except Exception as error:  # the library may raise anything: tuning does not depend on it
            remedy = "if prometheus_client is 0.16 or newer, this is a fault of virtksm: report it"
            raise VirtksmError(f"metrics cannot be made: {error!r}", remedy=remedy) from error
