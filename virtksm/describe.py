"""Reads guests' XML from libvirt, a call each (0.2-1 ms), and parses it. Never part of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from virtksm.errors import GuestVanished, LibvirtUnreachable, Unforeseen, VirtksmError
from virtksm.guest_xml import UNKNOWN, GuestXml, parse_guest_xml
from virtksm.guests.ports import Descriptions
from virtksm.model.snapshot import Guest

Seen = tuple[list[tuple[Guest, GuestXml | None]], list[VirtksmError]]


def read_guests(source: Descriptions, guests: Iterable[Guest], *, is_over: Callable[[], bool] = lambda: False) -> Seen:
    """Read and parse the guests' XML; return it, and what went wrong with single guests.

    Instead of the XML stands None for a guest that has ended, UNKNOWN where it could not be had, for whatever reason:
    no guest keeps the others from being read. `is_over` is asked after each guest whether to leave those that follow.
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
        except ValueError as error:
            seen.append((guest, UNKNOWN))
            failures.append(VirtksmError(f"the XML of {guest.name!r} {error}"))
        except Exception as error:  # noqa: BLE001  # what nobody thought of is no reason to leave out the others
            seen.append((guest, UNKNOWN))
            failures.append(Unforeseen(f"the XML of {guest.name!r} cannot be read: {type(error).__name__}: {error}"))
            failures[-1].__cause__ = error
        if is_over():
            break
    return seen, failures
