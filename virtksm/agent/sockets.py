"""The agent's sockets: one request line from each client, and one answer line (agent/clients.py has the bounds).

The control socket accepts root and the agent's own user (SO_PEERCRED; it is 0600 from the moment it exists). On the
status socket the members of one group may read the agent's status, and do nothing else (READING); the clients of each
user are limited. It is apart from the control socket, so that readers take neither places nor the kernel's queue from
root's requests. It exists only while the configuration has a `status_group`. The kernel judges who may connect, by the
socket's group and mode, which it has before it listens and before it has its name.
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
from virtksm.config.load import unknown_group
from virtksm.errors import ConfigError, ConfigFault
from virtksm.paths import RuntimePaths

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
            last_word=TOO_MANY,
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


class StatusSocket:
    """Opened, replaced and closed as the configuration says; to be used from one asyncio loop."""

    def __init__(
        self,
        paths: RuntimePaths,
        handle: Handler,
        crashed: Callable[[str, Exception], None] = lambda _op, _error: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._paths = paths
        self._handle = handle
        self._crashed = crashed
        self._patience_s = patience_s
        self._group: str | None = None
        self._server: ControlServer | None = None

    def follow(self, group: str, gid: int | None) -> None:
        """Let `group` read, "" for no group; `gid` is its number, None if there is no such group.

        Asks no name service, as it must not block. Raises ConfigError and leaves everything as it was.
        """
        if group == self._group:
            return
        listener = _bind(self._paths, group, gid) if group else None
        self.close()
        self._group = group
        if listener is None:
            remove_socket(self._paths.status_socket)
        else:
            self._server = ControlServer(
                listener, self._handle, for_readers=True, crashed=self._crashed, patience_s=self._patience_s
            )

    def close(self) -> None:
        """Stop serving; the socket file stays for its successor to replace or remove."""
        self._group = None
        if self._server is not None:
            self._server.clients.close()
        self._server = None


def _bind(paths: RuntimePaths, group: str, gid: int | None) -> socket.socket:
    if gid is None:
        raise ConfigError([unknown_group(group, paths.status_socket)])
    try:
        admit_group(paths.agent_dir, gid)
        return bind_for_group(paths.status_socket, gid)
    except OSError as error:
        remedy = "the agent's user must be a member of that group (SupplementaryGroups= in its unit), or be root"
        problem = f"is {group!r}, and cannot be given the socket: {error.strerror}"
        fault = ConfigFault(file=paths.status_socket, key="status_group", problem=problem, remedy=remedy)
        raise ConfigError([fault]) from error


def admit_group(folder: str, gid: int) -> None:
    """Let a group reach what it may open in `folder`, without listing it; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, 0o710)
    finally:
        os.close(descriptor)


def bind_for_group(path: str, gid: int) -> socket.socket:
    """Return a listening socket at `path` that root, its owner and a group may connect to; raises OSError.

    It takes the place of an older one at once, and has its owner, group and mode before it can be reached.
    """
    temporary = f"{path}.new"
    listener = bind_socket(temporary)
    try:
        descriptor = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            itself = f"/proc/self/fd/{descriptor}"  # chmod has no way of its own not to follow a link
            os.chown(itself, -1, gid)
            os.chmod(itself, 0o660)
        finally:
            os.close(descriptor)
        listener.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError:
        listener.close()
        remove_socket(temporary)
        raise
    return listener
