"""A guest's memory in its XML: how much, what bounds, backs and pins it, whether it is private or encrypted, its image.

Parsing is pure. The XML is libvirt's own output for a running guest, yet the guest's owner chooses names and metadata
in it. It is safe to parse: expat opens no file, a document type (without which there are no entities to expand) is
refused, nesting costs no stack, and XML larger than any domain's is not read at all. `read_guests` makes a call of
libvirt for each guest (0.2-1 ms); it is never part of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from xml.parsers import expat

from virtksm.errors import GuestVanished, LibvirtUnreachable, Unforeseen, VirtksmError
from virtksm.guests.ports import Descriptions
from virtksm.model.snapshot import IMAGE, Guest

NAMESPACE = "urn:virtksm:guest"
"""The namespace of virtksm's element <guest private="yes" group="NAME"/> in a domain's <metadata>."""

MAX_CHARACTERS = 4 * 1024 * 1024
"""libvirt's own limit for a domain's XML over its sockets."""

MAX_DIGITS = 18
"""Of an amount of memory in KiB."""

MAX_CELLS = 4096
"""NUMA cells of a guest that are told apart: a thousand times what any guest has."""
_GUEST = ("metadata", f"{NAMESPACE} guest")
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_QEMU_ARGUMENT = (f"{_QEMU} commandline", f"{_QEMU} arg")
_CELL = ("cpu", "numa", "cell")
_PAGE = ("memoryBacking", "hugepages", "page")
_LIMITS = (("memtune", "hard_limit"), ("memtune", "soft_limit"))
_AMOUNTS = (("memory",), ("currentMemory",), *_LIMITS)
_NUMATUNE = (("numatune", "memory"), ("numatune", "memnode"))
_PINNING_DEVICES = frozenset(
    {("hostdev", "pci"), ("interface", "hostdev"), ("interface", "vdpa"), ("disk", "nvme"), ("disk", "vhostvdpa")}
)
"""Devices (element, type) that reach the guest's memory past its process, through VFIO or vDPA, which pins all of it.

Mediated devices (mdev) pin only what they use.
"""
_DEVICES = {("devices", element) for element, _ in _PINNING_DEVICES}
_BALLOON = ("devices", "memballoon")
_BACKING = {("memoryBacking", element) for element in ("nosharepages", "hugepages", "source", "access")}
_LAUNCH_SECURITY = ("launchSecurity",)
_DISK = ("devices", "disk")
_KERNEL = ("os", "kernel")
_READ = {_GUEST, _QEMU_ARGUMENT, _CELL, _PAGE, _LAUNCH_SECURITY, *_AMOUNTS, *_NUMATUNE, *_DEVICES, *_BACKING, _BALLOON}
"""The elements below <domain> that are read, besides sources of backing stores."""
_WITH_TEXT = {*_AMOUNTS, _KERNEL}
_BINDING = ("strict", "restrictive")
"""numatune's modes that leave a guest no other node's memory; strict is the default."""
MAX_DEPTH = 4
"""Of these, with <domain>."""
MAX_BACKING_DEPTH = MAX_DEPTH + 32
"""Of a backing store's source: deeper ones than any chain has would cost time."""
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
    reader = _Reader()
    try:
        reader.parser.Parse(text.encode(), True)  # noqa: FBT003  # expat takes no keyword
    except (expat.ExpatError, UnicodeEncodeError) as error:
        raise ValueError(f"is no XML: {error}") from error
    if reader.roots != ["domain"]:
        raise ValueError("is no domain's XML")
    return reader.found()


