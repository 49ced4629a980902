"""A guest's memory in its XML: how much, what bounds, backs and pins it, whether it is private or encrypted, its image.

Parsing is pure. The XML is libvirt's own output for a running guest, yet the guest's owner chooses names and metadata
in it. It is safe to parse: expat opens no file, a document type (without which there are no entities to expand) is
refused, nesting costs no stack, and XML larger than any domain's is not read at all. `read_guests` makes a call of
libvirt for each guest (0.2-1 ms); it is never part of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from xml.etree import ElementTree as ET

from virtksm.errors import GuestVanished, LibvirtUnreachable, Unforeseen, VirtksmError
from virtksm.guests.ports import Descriptions
from virtksm.model.snapshot import IMAGE, Guest

NAMESPACE = "urn:virtksm:guest"
"""The namespace of virtksm's element <guest private="yes" group="NAME"/> in a domain's <metadata>."""

MAX_CHARACTERS = 1 << 20
"""Ten times that of a domain with a hundred disks; the tree of hostile XML of this length takes 42 MiB (measured)."""

MAX_DIGITS = 18
"""Of an amount of memory in KiB."""

MAX_CELLS = 4096
"""NUMA cells of a guest that are told apart: a thousand times what any guest has."""
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_PINNING_DEVICES = frozenset(
    {("hostdev", "pci"), ("interface", "hostdev"), ("interface", "vdpa"), ("disk", "nvme"), ("disk", "vhostvdpa")}
)
"""Devices (element, type) that reach the guest's memory past its process, through VFIO or vDPA, which pins all of it.

Mediated devices (mdev) pin only what they use.
"""
_BINDING = ("strict", "restrictive")
"""numatune's modes that leave a guest no other node's memory; strict is the default."""
_SOURCE = ("file", "dev", "pool", "volume", "protocol", "name")
"""The attributes that say where a backing store is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestXml:
    """A running guest's XML; memory in KiB, None where it is not in it.

    `is_private` and `group` are what its metadata declares. `is_kept_out`: nosharepages. `memory_kib` is its maximum
    (`memory`), `current_kib` its present size (`currentMemory`, the balloon), `limit_kib` what its own control group
    allows its QEMU: `memtune`'s hard or soft limit, memory.max and memory.high there. `bound_to` are the host's NUMA
    nodes that it may take memory from and from no others (`numatune`, strict), a set for each cell that has its own.
    `has_hugepages` and `is_shared` mean all of its RAM, `pins_memory` of its devices. `is_confidential`: its memory is
    encrypted, by whatever type of launchSecurity. `qemu_arguments` are those that the administrator adds to QEMU's
    command line. `image` stands for the innermost backing store of the first disk that has one, else for the kernel
    that it boots. `reports_free_pages`: it gives memory back that its kernel has freed (libvirt 6.9, QEMU 5.1).
    """

    is_private: bool = False
    group: str | None = None
    is_kept_out: bool = False
    memory_kib: int | None = None
    current_kib: int | None = None
    limit_kib: int | None = None
    bound_to: tuple[tuple[int, ...], ...] = ()
    has_hugepages: bool = False
    is_shared: bool = False
    pins_memory: bool = False
    is_confidential: bool = False
    qemu_arguments: tuple[str, ...] = ()
    image: str | None = None
    reports_free_pages: bool = False


UNKNOWN = GuestXml()
"""Of XML that cannot be read: as far as is known, the guest can merge."""


