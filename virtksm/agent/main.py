"""Puts an agent together and runs it to its end: locks, folders, sockets, signals, threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

from virtksm import __version__
from virtksm.agent.agent import Agent
from virtksm.agent.calls import BlockingCalls
from virtksm.agent.configuration import Configuration, FreshConfig
from virtksm.agent.connection import AgentConnection
from virtksm.agent.fifo import Pokes, open_poke_fifo
from virtksm.agent.guest_switches import ThisHost
from virtksm.agent.history import HistoryWriter
from virtksm.agent.log import Reporter
from virtksm.agent.metrics.service import Metrics, Page
from virtksm.agent.passes import Passes
from virtksm.agent.requests import Requests
from virtksm.agent.sockets import ControlServer, StatusSocket, bind_socket, leave_socket
from virtksm.config.load import group_id
from virtksm.config.schema import Config
from virtksm.errors import AlreadyRunning, ExitCode, StateUnusable
from virtksm.host.libvirt_connection import LibvirtHost
from virtksm.host.libvirt_events import EventLoop
from virtksm.host.local_facts import ProcFacts
from virtksm.host.systemd import Notifier, libvirt_hangs
from virtksm.model.decision import Trigger
from virtksm.paths import RuntimePaths
from virtksm.store.files import ensure_runtime, locked, unusable
from virtksm.tuning.cycle import Cycle, Tenure
from virtksm.wiring import make_choices, make_cycle, make_history, make_switch

SMAPS_LIMIT_S = 10.0
"""The kernel walks all of a guest's pages for smaps: some milliseconds a GiB."""
WATCHDOG_TRIES = 4
"""To feed the watchdog, in the time from one feeding to the next (chosen)."""

Started = Callable[[Agent, asyncio.AbstractEventLoop], None]


async def serve(
    uri: str,
    config: Config,
    paths: RuntimePaths,
    reload_config: Callable[[], Config],
    *,
    configure_log: Callable[[Config], None] = lambda _config: None,
    started: Started | None = None,
) -> ExitCode:
    """Run an agent until SIGTERM or SIGINT; `started` is called once it answers.

    `reload_config` may block; `configure_log` applies the result to the log. Raises AlreadyRunning if this runtime
    folder has an agent, StateUnusable if the folder cannot be used, ConfigError if the status socket cannot be given to
    `status_group`.
    """
    ensure_runtime(paths)
    running = AlreadyRunning(f"an agent already runs with {paths.root}", remedy="systemctl status virtksm")
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(paths.agent_lock, running))
        events = EventLoop()
        events.start()
        stack.callback(events.stop)
        fresh = _with_group(config)
        loop = asyncio.get_running_loop()
        notifier = Notifier()
        reporter = Reporter(notifier)
        loop.set_exception_handler(lambda _loop, context: _report_stray(reporter, context))
        facts = ProcFacts()

        def cycle_over(host: LibvirtHost, current: Config, tenure: Tenure) -> Cycle[Any]:
            return make_cycle(host, current, paths, tenure=tenure, facts=facts)

        def follow(fresh: FreshConfig) -> None:
            readers.follow(fresh.config.status_group, fresh.status_gid)  # first: it alone may refuse
            metrics.follow(fresh.config.metrics)
            configure_log(fresh.config)

        def here(uri: str, current: Config) -> ThisHost | None:
            choices = make_choices(uri, current, paths)
            return None if choices is None else ThisHost(choices, partial(ProcFacts, limit_s=SMAPS_LIMIT_S))

        agent = Agent(
            configuration=Configuration(fresh.config, lambda: _with_group(reload_config()), follow),
            connection=AgentConnection(uri, BlockingCalls(partial(libvirt_hangs, uri=uri)), reporter.connect_failed),
            reporter=reporter,
            history_writer=HistoryWriter(reporter.history_written, reporter.history_failed),
            make_cycle=cycle_over,
            make_history=partial(make_history, paths=paths),
            make_here=here,
        )
        switch_of = partial(make_switch, paths=paths)
        requests = Requests(agent=agent, make_switch=switch_of, facts=ProcFacts())
        readers = StatusSocket(paths, requests.handle, reporter.request_failed)
        stack.callback(leave_socket, paths.status_socket)
        stack.callback(readers.close)
        readers.follow(fresh.config.status_group, fresh.status_gid)
        page = Page(reporter.tally, requests.read_facts, ProcFacts())
        metrics = Metrics(page, reporter.metrics_trouble)
        stack.push_async_callback(metrics.close)
        metrics.follow(fresh.config.metrics)
        agent.install_signals(loop)
        if (pokes := _hear_pokes(paths, agent.passes, reporter)) is not None:
            stack.callback(pokes.close)
        try:
            listener = bind_socket(paths.control_socket)
        except OSError as error:
            raise unusable(paths.control_socket, error) from error
        stack.callback(leave_socket, paths.control_socket)
        stack.callback(ControlServer(listener, requests.handle, crashed=reporter.request_failed).clients.close)
        watchdog = asyncio.create_task(feed_watchdog(notifier, agent.passes, reporter, events))
        stack.callback(watchdog.cancel)
        reporter.ready(__version__, uri)
        if started is not None:
            started(agent, loop)
        return await agent.run()


def _with_group(config: Config) -> FreshConfig:
    """Complete a configuration with what only blocking calls can find out."""
    if config.metrics.is_wanted:
        with suppress(ImportError):  # Metrics reports it
            import virtksm.agent.metrics.exposition  # noqa: F401  # here, as it reads many files
    return FreshConfig(config=config, status_gid=group_id(config.status_group) if config.status_group else None)


def _hear_pokes(paths: RuntimePaths, passes: Passes, reporter: Reporter) -> Pokes | None:
    try:
        fifo = open_poke_fifo(paths)
    except StateUnusable as error:  # libvirt's events still come: the agent does without the hook
        reporter.poke_unavailable(error)
        return None
    pokes = Pokes(fifo, partial(passes.offer, Trigger.POKE), lambda: passes.config.coalesce_ms / 1000)
    pokes.listen()
    return pokes


def _report_stray(reporter: Reporter, context: Mapping[str, Any]) -> None:
    """Report an exception of a callback in the loop, which asyncio would write to standard error."""
    error = context.get("exception")
    message = str(context["message"])
    reporter.task_crashed(message, error if isinstance(error, Exception) else RuntimeError(message))


async def feed_watchdog(notifier: Notifier, passes: Passes, reporter: Reporter, events: EventLoop) -> None:
    """Tell systemd, as often as it asks, that the loop runs, passes come and libvirt's events arrive.

    What keeps it from being told, unforeseen or not, is tried again before systemd loses its patience.
    """
    while (every_s := notifier.watchdog_interval_s) is not None:
        is_fed = False
        try:
            is_heard = events.check()
            reporter.events_heard(is_heard=is_heard)
            if is_heard and not passes.is_stuck(time.monotonic()):
                is_fed = notifier.send(WATCHDOG="1")
        except Exception as error:  # noqa: BLE001  # the outermost layer of this task
            reporter.task_crashed("watchdog", error)
        await asyncio.sleep(every_s if is_fed else every_s / WATCHDOG_TRIES)
