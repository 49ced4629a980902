"""A socket of the agent's: reads one request line from each client, hands it to a handler, writes one answer line.

The control socket hears root and the agent's own user (SO_PEERCRED; it is 0600 from the moment it exists). A socket for
readers hears whom the kernel lets connect, answers questions alone (READING), and gives each user few places. Requests
are bounded in size and time and clients in number, so no client can hold up a pass, or another user's request.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from virtksm.adapters.control import MAX_LINE

Handler = Callable[[Mapping[str, object]], Awaitable[dict[str, object]]]

PATIENCE_S = 5.0
MAX_CLIENTS = 32
MAX_OF_A_READER = 4
BACKLOG = 100
READING = ("status", "history", "decisions")


def bind_socket(path: str) -> socket.socket:
    """Bind a unix socket at `path`, 0600 from its first moment; the caller holds the agent's lock.

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
    """Serves a socket with `handle`, which must not raise.

    `patience_s` is how long a client may take to ask, and then to read the answer.
    """

    def __init__(self, handle: Handler, *, for_readers: bool = False, patience_s: float = PATIENCE_S) -> None:
        self._handle = handle
        self._for_readers = for_readers
        self._patience_s = patience_s
        self._clients: Counter[int] = Counter()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket, *, backlog: int = BACKLOG) -> None:
        """Serve `listener`; `backlog` is also how many clients are taken in before the loop does something else."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE, backlog=backlog)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        refusal = self._find_refusal(uid)
        if refusal is not None:
            writer.write(_line(refusal))
            writer.close()
            return
        self._clients[uid] += 1
        try:
            answer = await self._answer(reader)
            if answer is not None:
                writer.write(_line(answer))
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), self._patience_s)
        except (OSError, TimeoutError):  # the client went away or does not read: its loss alone
            pass
        finally:
            writer.transport.abort()
            self._clients[uid] -= 1
            self._clients += Counter()  # forgets who has none left

    def _find_refusal(self, uid: int) -> dict[str, object] | None:
        """Return the answer to a client that is not heard."""
        is_stranger = uid not in (0, os.geteuid())
        if is_stranger and not self._for_readers:
            return _failure("only root and the agent's own user may ask here", 1)
        if self._clients.total() >= MAX_CLIENTS or (is_stranger and self._clients[uid] >= MAX_OF_A_READER):
            return _failure("too many clients", 1)
        return None

    async def _answer(self, reader: asyncio.StreamReader) -> dict[str, object] | None:
        try:
            line = await asyncio.wait_for(reader.readline(), self._patience_s)
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _failure("the request is no JSON line, or too long", 2)
        except TimeoutError:
            return None
        if not isinstance(request, dict):
            return _failure("the request is no JSON object", 2)
        if self._for_readers and request.get("op") not in READING:
            return _failure(
                f"this socket answers {', '.join(READING)} alone; only root and the agent's own user may ask more", 1
            )
        return await self._handle(request)


def _line(answer: Mapping[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _failure(error: str, exit_code: int) -> dict[str, object]:
    return {"ok": False, "error": error, "exit_code": exit_code}
