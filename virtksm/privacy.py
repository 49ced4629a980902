"""Private guests: which are declared so, and which of them KSM can merge all the same. Pure.

KSM has one pool for the whole host, so a guest is kept apart by `<memoryBacking><nosharepages/></memoryBacking>` alone.
Huge pages and shared memory keep a guest's own RAM out, but QEMU offers what lies beside it (video memory, firmware) to
KSM unless nosharepages forbids it, so they do not count here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from virtksm.guest_xml import GuestXml
from virtksm.model.snapshot import Guest


def is_private(guest: Guest, xml: GuestXml, patterns: Iterable[str]) -> bool:
    """Return whether a guest is declared private, by its XML or by its name."""
    return xml.is_private or any(fnmatchcase(guest.name, pattern) for pattern in patterns)


def exposed(guests: Iterable[Guest], known: Mapping[str, GuestXml], patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the private guests that can merge, of those whose XML is known by their key."""
    declared = tuple(patterns)

    def is_exposed(guest: Guest) -> bool:
        xml = known.get(guest.key)
        return xml is not None and not xml.is_kept_out and is_private(guest, xml, declared)

    return tuple(sorted(guest.name for guest in guests if is_exposed(guest)))
