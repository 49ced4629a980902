"""A socket of the agent: one request line from each client, and one answer line (agent/clients.py has the bounds).

The control socket accepts root and the agent's own user (SO_PEERCRED; it is 0600 from the moment it exists). A socket
for readers accepts every user who may open its file, answers queries only (READING), and limits the clients of each
user.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from virtksm.agent.clients import PATIENCE_S, Clients
from virtksm.agent.control_client import MAX_LINE

Handler = Callable[[Mapping[str, object]], Awaitable[dict[str, object]]]

MAX_CLIENTS = 32
BACKLOG = 100
MAX_OF_A_READER = 4
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


class ControlServer:
    """Serves a listening socket with `handle`, whose exceptions are answered as such and given to `crashed`.

    `patience_s` is how long a client may take to ask, and then to read the answer.
    """

    def __init__(
        self,
        listener: socket.socket,
        handle: Handler,
        *,
        for_readers: bool = False,
        patience_s: float = PATIENCE_S,
        crashed: Callable[[str, Exception], None] = lambda _op, _error: None,
    ) -> None:
        self._handle = handle
        self._for_readers = for_readers
        self._crashed = crashed
        listener.listen(BACKLOG)
        self.clients = Clients(
            listener,
            self._answer,
            end=b"\n",
            max_bytes=MAX_LINE,
            max_clients=MAX_CLIENTS,
            patience_s=patience_s,
            refuse=self._refuse,
            farewell=TOO_MANY,
        )

    def _refuse(self, client: socket.socket) -> bytes | None:
        uid = peer_uid(client)
        if uid in (0, os.geteuid()):
            return None
        if not self._for_readers:
            return _line(failure("only root and the agent's own user may ask here", 1))
        places = Counter(map(peer_uid, self.clients.connected))
        return TOO_MANY if places[uid] >= MAX_OF_A_READER else None

    async def _answer(self, sent: bytes) -> bytes:
        try:
            request = json.loads(sent.partition(b"\n")[0] if len(sent) <= MAX_LINE else b"")
        except (ValueError, RecursionError):
            return _line(failure("the request is no JSON line, or too long", 2))
        if not isinstance(request, dict):
            return _line(failure("the request is no JSON object", 2))
        op = request.get("op")
        if self._for_readers and op not in READING:
            what = f"this socket answers {', '.join(READING)} alone"
            return _line(failure(f"{what}; only root and the agent's own user may ask more", 1))
        try:
            return _line(await self._handle(request))
        except Exception as error:  # noqa: BLE001  # the last resort: it costs this request alone
            self._crashed(str(op), error)
            return _line(failure("internal error", 1))


def _line(answer: Mapping[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def failure(error: str, exit_code: int, remedy: str = "") -> dict[str, object]:
    """Return the answer to a request that failed."""
    return {"ok": False, "error": error, "exit_code": int(exit_code)} | ({"remedy": remedy} if remedy else {})


TOO_MANY = _line(failure("too many clients", 1))
