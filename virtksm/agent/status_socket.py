"""The socket on which the members of one group may read the agent's status, and do nothing else.

It is apart from the control socket, so that readers take neither places nor the kernel's queue from root's requests. It
exists only while the configuration has a `status_group`. The kernel judges who may connect, by the socket's group and
mode, which it has before it listens and before it has its name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from virtksm.agent.control_server import BACKLOG, ControlServer, Handler, bind_socket, remove_socket
from virtksm.config.load import unknown_group
from virtksm.errors import ConfigError, ConfigFault
from virtksm.paths import RuntimePaths


class StatusSocket:
    """Opened, replaced and closed as the configuration says; to be used from one asyncio loop."""

    def __init__(
        self, paths: RuntimePaths, handle: Handler, crashed: Callable[[str, Exception], None] = lambda _op, _error: None
    ) -> None:
        self._paths = paths
        self._handle = handle
        self._crashed = crashed
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
            self._server = ControlServer(listener, self._handle, for_readers=True, crashed=self._crashed)

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
