"""Which host a command means, and libvirt within a limit: a daemon that hangs must not keep a command from ending.

Of the URIs that an agent names, a command opens uri.PLAIN alone: libvirt runs programs and opens sockets that others
name, and the agent has fewer rights than root.
"""

from __future__ import annotations

from virtksm.cli.main import complain
from virtksm.uri import DEFAULT_URI, PLAIN, VARIABLE, named_uri

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from virtksm.config.schema import Config
    from virtksm.host.libvirt_connection import LibvirtHost
    from virtksm.paths import RuntimePaths

    Result = TypeVar("Result")

MAX_URI = 1024
AGENTS_UNIT = "virtksm.service"


def requested_uri(connect: str | None, paths: RuntimePaths | None = None) -> str:
    """Return the URI to open: the one that the user has named, else the agent's, its unit's, or qemu:///system.

    The agent of `paths` is asked; without them none is. Where its URI is not opened, a warning says which one is.
    libvirt itself resolves the aliases of libvirt.conf. Its `uri_default` is not asked: a daemon's user has none.
    """
    named = named_uri(connect)
    if named is not None:
        return named
    agents = None if paths is None else agents_uri(paths)
    if agents is not None and agents in PLAIN:
        return agents
    from virtksm.host.systemd import unit_variable

    uri = unit_variable(AGENTS_UNIT, VARIABLE) or DEFAULT_URI
    if agents not in (None, uri):
        warn(f"the agent serves {agents}; this is about {uri} (-c URI names another)")
    return uri


def agents_uri(paths: RuntimePaths) -> str | None:
    """Return the URI of the agent that runs, as it says; None where none does, or none answers this user."""
    from virtksm.cli.ask_agent import ask_agent
    from virtksm.errors import VirtksmError

    try:
        answer = ask_agent(paths, {"op": "status", "uri": ""})  # no agent's, so that it names its own
    except VirtksmError:
        return None
    match answer:
        case {"other_uri": str() as uri} if len(uri) <= MAX_URI:
            return uri
    return None


def config_or_defaults(path: str | None) -> tuple[Config, bool]:
    """Return the configuration, and whether it has faults: a faulty key is a warning, and gets its default.

    For commands that must never need a valid one: stopping, and reading.
    """
    from virtksm.config.load import read

    loaded, faults = read(path)
    if faults:
        more = "" if len(faults) == 1 else f" (and {len(faults) - 1} more: virtksm config check)"
        warn(f"the configuration has faults, the defaults hold in their place: {faults[0]}{more}")
    return loaded.config, bool(faults)


def warn(text: str) -> None:
    complain([f"virtksm: warning: {text}"])


class Libvirt:
    """Makes a command's calls of libvirt, each within `limit_s` or a multiple; no more after the first that hangs."""

    def __init__(self, uri: str, limit_s: float) -> None:
        from virtksm.host.bounded import BoundedCalls
        from virtksm.host.systemd import libvirt_hangs

        self._uri = uri
        self._limit_s = limit_s
        self._host: LibvirtHost | None = None
        # Not of self, which would keep the connection open until the process has ended.
        self._calls = BoundedCalls(lambda message: libvirt_hangs(message, uri))

    def open(self, *, read_only: bool = False) -> LibvirtHost:
        """Open a connection; raises LibvirtUnreachable, of which LibvirtTimeout is one."""
        from virtksm.host.libvirt_connection import open_host

        return self.run(self._uri, lambda: open_host(self._uri, read_only=read_only))

    def ask(self, what: str, call: Callable[[LibvirtHost], Result], *, times: int = 1) -> Result:
        """Make a call, as `run`, over a read-only connection, which is kept for the next one unless it breaks."""
        host, self._host = self._host or self.open(read_only=True), None
        result = self.run(what, lambda: call(host), times=times)
        self._host = host
        return result

    def run(self, what: str, call: Callable[[], Result], *, times: int = 1, more_s: float = 0.0) -> Result:
        """Make a call that may take `times` the limit and `more_s`; raises LibvirtTimeout, and what it raises."""
        return self._calls.run(what, call, self._limit_s * times + more_s)
