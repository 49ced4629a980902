"""A socket of the agent: reads one request line from each client, hands it to a handler, writes one answer line.

The control socket accepts root and the agent's own user (SO_PEERCRED; it is 0600 from the moment it exists). A socket
for readers accepts every user who may open its file, answers queries only (READING), and limits the clients of each
user. Requests are bounded in size and time and clients in number, so no client can hold up a pass. Where all places are
taken, a new client replaces another: first one without a request, and a client of root only if the new one is root's.
So root always gets an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from virtksm.agent.control_client import MAX_LINE

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


def leave_socket(path: str) -> None:
    """Remove it at the agent's end, if that can be: what took its place is the next start's trouble, which names it."""
    with suppress(OSError):
        remove_socket(path)


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process that connected (SO_PEERCRED)."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


@dataclass(slots=True, eq=False)
class Client:
    """A connected client; `has_asked`: its request has been read."""

    uid: int
    writer: asyncio.StreamWriter
    task: asyncio.Task[None]
    has_asked: bool = False


class ControlServer:
    """Serves a socket with `handle`; an exception of it is answered by "internal error" and given to `crashed`.

    `patience_s` is how long a client may take to ask, and then to read the answer.
    """

    def __init__(
        self,
        handle: Handler,
        *,
        for_readers: bool = False,
        patience_s: float = PATIENCE_S,
        crashed: Callable[[str, Exception], None] = lambda _op, _error: None,
    ) -> None:
        self._handle = handle
        self._for_readers = for_readers
        self._patience_s = patience_s
        self._crashed = crashed
        self.clients: list[Client] = []
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket, *, backlog: int = BACKLOG) -> None:
        """Serve `listener`; `backlog` is also how many clients are accepted before the loop does something else."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE, backlog=backlog)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio serves each client in a task"
        client = Client(uid=peer_uid(writer.get_extra_info("socket")), writer=writer, task=task)
        refusal = self._find_refusal(client.uid)
        if refusal is not None:
            writer.write(_line(refusal))
            writer.close()
            return
        self.clients.append(client)
        try:
            answer = await self._answer(reader, client)
            if answer is not None:
                writer.write(answer)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), self._patience_s)
        except (OSError, TimeoutError):  # the client went away or does not read: its loss alone
            _abort(writer)
        except asyncio.CancelledError:
            _abort(writer)
            raise
        finally:
            if client in self.clients:
                self.clients.remove(client)

    def _find_refusal(self, uid: int) -> dict[str, object] | None:
        """Return the answer to a client that is refused; None makes room for it."""
        is_stranger = uid not in (0, os.geteuid())
        if is_stranger and not self._for_readers:
            return failure("only root and the agent's own user may ask here", 1)
        places = Counter(client.uid for client in self.clients)
        if is_stranger and places[uid] >= MAX_OF_A_READER:
            return failure("too many clients", 1)
        if len(self.clients) < MAX_CLIENTS:
            return None
        leaving = [client for client in self.clients if uid == 0 or client.uid != 0]  # only root takes root's place
        if not leaving:
            return failure("too many clients", 1)
        # Of those, one who has not asked; of the user with most places; the first to come.
        self._evict(min(leaving, key=lambda client: (client.has_asked, client.uid == 0, -places[client.uid])))
        return None

    def _evict(self, client: Client) -> None:
        self.clients.remove(client)
        if not client.writer.is_closing():
            client.writer.write(_line(failure("too many clients", 1)))
            client.writer.close()
        client.task.cancel()

    async def _answer(self, reader: asyncio.StreamReader, client: Client) -> bytes | None:
        """Return the answer to a client's request as a line; None where none comes."""
        try:
            line = await asyncio.wait_for(reader.readline(), self._patience_s)
            client.has_asked = True
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _line(failure("the request is no JSON line, or too long", 2))
        except TimeoutError:
            return None
        if not isinstance(request, dict):
            return _line(failure("the request is no JSON object", 2))
        op = request.get("op")
        if self._for_readers and op not in READING:
            return _line(
                failure(
                    f"this socket answers {', '.join(READING)} alone; only root and the agent's own user may ask more",
                    1,
                )
            )
        try:
            return _line(await self._handle(request))
        except Exception as error:  # noqa: BLE001  # the last resort: it costs this request alone
            self._crashed(str(op), error)
            return _line(failure("internal error", 1))


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection at once. A transport that has just ended by itself raises AttributeError (CPython to 3.13)."""
    with suppress(AttributeError):
        writer.transport.abort()


def _line(answer: Mapping[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def failure(error: str, exit_code: int, remedy: str = "") -> dict[str, object]:
    """Return the answer to a request that failed."""
    return {"ok": False, "error": error, "exit_code": int(exit_code)} | ({"remedy": remedy} if remedy else {})
