"""The agent's control socket: reads one request line, hands it to a handler, writes one answer line.

Only root and the agent's own user are heard (SO_PEERCRED; the socket is 0600 from the moment it exists). Requests are
bounded in size and time and connections in number, so no client can hold up a pass.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping

from virtksm.adapters.control import MAX_LINE

Handler = Callable[[Mapping[str, object]], Awaitable[dict[str, object]]]

REQUEST_WITHIN_S = 5.0
MAX_CLIENTS = 32


def bind_socket(path: str) -> socket.socket:
    """Bind a listening unix socket at `path`, 0600 from its first moment; the caller holds the agent's lock.

    Raises OSError.
    """
    remove_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before bind: Linux gives the socket file this mode
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    return listener


def remove_socket(path: str) -> None:
    """Remove the socket file that this agent, or one that was killed, has left; raises OSError."""
    if os.path.lexists(path):
        os.unlink(path)


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process that connected (SO_PEERCRED)."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


class ControlServer:
    """Serves the socket with `handle`, which must not raise."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._clients = 0
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            answer = await self._answer(reader, writer)
            if answer is not None:
                writer.write(json.dumps(answer).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), REQUEST_WITHIN_S)
        except (OSError, TimeoutError):
            pass  # the client went away or does not read: its loss alone
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, object] | None:
        if self._clients > MAX_CLIENTS:
            return {"ok": False, "error": "too many clients", "exit_code": 1}
        if peer_uid(writer.get_extra_info("socket")) not in (0, os.geteuid()):
            return {"ok": False, "error": "only root and the agent's own user may ask", "exit_code": 1}
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_WITHIN_S)
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"ok": False, "error": "the request is no JSON line, or too long", "exit_code": 2}
        except TimeoutError:
            return None
        if not isinstance(request, dict):
            return {"ok": False, "error": "the request is no JSON object", "exit_code": 2}
        return await self._handle(request)
