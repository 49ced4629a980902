"""The agent's web server on real sockets: one page, and nobody who can keep it from others."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.full_disk import no_more_descriptors
from tests.lab.hang import HANG_S
from virtksm.agent.metrics.server import MAX_BYTES, MAX_CLIENTS, bind, parse_request, serve
from virtksm.config.schema import parse_address

PAGE = b"virtksm_up 1\n"
TYPE = "text/plain; version=0.0.4"


@asynccontextmanager
async def served(body: bytes = PAGE, buffer: int | None = None) -> AsyncIterator[int]:
    """Lend the port of a server; `buffer` bytes are what the kernel takes for a client."""
    listener = bind("127.0.0.1", 0)
    if buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)

    async def page() -> bytes:
        return body

    server = serve(listener, page, TYPE, patience_s=HANG_S)
    try:
        async with asyncio.timeout(HANG_S):
            yield listener.getsockname()[1]
    finally:
        server.close()


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):  # the server let it go first
        await writer.wait_closed()


def request(line: bytes) -> bytes:
    return line + b"\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("line", [b"GET /metrics HTTP/1.0", b"GET /metrics?x=1 HTTP/1.1", b"HEAD /metrics HTTP/1.1"])
async def test_the_page_is_served(line: bytes) -> None:
    async with served() as port:
        head, _, body = (await ask(port, request(line))).partition(b"\r\n\r\n")
        assert head.split(b"\r\n") == [
            b"HTTP/1.1 200 OK",
            b"Content-Type: " + TYPE.encode(),
            b"Content-Length: %d" % len(PAGE),
            b"Connection: close",
        ]
        assert body == (b"" if line.startswith(b"HEAD") else PAGE)
        head, _, body = (await ask(port, request(line.replace(b"metrics", b"")))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/html")
        assert line.startswith(b"HEAD") or b'<a href="/metrics">' in body


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /metrics/../etc/passwd HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"GET /metrics HTTP/2.0", b"400 Bad Request"),
        (b"", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n" + b"A" * MAX_BYTES, b"431 Request Header Fields Too Large"),
    ],
)
async def test_everything_else_is_refused(line: bytes, status: bytes) -> None:
    async with served() as port:
        answer = await ask(port, request(line))
        assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")


@given(
    st.binary()
    | st.binary().map(lambda rest: b"GET /metrics" + rest)
    | st.binary().map(lambda rest: rest + b" HTTP/1.1\r\n")
)
def test_any_bytes_are_a_request_or_none(sent: bytes) -> None:
    try:
        method, path = parse_request(sent)
    except ValueError:
        return
    assert method.isupper()
    assert path.isprintable()
    assert sent.startswith(f"{method} {path}".encode())


@pytest.mark.parametrize("is_taken_in", [False, True])
async def test_a_client_that_has_asked_is_answered_before_later_ones(*, is_taken_in: bool) -> None:
    async with served() as port:
        with ExitStack() as flood:  # the loop does nothing meanwhile: it finds all of them at once, in this order
            asker = flood.enter_context(socket.create_connection(("127.0.0.1", port), HANG_S))
            if is_taken_in:
                assert PAGE in await ask(port, request(b"GET /metrics HTTP/1.1"))
                asker.sendall(request(b"GET /metrics HTTP/1.1"))
            for _ in range(3 * MAX_CLIENTS):
                flood.enter_context(socket.create_connection(("127.0.0.1", port), HANG_S))
            if not is_taken_in:
                asker.sendall(request(b"GET /metrics HTTP/1.1"))
            assert PAGE in await asyncio.to_thread(receive_all, asker)


async def test_where_nobody_reads_the_oldest_answer_gives_way() -> None:
    async with served(body=bytes(1 << 20), buffer=4096) as port:
        with ExitStack() as flood:
            for _ in range(MAX_CLIENTS):
                client = flood.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.sendall(request(b"GET /metrics HTTP/1.1"))
            assert b"404 Not Found" in await ask(port, request(b"GET /late HTTP/1.1"))


async def test_who_keeps_the_agents_descriptors_short_is_waited_for() -> None:
    async with served() as port:
        assert PAGE in await ask(port, request(b"GET /metrics HTTP/1.1"))
        with socket.create_connection(("127.0.0.1", port), HANG_S) as client:
            client.sendall(request(b"GET /metrics HTTP/1.1"))
            with no_more_descriptors():
                await asyncio.sleep(0.05)  # the loop looks, and can take nobody in
            assert PAGE in await asyncio.to_thread(receive_all, client)


def receive_all(client: socket.socket) -> bytes:
    """Return what comes until the server has no more, or breaks off."""
    text = b""
    with suppress(ConnectionError):
        while chunk := client.recv(1 << 16):
            text += chunk
    return text


@pytest.mark.parametrize(
    "text", ["9876", "localhost:9876", "127.0.0.1:0", "127.0.0.256:1", "::1:9876", "127.0.0.1:٣", "127.0.0.1:9876\n"]
)
def test_what_is_no_address_is_told(text: str) -> None:
    assert parse_address("192.0.2.7:1") == ("192.0.2.7", 1)
    assert parse_address("[fe80:0::1]:65535") == ("fe80::1", 65535)
    with pytest.raises(ValueError, match=r"^is "):
        parse_address(text)
