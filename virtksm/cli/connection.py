"""Which host a command means, and libvirt within a limit: a daemon that hangs must not keep a command from ending.

No command opens a URI from an agent: libvirt runs programs that a URI names, and the agent has fewer rights than root.
Only the user's URI, root's (virtksm.service's environment) or the default is opened.
"""

from __future__ import annotations

import sys

from virtksm.text import printable
from virtksm.uri import DEFAULT_URI, VARIABLE, named_uri

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from virtksm.config.schema import Config
    from virtksm.errors import VirtksmError
    from virtksm.host.libvirt_connection import LibvirtHost

    Result = TypeVar("Result")

AGENTS_UNIT = "virtksm.service"


def requested_uri(connect: str | None) -> str:
    """Return the URI to open: the one that the user has named, else the agent's unit's, else qemu:///system.

    libvirt itself resolves the aliases of libvirt.conf. Its `uri_default` is not asked: a daemon's user has none.
    """
    named = named_uri(connect)
    if named is not None:
        return named
    from virtksm.host.systemd import unit_variable

    return unit_variable(AGENTS_UNIT, VARIABLE) or DEFAULT_URI


def config_or_defaults(path: str | None) -> tuple[Config, bool]:
    """Return the configuration, and whether it has faults: a faulty key is a warning, and gets its default.

    For commands that must never need a valid one: stopping, and reading.
    """
    from virtksm.config.load import load_or_defaults

    config, faults = load_or_defaults(path)
    if faults:
        more = "" if len(faults) == 1 else f" (and {len(faults) - 1} more: virtksm config check)"
        warn(f"the configuration has faults, the defaults hold in their place: {faults[0]}{more}")
    return config, bool(faults)


def warn(text: str) -> None:
    """Print a warning at once, as one line on standard error."""
    print(printable(f"virtksm: warning: {text}"), file=sys.stderr, flush=True)


class Libvirt:
    """Makes a command's calls of libvirt, each within `limit_s` or a multiple; no more after the first that hangs."""

    def __init__(self, limit_s: float) -> None:
        from virtksm.host.bounded import BoundedCalls

        self._limit_s = limit_s
        self._calls = BoundedCalls(_hangs)

    def open(self, uri: str, *, read_only: bool = False) -> LibvirtHost:
        """Open a connection; raises LibvirtUnreachable, of which LibvirtTimeout is one."""
        from virtksm.host.libvirt_connection import open_host

        return self.run(uri, lambda: open_host(uri, read_only=read_only))

    def run(self, what: str, call: Callable[[], Result], *, times: int = 1, more_s: float = 0.0) -> Result:
        """Make a call that may take `times` the limit and `more_s`; raises LibvirtTimeout, and what it raises."""
        return self._calls.run(what, call, self._limit_s * times + more_s)


def _hangs(message: str) -> VirtksmError:
    from virtksm.errors import LibvirtTimeout

    return LibvirtTimeout(
        message,
        remedy="most likely libvirt's daemon hangs: systemctl restart libvirtd (or virtqemud); guests go on running",
    )