class _Reader:
    """Expat's callbacks, and what they have found: the attributes of elements, by their path below <domain>."""

    def __init__(self) -> None:
        self.roots: list[str] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self._seen: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
        self._texts: dict[tuple[str, ...], str] = {}
        self._disks = self._image_disk = 0
        self._backing = ""
        self.parser = parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._refuse

    def found(self) -> GuestXml:
        seen = self._seen
        source, access = (self._last("memoryBacking", name) for name in ("source", "access"))
        # Without an <access>, QEMU shares memfd and nothing else.
        default = access.get("mode") or ("shared" if source.get("type") == "memfd" else "private")
        return GuestXml(
            is_private=any(one.get("private", "no") != "no" for one in seen.get(_GUEST, ())),
            group=next((one["group"] for one in seen.get(_GUEST, ()) if one.get("group")), None),
            is_kept_out=("memoryBacking", "nosharepages") in seen,
            memory_kib=self._amount("memory"),
            current_kib=self._amount("currentMemory"),
            limit_kib=min((kib for path in _LIMITS if (kib := self._amount(*path)) is not None), default=None),
            bound_to=self._bound_to("memnode") or self._bound_to("memory"),
            has_hugepages=("memoryBacking", "hugepages") in seen and self._is_all_huge(),
            is_shared=all(cell.get("memAccess", default) == "shared" for cell in seen.get(_CELL, [{}])),
            pins_memory=any(
                (at[1], one.get("type")) in _PINNING_DEVICES for at in _DEVICES for one in seen.get(at, ())
            ),
            is_confidential=_LAUNCH_SECURITY in seen,
            qemu_arguments=tuple(one.get("value", "") for one in seen.get(_QEMU_ARGUMENT, ())),
            image=_name_image(self._backing or self._texts.get(_KERNEL, "")),
            reports_free_pages=any(one.get("freePageReporting") == "on" for one in seen.get(_BALLOON, ())),
        )

    def _amount(self, *path: str) -> int | None:
        """Return an amount in KiB, as libvirt writes every one."""
        is_kib = self._last(*path).get("unit", "KiB") == "KiB"
        return _parse_whole(self._texts.get(path, "")) if is_kib else None

    def _last(self, *path: str) -> Mapping[str, str]:
        return self._seen.get(path, [{}])[-1]

    def _bound_to(self, element: str) -> tuple[tuple[int, ...], ...]:
        tuned = self._seen.get(("numatune", element), ())
        sets = [_parse_nodeset(one.get("nodeset", "")) for one in tuned if one.get("mode", "strict") in _BINDING]
        return tuple(tuple(node for node in range(bits.bit_length()) if bits >> node & 1) for bits in sets if bits)

    def _is_all_huge(self) -> bool:
        """Return whether huge pages back every NUMA cell: a page with a nodeset is for the cells in it alone."""
        pages = self._seen.get(_PAGE, [])
        if not pages or any("nodeset" not in page for page in pages):
            return True
        nodes = 0
        for page in pages:
            nodes |= _parse_nodeset(page["nodeset"])
        cells = [
            _parse_whole(cell.get("id", str(at)), MAX_CELLS) for at, cell in enumerate(self._seen.get(_CELL, [{}]))
        ]
        return all(cell is not None and nodes >> cell & 1 for cell in cells)

    def _begin(self, name: str, attributes: Mapping[str, str]) -> None:
        if not self._path:
            self.roots.append(name)
        self._path.append(name)
        path = tuple(self._path[1:]) if len(self._path) <= MAX_DEPTH else ()
        if path in _READ and self._path[0] == "domain":
            self._seen.setdefault(path, []).append(attributes)
        if path in _WITH_TEXT:
            self._text = []
            self.parser.CharacterDataHandler = self._text.append
        self._disks += path == _DISK
        if name == "source" and MAX_DEPTH < len(self._path) <= MAX_BACKING_DEPTH:
            self._note_backing(attributes)

    def _note_backing(self, attributes: Mapping[str, str]) -> None:
        """Note the source of a backing store unless an earlier disk has one; of a chain, the innermost comes last."""
        is_backing = tuple(self._path[1:3]) == _DISK and set(self._path[3:-1]) == {"backingStore"}
        if is_backing and self._image_disk in (0, self._disks):
            self._image_disk = self._disks
            self._backing = "\n".join(f"{one}={attributes[one]}" for one in _SOURCE if one in attributes)

    def _end(self, name: str) -> None:
        path = tuple(self._path[1:]) if len(self._path) <= MAX_DEPTH else ()
        if path in _WITH_TEXT:
            self.parser.CharacterDataHandler = None
            self._texts[path] = "".join(self._text)
        self._path.pop()

    def _refuse(self, *_arguments: object) -> None:
        raise ValueError("has a document type, which libvirt never writes")


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
