"""Private guests: which are declared so, and which of them KSM can merge all the same. Pure.

KSM has one pool for the whole host, so a guest is kept apart by `<memoryBacking><nosharepages/></memoryBacking>` alone.
Huge pages and shared memory keep a guest's own RAM out, but QEMU offers what lies beside it (video memory, firmware) to
KSM unless nosharepages forbids it, so they do not count here.

The XML is libvirt's own output, yet names and metadata in it are the guest's owner's. It is safe to parse: expat reads
it without looking anything up, a document type (without which there are no entities to expand) is refused, nesting
costs no stack, and what is larger than any domain is not read at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from xml.parsers import expat

from virtksm.model import Guest

NAMESPACE = "urn:virtksm:guest"
"""The namespace of virtksm's element <guest private="yes"/> in a domain's <metadata>."""

MAX_CHARACTERS = 4 * 1024 * 1024
"""libvirt's own limit for a domain's XML over its sockets."""

_NOSHAREPAGES = ("domain", "memoryBacking", "nosharepages")
_GUEST = ("domain", "metadata", f"{NAMESPACE} guest")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestXml:
    """What a guest's XML says: whether its metadata declares it private, and whether nosharepages keeps it out."""

    is_private: bool = False
    is_kept_out: bool = False


UNKNOWN = GuestXml()
"""Of XML that cannot be read: as far as is known, the guest can merge."""


def parse_guest_xml(text: str) -> GuestXml:
    """Parse a domain's XML; raises ValueError if it is none.

    Any value of `private` but "no" declares the guest private, so that a slip of the pen does not expose it.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS} characters")
    path: list[str] = []
    roots: list[str] = []
    is_private = is_kept_out = False

    def begin(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal is_private, is_kept_out
        if not path:
            roots.append(name)
        path.append(name)
        if len(path) != 3:
            return
        place = tuple(path)
        is_kept_out = is_kept_out or place == _NOSHAREPAGES
        is_private = is_private or (place == _GUEST and attributes.get("private", "no") != "no")

    def end(_name: str) -> None:
        path.pop()

    def refuse(*_told: object) -> None:
        raise ValueError("has a document type, which libvirt never writes")

    parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)  # noqa: FBT003  # expat takes no keyword
    except (expat.ExpatError, UnicodeEncodeError) as error:
        raise ValueError(f"is no XML: {error}") from error
    if roots != ["domain"]:
        raise ValueError("is no domain's XML")
    return GuestXml(is_private=is_private, is_kept_out=is_kept_out)


def exposed(guests: Iterable[Guest], known: Mapping[str, GuestXml], patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the private guests that can merge, of those whose XML is known by their key."""
    declared = tuple(patterns)

    def is_exposed(guest: Guest) -> bool:
        xml = known.get(guest.key)
        if xml is None or xml.is_kept_out:
            return False
        return xml.is_private or any(fnmatchcase(guest.name, pattern) for pattern in declared)

    return tuple(sorted(guest.name for guest in guests if is_exposed(guest)))
