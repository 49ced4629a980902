"""A web server for one page: answers GET /metrics from the agent's own loop, bounded in clients, size and time.

The library's own server takes a thread for each connection, without a limit to either their number or their time, and
cannot be stopped again before its version 0.19. Here:

1. Clients are accepted as fast as they come, so that none waits in the kernel behind others, up to MAX_CLIENTS.
2. A client with a request is answered. One without is dropped after PATIENCE_S, or for a newer client, the oldest
   first; what it has sent by then is read before.
3. Where all clients wait for their answers, none is accepted until a place is free. After GRACE_S the oldest answer is
   then given up: its client does not read.

Without asyncio's streams, which take several times as long for a client: most of a flood's say nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from functools import partial

from virtksm.errors import VirtksmError

MAX_CLIENTS = 128
"""A client has 12 ms to ask where 10,000 others a second say nothing."""
PATIENCE_S = 5.0
"""How long a client may take to ask, and then to read the answer."""
GRACE_S = 0.2
MAX_BYTES = 8192
"""Of a request: its first line and its headers."""
PIECE_BYTES = 1 << 14
AT_ONCE = 64
"""Clients that are accepted before the loop does something else: some 2 ms."""
WAITING = 1024
"""Clients that wait in the kernel for that. One more would have to wait for a second, then for two, and so on: a
Prometheus behind a flood of others, too."""
PAGE = "/metrics"
PLAIN = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
LINK = b'<!DOCTYPE html><title>virtksm</title><a href="/metrics">metrics</a>\n'


def bind(address: str, port: int) -> socket.socket:
    """Return a socket bound to an address of this machine; raises OSError."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an agent that ended a moment ago had it
        listener.bind((address, port))
        listener.listen(WAITING)
    except OSError:
        listener.close()
        raise
    return listener


class MetricsServer:
    """Serves what `page` returns; to be used from one asyncio loop, and begins at once."""

    def __init__(
        self,
        listener: socket.socket,
        page: Callable[[], Awaitable[bytes]],
        content_type: str,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._listener = listener
        self._page = page
        self._content_type = content_type
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._asking: dict[socket.socket, tuple[bytes, float]] = {}
        """What each has sent, and when it came; in the order in which they came."""
        self._answers: dict[asyncio.Task[None], None] = {}
        """In the order in which they were asked for."""
        self._patience: asyncio.TimerHandle | None = None
        """While a client is asking."""
        self._pause: asyncio.TimerHandle | None = None
        """While no client is accepted."""
        listener.settimeout(0)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more clients, and drop those that are connected."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for timer in (self._patience, self._pause):
            if timer is not None:
                timer.cancel()
        self._patience = self._pause = None
        for client in list(self._asking):
            self._drop(client)
        for answer in self._answers:
            answer.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if not self._has_room():
                self._begin_pause()
                break
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):  # no client waits, or it has gone again
                break
            except OSError:  # of descriptors or memory
                self._begin_pause()
                break
            client.settimeout(0)
            self._asking[client] = (b"", self._loop.time())
            self._read(client)
            if client in self._asking:
                self._loop.add_reader(client, self._read, client)
        if self._patience is None:
            self._drop_silent()

    def _has_room(self) -> bool:
        """Make room for one more, if need be and possible (rule 2)."""
        while len(self._asking) + len(self._answers) >= MAX_CLIENTS and self._asking:
            oldest = next(iter(self._asking))
            self._read(oldest)
            if oldest in self._asking:
                self._drop(oldest)
        return len(self._asking) + len(self._answers) < MAX_CLIENTS

    def _read(self, client: socket.socket) -> None:
        sent, came_s = self._asking[client]
        try:
            piece = client.recv(PIECE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            piece = b""
        sent += piece
        if b"\r\n\r\n" in sent or len(sent) > MAX_BYTES:
            self._stop_asking(client)
            answer = self._loop.create_task(self._answer(client, sent))
            self._answers[answer] = None
            answer.add_done_callback(partial(self._answered, client))
        elif not piece:
            self._drop(client)
        else:
            self._asking[client] = (sent, came_s)

    def _drop(self, client: socket.socket) -> None:
        self._stop_asking(client)
        client.close()

    def _stop_asking(self, client: socket.socket) -> None:
        del self._asking[client]
        self._loop.remove_reader(client)

    def _drop_silent(self) -> None:
        """Drop those that have not asked in time, and plan to do so for the next."""
        self._patience = None
        while self._asking:
            client, (_, came_s) = next(iter(self._asking.items()))
            until_s = came_s + self._patience_s
            if until_s > self._loop.time():
                self._patience = self._loop.call_at(until_s, self._drop_silent)
                return
            self._drop(client)

    def _begin_pause(self) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(GRACE_S, self._end_pause)

    def _end_pause(self) -> None:
        """Accept clients again; if there is still no place, once the oldest answer is given up (rule 3)."""
        if len(self._answers) >= MAX_CLIENTS:
            next(iter(self._answers)).cancel()  # which calls `_answered`
            return
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _answered(self, client: socket.socket, answer: asyncio.Task[None]) -> None:
        client.close()
        del self._answers[answer]
        if self._pause is not None:
            self._pause.cancel()
            self._end_pause()
        if not answer.cancelled():
            answer.result()  # our own fault: the loop reports it

    async def _answer(self, client: socket.socket, request: bytes) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._loop.sock_sendall(client, await self._response(request))
        except (OSError, TimeoutError):  # it went away or does not read
            return

    async def _response(self, request: bytes) -> bytes:
        if len(request) > MAX_BYTES:
            return _response("431 Request Header Fields Too Large", b"too long\n")
        try:
            method, path = parse_request(request)
        except ValueError as error:
            return _response("400 Bad Request", f"{error}\n".encode())
        if path not in (PAGE, "/"):
            return _response("404 Not Found", f"metrics are at {PAGE}\n".encode())
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"GET it\n", "Allow: GET, HEAD\r\n")
        if path == "/":
            return _response("200 OK", LINK, content_type=HTML, with_body=method == "GET")
        try:
            body = await self._page()
        except VirtksmError as error:
            return _response("500 Internal Server Error", f"{error.message}\n".encode())
        return _response("200 OK", body, content_type=self._content_type, with_body=method == "GET")


def parse_request(request: bytes) -> tuple[str, str]:
    """Return method and path of an HTTP/1 request; raises ValueError for anything else. Headers matter to no answer."""
    found = re.match(rb"([A-Z]{1,16}) ([!-~]+) HTTP/1\.[01]\r\n", request)
    if found is None:
        raise ValueError("this is no HTTP/1 request")
    return found[1].decode("ascii"), found[2].decode("ascii").partition("?")[0]


def _response(
    status: str, body: bytes, headers: str = "", *, content_type: str = PLAIN, with_body: bool = True
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{headers}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
