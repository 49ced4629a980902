"""Reads guests' XML from libvirt, a call each (0.2-1 ms), and parses it. Never part of a pass."""

from __future__ import annotations

from collections.abc import Iterable

from virtksm.errors import GuestVanished, LibvirtUnreachable, VirtksmError
from virtksm.guest_xml import UNKNOWN, GuestXml, parse_guest_xml
from virtksm.model import Guest
from virtksm.ports import Descriptions

Seen = tuple[list[tuple[Guest, GuestXml | None]], list[VirtksmError]]


def read_guests(source: Descriptions, guests: Iterable[Guest]) -> Seen:
    """Read and parse the guests' XML; return it, and what went wrong with single guests.

    Instead of the XML stands None for a guest that has ended, UNKNOWN where it could not be had.
    Blocks. Raises LibvirtUnreachable when the connection is gone.
    """
    seen: list[tuple[Guest, GuestXml | None]] = []
    failures: list[VirtksmError] = []
    for guest in guests:
        try:
            seen.append((guest, parse_guest_xml(source.guest_xml(guest.uuid))))
        except GuestVanished:
            seen.append((guest, None))
        except LibvirtUnreachable:
            raise
        except (VirtksmError, ValueError) as error:
            seen.append((guest, UNKNOWN))
            failures.append(
                error if isinstance(error, VirtksmError) else VirtksmError(f"the XML of {guest.name!r} {error}")
            )
    return seen, failures
