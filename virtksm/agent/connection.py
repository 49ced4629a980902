"""The agent's connection to libvirt: opens it with ever longer waits, reports its loss, closes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import tenacity

from virtksm.agent.calls import BlockingCalls
from virtksm.config.schema import Config
from virtksm.errors import LibvirtRefuses, LibvirtUnreachable, VirtksmError
from virtksm.host.libvirt_connection import LibvirtHost, open_host
from virtksm.host.libvirt_events import DomainEvent, Subscription
from virtksm.uri import is_local

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 60.0
"""Between two attempts where libvirt refuses: each asks polkit, which answers one question a second."""

Opened = tuple[LibvirtHost, "asyncio.Future[str]"]
"""A connection, and a future that ends with the reason when it is lost."""


class AgentConnection:
    """At most one open connection to what `uri` means. `host` is None while there is none."""

    def __init__(self, uri: str, calls: BlockingCalls, failed: Callable[[VirtksmError, float], None]) -> None:
        self.uri = uri
        self.host: LibvirtHost | None = None
        self.lost_s: float | None = time.monotonic()
        """Since when there is no connection."""
        self.calls = calls
        self._failed = failed
        self._subscription: Subscription | None = None

    @property
    def known_uri(self) -> str:
        """The connection's own URI, or what it is to be opened by while there is none."""
        return self.uri if self.host is None else self.host.uri

    @property
    def unheard(self) -> Sequence[str]:
        """The events that this libvirt does not offer."""
        return () if self._subscription is None else self._subscription.unheard

    async def open(self, config: Callable[[], Config], heard: Callable[[DomainEvent], None]) -> Opened:
        """Open and subscribe, trying until it works; `config` gives the configuration in force at each attempt.

        Waits grow exponentially with jitter from 0.1 s up to `reconnect_max_ms`, or up to a minute where libvirt
        refuses, which lasts until an administrator changes something.
        """
        attempts = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(LibvirtUnreachable),
            wait=lambda state: wait_s(state, config().reconnect_max_ms / 1000),
            before_sleep=self._report,
        )
        return await attempts(self._open_once, config, heard)

    async def _open_once(self, config: Callable[[], Config], heard: Callable[[DomainEvent], None]) -> Opened:
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()

        def lose(reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        def work() -> tuple[LibvirtHost, Subscription]:
            host, keepalive_s = open_host(self.uri, apart=True), config().keepalive_s
            if not is_local(host.uri):
                host.connections.keepalive_s = keepalive_s
            subscription = Subscription(host.connection, heard=heard, closed=lose, call_soon=loop.call_soon_threadsafe)
            subscription.register(keepalive_s)
            return host, subscription

        host, subscription = await self.calls.run(
            "open", work, config().call_timeout_s, discard=lambda late: late[1].close()
        )
        self.host, self._subscription, self.lost_s = host, subscription, None
        return host, lost

    async def close(self, limit_s: float) -> None:
        """Close the connection, if there is one; a daemon that hangs is not waited for."""
        host, subscription, self.host, self._subscription = self.host, self._subscription, None, None
        self.lost_s = time.monotonic()
        if host is None or subscription is None:
            return
        try:
            await self.calls.run(
                "close", partial(host.connections.close, subscription.close), limit_s, is_deferred=True
            )
        except LibvirtUnreachable as error:
            self._failed(error, 0.0)

    def _report(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, VirtksmError):
            self._failed(error, state.next_action.sleep if state.next_action is not None else 0.0)


def wait_s(state: tenacity.RetryCallState, max_s: float) -> float:
    """Return how long to wait after a failed attempt: `max_s` at most, or MAX_WAIT_S where libvirt refuses."""
    if state.outcome is not None and isinstance(state.outcome.exception(), LibvirtRefuses):
        max_s = MAX_WAIT_S
    return tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=max_s)(state)