def parse_guest_xml(text: str) -> GuestXml:
    """Parse a domain's XML; raises ValueError if it is none.

    Any value of `private` but "no" declares the guest private, so that a typing error does not expose it.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS} characters")
    try:
        domain = ET.XML(text, ET.XMLParser(target=_Builder()))  # noqa: S314  # see above
    except (ET.ParseError, UnicodeEncodeError) as error:
        raise ValueError(f"is no XML: {error}") from error
    if domain.tag != "domain":
        raise ValueError("is no domain's XML")
    declared = domain.findall(f"metadata/{{{NAMESPACE}}}guest")
    source, access = (_last(domain, f"memoryBacking/{name}") for name in ("source", "access"))
    # Without an <access>, QEMU shares memfd and nothing else.
    default = access.get("mode") or ("shared" if source.get("type") == "memfd" else "private")
    cells = domain.findall("cpu/numa/cell") or [_NONE]
    limits = [_amount(domain, f"memtune/{name}") for name in ("hard_limit", "soft_limit")]
    return GuestXml(
        is_private=any(one.get("private", "no") != "no" for one in declared),
        group=next((group for one in declared if (group := one.get("group"))), None),
        is_kept_out=domain.find("memoryBacking/nosharepages") is not None,
        memory_kib=_amount(domain, "memory"),
        current_kib=_amount(domain, "currentMemory"),
        limit_kib=min((kib for kib in limits if kib is not None), default=None),
        bound_to=_bound_to(domain, "memnode") or _bound_to(domain, "memory"),
        has_hugepages=domain.find("memoryBacking/hugepages") is not None and _is_all_huge(domain, cells),
        is_shared=all(cell.get("memAccess", default) == "shared" for cell in cells),
        pins_memory=any((one.tag, one.get("type")) in _PINNING_DEVICES for one in domain.findall("devices/*")),
        is_confidential=domain.find("launchSecurity") is not None,
        qemu_arguments=tuple(one.get("value", "") for one in domain.findall(f"{_QEMU}commandline/{_QEMU}arg")),
        image=_name_image(_backing(domain) or "".join(_last(domain, "os/kernel").itertext())),
        reports_free_pages=domain.find("devices/memballoon[@freePageReporting='on']") is not None,
    )


class _Builder(ET.TreeBuilder):
    def doctype(self, *_arguments: object) -> None:
        raise ValueError("has a document type, which libvirt never writes")


_NONE = ET.Element("none")


def _last(domain: ET.Element, path: str) -> ET.Element:
    return (domain.findall(path) or [_NONE])[-1]


def _amount(domain: ET.Element, path: str) -> int | None:
    """Return an amount in KiB, as libvirt writes every one."""
    element = _last(domain, path)
    return _parse_whole("".join(element.itertext())) if element.get("unit", "KiB") == "KiB" else None


def _bound_to(domain: ET.Element, name: str) -> tuple[tuple[int, ...], ...]:
    tuned = domain.findall(f"numatune/{name}")
    sets = [_parse_nodeset(one.get("nodeset", "")) for one in tuned if one.get("mode", "strict") in _BINDING]
    return tuple(tuple(node for node in range(bits.bit_length()) if bits >> node & 1) for bits in sets if bits)


def _is_all_huge(domain: ET.Element, cells: Sequence[ET.Element]) -> bool:
    """Return whether huge pages back every NUMA cell: a page with a nodeset is for the cells in it alone."""
    nodesets = [page.get("nodeset") for page in domain.findall("memoryBacking/hugepages/page")]
    if not nodesets or None in nodesets:
        return True
    nodes = 0
    for nodeset in nodesets:
        nodes |= _parse_nodeset(nodeset or "")
    numbers = [_parse_whole(cell.get("id", str(at)), MAX_CELLS) for at, cell in enumerate(cells)]
    return all(number is not None and nodes >> number & 1 for number in numbers)


def _backing(domain: ET.Element) -> str:
    """Return the source of the innermost backing store of the first disk that has one, as text; nothing for none."""
    for disk in domain.findall("devices/disk"):
        source, store = None, disk.find("backingStore")
        while store is not None:
            found, store = store.find("source"), store.find("backingStore")
            source = source if found is None else found
        if source is not None:
            return "\n".join(f"{one}={source.get(one)}" for one in _SOURCE if one in source.attrib)
    return ""


def _name_image(source: str) -> str | None:
    """Return a short name for what a guest's owner may have named at any length; None for nothing."""
    return f"{IMAGE}{sha256(source.encode()).hexdigest()[:16]}" if source else None


def _parse_nodeset(text: str) -> int:
    """Return the cells of a nodeset as libvirt writes it ("0-2,5"), as bits; other text names no cell."""
    nodes = 0
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = _parse_whole(first, MAX_CELLS), _parse_whole(last if dash else first, MAX_CELLS)
        if low is not None and high is not None and low <= high:
            nodes |= (1 << high + 1) - (1 << low)
    return nodes


def _parse_whole(text: str, below: int = 10**MAX_DIGITS) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    return int(text) if is_number and int(text) < below else None


Seen = tuple[list[tuple[Guest, GuestXml | None]], list[VirtksmError]]


def read_guests(source: Descriptions, guests: Iterable[Guest]) -> Seen:
    """Read and parse the guests' XML; return it, and the errors of single guests.

    The XML is None for a guest that has ended, UNKNOWN where it cannot be read, for whatever reason: no guest keeps the
    rest from being read. Blocks.
    Raises LibvirtUnreachable when the connection is gone.
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
        except Exception as error:  # noqa: BLE001  # no reason to leave out the rest
            seen.append((guest, UNKNOWN))
            failures.append(Unforeseen(f"the XML of {guest.name!r} cannot be read: {type(error).__name__}: {error}"))
            failures[-1].__cause__ = error
    return seen, failures
