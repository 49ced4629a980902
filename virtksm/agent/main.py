"""Puts an agent together and runs it to its end: locks, folders, sockets, signals, threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from virtksm import __version__
from virtksm.adapters.clock import boottime_s
from virtksm.adapters.files import ensure_runtime, find_remedy, locked
from virtksm.adapters.libvirt_events import EventLoop
from virtksm.adapters.libvirt_host import LibvirtHost
from virtksm.adapters.local_facts import ProcFacts
from virtksm.adapters.poke_fifo import open_poke_fifo
from virtksm.adapters.systemd import Notifier
from virtksm.agent.agent import Agent
from virtksm.agent.blocking import BlockingCalls
from virtksm.agent.control_server import ControlServer, bind_socket, remove_socket
from virtksm.agent.diary import Diary
from virtksm.agent.link import Link
from virtksm.agent.metrics.service import Metrics
from virtksm.agent.pokes import Pokes
from virtksm.agent.reporting import Reporter
from virtksm.agent.status_socket import StatusSocket
from virtksm.assemble import make_cycle, make_history, make_switch
from virtksm.config.schema import Config
from virtksm.cycle import Cycle, Memory
from virtksm.errors import AlreadyRunning, ExitCode, StateUnusable
from virtksm.model import Trigger
from virtksm.runtime import RuntimePaths

Started = Callable[[Agent, asyncio.AbstractEventLoop], None]


def serve(
    uri: str,
    config: Config,
    paths: RuntimePaths,
    reload_config: Callable[[], Config],
    *,
    started: Started | None = None,
) -> ExitCode:
    """Run an agent until SIGTERM or SIGINT; `started` is told of it once its loop runs.

    Raises AlreadyRunning if this runtime folder has an agent, StateUnusable if the folder cannot be used, ConfigError
    if the status socket cannot be given to `status_group`.
    """
    ensure_runtime(paths)
    second = AlreadyRunning(
        f"an agent already runs with {paths.root}",
        remedy="see it with `systemctl status virtksm`; stop it first: systemctl stop virtksm",
    )
    with locked(paths.agent_lock, second):
        events = EventLoop()
        events.start()
        try:
            return asyncio.run(_serve(uri, config, paths, reload_config, started))
        finally:
            events.stop()


async def _serve(
    uri: str,
    config: Config,
    paths: RuntimePaths,
    reload_config: Callable[[], Config],
    started: Started | None,
) -> ExitCode:
    loop = asyncio.get_running_loop()
    notifier = Notifier()
    reporter = Reporter(notifier)
    calls = BlockingCalls()
    facts = ProcFacts(boottime_s)

    def cycle_over(host: LibvirtHost, current: Config, memory: Memory) -> Cycle[Any]:
        return make_cycle(host, current, paths, memory=memory, facts=facts)

    def reload() -> Config:
        fresh = reload_config()
        readers.follow(fresh.status_group)
        metrics.follow(fresh.metrics)
        return fresh

    agent = Agent(
        uri=uri,
        config=config,
        link=Link(calls, reporter.connect_failed),
        calls=calls,
        reporter=reporter,
        make_cycle=cycle_over,
        make_switch=lambda of, current: make_switch(of, current, paths),
        reload_config=reload,
        make_history=lambda of, current: make_history(of, current, paths),
        facts=facts,
        diary=Diary(reporter.history_kept, reporter.history_failed),
    )
    readers = StatusSocket(paths, agent.handle)
    readers.follow(config.status_group)
    metrics = Metrics(reporter.tally, agent.standing, ProcFacts(boottime_s), reporter.metrics_told)
    metrics.follow(config.metrics)
    agent.install_signals(loop)
    pokes = _listen_for_pokes(agent, paths, reporter)
    try:
        listener = bind_socket(paths.control_socket)
    except OSError as error:
        raise StateUnusable(
            f"{paths.control_socket}: {error.strerror}", remedy=find_remedy(paths.control_socket, error)
        ) from error
    server = ControlServer(agent.handle)
    await server.start(listener)
    watchdog = asyncio.create_task(_feed_watchdog(notifier, agent))
    try:
        reporter.ready(__version__, uri)
        if started is not None:
            started(agent, loop)
        return await agent.run()
    finally:
        watchdog.cancel()
        server.close()
        readers.close()
        await metrics.close()
        remove_socket(paths.control_socket)
        remove_socket(paths.status_socket)
        if pokes is not None:
            pokes.close()


def _listen_for_pokes(agent: Agent, paths: RuntimePaths, reporter: Reporter) -> Pokes | None:
    try:
        fifo = open_poke_fifo(paths)
    except StateUnusable as error:  # libvirt's events still come: the agent does without the hook
        reporter.poke_unavailable(error)
        return None
    pokes = Pokes(fifo, lambda: agent.offer(Trigger.POKE), lambda: agent.config.coalesce_ms / 1000)
    pokes.listen()
    return pokes


async def _feed_watchdog(notifier: Notifier, agent: Agent) -> None:
    """Tell systemd as often as it wants to know that the loop runs and passes come."""
    while notifier.watchdog_interval_s is not None:
        if not agent.is_stuck(time.monotonic()):
            notifier.send(WATCHDOG="1")
        await asyncio.sleep(notifier.watchdog_interval_s)
