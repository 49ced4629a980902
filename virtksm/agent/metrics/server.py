"""A web server for one page: answers GET /metrics from the agent's own loop (agent/clients.py has the bounds).

The library's own server takes a thread for each connection, without a limit to either their number or their time, and
cannot be stopped again before its version 0.19.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from functools import partial

from virtksm.agent.clients import PATIENCE_S, Clients
from virtksm.errors import VirtksmError

MAX_CLIENTS = 128
"""A client has 12 ms to ask where 10,000 others a second say nothing."""
MAX_BYTES = 8192
"""Of a request: its first line and its headers."""
WAITING = 1024
"""Clients that wait in the kernel. One more would have to wait for a second, then for two, and so on: a
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


def serve(
    listener: socket.socket, page: Callable[[], Awaitable[bytes]], content_type: str, *, patience_s: float = PATIENCE_S
) -> Clients:
    """Serve what `page` returns, in the running loop, until what is returned is closed."""
    return Clients(
        listener,
        partial(_answer, page, content_type),
        end=b"\r\n\r\n",
        max_bytes=MAX_BYTES,
        max_clients=MAX_CLIENTS,
        patience_s=patience_s,
    )


async def _answer(page: Callable[[], Awaitable[bytes]], content_type: str, request: bytes) -> bytes:
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
        body = await page()
    except VirtksmError as error:
        return _response("500 Internal Server Error", f"{error.message}\n".encode())
    return _response("200 OK", body, content_type=content_type, with_body=method == "GET")


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
