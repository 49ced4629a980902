"""Which libvirt connection is meant, and whether it leads to this machine's own kernel. Imports nothing of libvirt."""

from __future__ import annotations

import os
from collections.abc import Mapping

DEFAULT_URI = "qemu:///system"
PLAIN = (DEFAULT_URI, "qemu:///session")
"""URIs that name no host, transport, socket or program: those that a command opens because an agent says so."""
VARIABLE = "LIBVIRT_DEFAULT_URI"


def named_uri(connect: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the URI that the user has named: --connect, else LIBVIRT_DEFAULT_URI as virsh has it; None for none."""
    return connect or environ.get(VARIABLE) or None


def is_alias(uri: str) -> bool:
    """Return whether a name is one of libvirt.conf's aliases, whose host only libvirt knows."""
    return ":" not in uri


def without_questions(uri: str) -> str:
    """Return the URI with which ssh asks nobody for anything, and tries no password (its BatchMode)."""
    scheme, _, rest = uri.partition(":")
    if not scheme.lower().endswith("+ssh") or "no_tty=" in rest:
        return uri
    return f"{uri}{'&' if '?' in rest else '?'}no_tty=1"


def is_local(uri: str) -> bool:
    """Return whether a connection's own URI means this machine's kernel: it names no host, nor a transport to one.

    By hand, as RFC 3986 splits a URI: importing urllib.parse takes 8 ms, and a one-shot counts them.
    """
    scheme, _, rest = uri.partition(":")
    _, _, transport = scheme.partition("+")
    names_host = rest.startswith("//") and rest[2:3] not in ("", "/", "?", "#")
    return transport.lower() in ("", "unix") and not names_host


def address(uri: str) -> tuple[str, str, str]:
    """Return the user, the host and the port that a URI names, each empty where it names none; IPv6 has no brackets."""
    authority = uri.partition("//")[2]
    for end in "/?#":
        authority = authority.partition(end)[0]
    user, _, rest = authority.rpartition("@")
    host, colon, port = rest.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = rest, ""
    return user, host.removeprefix("[").removesuffix("]"), port


def may_be_here(uri: str, own_name: str) -> bool:
    """Return whether a URI names no host, the loopback, or this machine by its own name, with or without a domain."""
    host, own = address(uri)[1].lower(), own_name.lower()
    is_loopback = host in ("", "localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdecimal())
    return is_loopback or f"{host}.".startswith(f"{own}.") or f"{own}.".startswith(f"{host}.")


def at_host(uri: str, remedy: str) -> str:
    """Return a remedy that is to be typed on the host behind `uri`."""
    return remedy if is_local(uri) else f"on that host: {remedy}"
