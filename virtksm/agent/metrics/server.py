"""A web server for one page: answers GET /metrics from the agent's own loop, bounded in clients, size and time.

The library's own server takes a thread for each connection, without a limit to either their number or their time, and
cannot be stopped again before its version 0.19. Here there are MOST_CLIENTS at most, each for PATIENCE_S; if one more
comes, the oldest goes, so that whoever opens connections and says nothing keeps nobody from being served.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable

MOST_CLIENTS = 16
PATIENCE_S = 5.0
"""How long a client may take to ask and to read the answer."""
MOST_BYTES = 8192
"""Of a request: its first line and its headers."""
AT_ONCE = 16
"""Clients that are taken in before the loop does something else."""
WAITING = 1024
"""Clients that wait in the kernel for that. One more would have to wait for a second, then for two, and so on: a
Prometheus behind a flood of others, too."""
PAGE = "/metrics"
PLAIN = "text/plain; charset=utf-8"


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
        self._clients: dict[asyncio.StreamWriter, None] = {}
        """In the order in which they came."""
        self._server: asyncio.Server | None = None
        self._starting = asyncio.get_running_loop().create_task(self._start())

    def close(self) -> None:
        """Take no more clients, and let those go that are there."""
        self._starting.cancel()
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for writer in self._clients:
            writer.transport.abort()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=MOST_BYTES, backlog=AT_ONCE)
        self._listener.listen(WAITING)  # the loop let no more wait than it takes in at once

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MOST_CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.transport.abort()
        self._clients[writer] = None
        try:
            async with asyncio.timeout(self._patience_s):
                writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                writer.close()
                await writer.wait_closed()
        except asyncio.LimitOverrunError:
            writer.write(_response("431 Request Header Fields Too Large", b"too long\n"))
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):  # it went away or is slow: its loss alone
            writer.transport.abort()
        finally:
            self._clients.pop(writer, None)

    async def _answer(self, request: bytes) -> bytes:
        try:
            method, path = parse_request(request)
        except ValueError as error:
            return _response("400 Bad Request", f"{error}\n".encode())
        if path != PAGE:
            return _response("404 Not Found", f"metrics are at {PAGE}\n".encode())
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"GET it\n", "Allow: GET, HEAD\r\n")
        body = await self._page()
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
