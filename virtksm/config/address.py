"""An address and port to listen at, as text. Pure: host names are not resolved."""

from __future__ import annotations

import ipaddress
import re

MAX_SHOWN = 60


def parse_address(text: str) -> tuple[str, int]:
    """Return the address (IPv4 or IPv6) and the port of "127.0.0.1:9876" or "[::1]:9876"; raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]{1,45})\]|([0-9.]{1,15})):([0-9]{1,5})", text)
    if found is None:
        raise ValueError(f"is {text[:MAX_SHOWN]!r}, no address with a port")
    address, port = found[1] or found[2], int(found[3])
    try:
        known = ipaddress.IPv6Address(address) if found[1] else ipaddress.IPv4Address(address)
    except ValueError:
        raise ValueError(f"is {text!r}, whose address is none") from None
    if not 1 <= port <= 65_535:
        raise ValueError(f"is {text!r}, whose port is none")
    return str(known), port
