"""A guest's memory in its XML: how much, what backs it, what pins it, whether it is private.

Parsing is pure. The XML is libvirt's own output for a running guest, yet the guest's owner chooses names and metadata
in it. It is safe to parse: expat opens no file, a document type (without which there are no entities to expand) is
refused, nesting costs no stack, and XML larger than any domain's is not read at all. `read_guests` makes a call of
libvirt for each guest (0.2-1 ms); it is never part of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from xml.parsers import expat

from virtksm.errors import GuestVanished, LibvirtUnreachable, Unforeseen, VirtksmError
from virtksm.guests.ports import Descriptions
from virtksm.model.snapshot import Guest

NAMESPACE = "urn:virtksm:guest"
"""The namespace of virtksm's element <guest private="yes"/> in a domain's <metadata>."""

MAX_CHARACTERS = 4 * 1024 * 1024
"""libvirt's own limit for a domain's XML over its sockets."""

MAX_DIGITS = 18
"""Of an amount of memory in KiB."""

_GUEST = ("domain", "metadata", f"{NAMESPACE} guest")
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_QEMU_ARGUMENT = ("domain", f"{_QEMU} commandline", f"{_QEMU} arg")
_CELL = ("domain", "cpu", "numa", "cell")
_PAGE = ("domain", "memoryBacking", "hugepages", "page")
MAX_CELLS = 4096
"""NUMA cells of a guest that are told apart: a thousand times what any guest has."""
_PINNING_DEVICES = frozenset(
    {("hostdev", "pci"), ("interface", "hostdev"), ("interface", "vdpa"), ("disk", "nvme"), ("disk", "vhostvdpa")}
)
"""Devices (element, type) that reach the guest's memory past its process, through VFIO or vDPA, which pins all of it.

Mediated devices (mdev) pin only what they use.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestXml:
    """A running guest's XML; memory in KiB, None where it is not in it.

    `is_private`: its metadata declares it so. `is_kept_out`: nosharepages. `memory_kib` is its maximum (`memory`),
    `current_kib` its present size (`currentMemory`, the balloon). `has_hugepages` and `is_shared` mean all of its
    RAM, `pins_memory` of its devices, `qemu_arguments` are those that the administrator adds to QEMU's command line.
    """

    is_private: bool = False
    is_kept_out: bool = False
    memory_kib: int | None = None
    current_kib: int | None = None
    has_hugepages: bool = False
    is_shared: bool = False
    pins_memory: bool = False
    qemu_arguments: tuple[str, ...] = ()


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
    """Expat's callbacks, and what they have found."""

    def __init__(self) -> None:
        self.roots: list[str] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self._unit = "KiB"
        self._amounts: dict[str, int | None] = {}
        self._backing: dict[str, Mapping[str, str]] = {}
        self._cells: list[Mapping[str, str]] = []
        self._pages: list[Mapping[str, str]] = []
        self._arguments: list[str] = []
        self._is_private = self._pins_memory = False
        self.parser = parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._refuse

    def found(self) -> GuestXml:
        backing = self._backing
        # Without an <access>, QEMU shares memfd and nothing else.
        access = backing.get("access", {}).get("mode")
        is_memfd = backing.get("source", {}).get("type") == "memfd"
        default = access or ("shared" if is_memfd else "private")
        return GuestXml(
            is_private=self._is_private,
            is_kept_out="nosharepages" in backing,
            memory_kib=self._amounts.get("memory"),
            current_kib=self._amounts.get("currentMemory"),
            has_hugepages="hugepages" in backing and self._is_all_huge(),
            is_shared=all(cell.get("memAccess", default) == "shared" for cell in self._cells or [{}]),
            pins_memory=self._pins_memory,
            qemu_arguments=tuple(self._arguments),
        )

    def _is_all_huge(self) -> bool:
        """Return whether huge pages back every NUMA cell: a page with a nodeset is for the cells in it alone."""
        if not self._pages or any("nodeset" not in page for page in self._pages):
            return True
        nodes = 0
        for page in self._pages:
            nodes |= _parse_nodeset(page["nodeset"])
        cells = [_parse_node(cell.get("id", str(number))) for number, cell in enumerate(self._cells)]
        return all(cell is not None and nodes >> cell & 1 for cell in cells or [0])

    def _begin(self, name: str, attributes: Mapping[str, str]) -> None:
        path = self._path
        if not path:
            self.roots.append(name)
        path.append(name)
        if len(path) == 2 and name in ("memory", "currentMemory"):
            self._text, self._unit = [], attributes.get("unit", "KiB")
            self.parser.CharacterDataHandler = self._text.append
        elif len(path) == 3:
            self._begin_third(name, attributes)
        elif len(path) == 4 and tuple(path) == _CELL:
            self._cells.append(attributes)
        elif len(path) == 4 and tuple(path) == _PAGE:
            self._pages.append(attributes)

    def _begin_third(self, name: str, attributes: Mapping[str, str]) -> None:
        root, parent, _ = place = tuple(self._path)
        if root != "domain":
            return
        if parent == "memoryBacking":
            self._backing[name] = attributes
        elif parent == "devices":
            self._pins_memory = self._pins_memory or (name, attributes.get("type")) in _PINNING_DEVICES
        elif place == _GUEST:
            self._is_private = self._is_private or attributes.get("private", "no") != "no"
        elif place == _QEMU_ARGUMENT:
            self._arguments.append(attributes.get("value", ""))

    def _end(self, name: str) -> None:
        if len(self._path) == 2 and name in ("memory", "currentMemory"):
            self.parser.CharacterDataHandler = None
            self._amounts[name] = _parse_kib("".join(self._text), self._unit)
        self._path.pop()

    def _refuse(self, *_arguments: object) -> None:
        raise ValueError("has a document type, which libvirt never writes")


def _parse_nodeset(text: str) -> int:
    """Return the cells of a nodeset as libvirt writes it ("0-2,5"), as bits; other text names no cell."""
    nodes = 0
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = _parse_node(first), _parse_node(last if dash else first)
        if low is not None and high is not None and low <= high:
            nodes |= (1 << high + 1) - (1 << low)
    return nodes


def _parse_node(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    return int(text) if is_number and int(text) < MAX_CELLS else None


def _parse_kib(text: str, unit: str) -> int | None:
    # libvirt writes every amount in KiB.
    if unit != "KiB" or not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        return None
    return int(text)


Seen = tuple[list[tuple[Guest, GuestXml | None]], list[VirtksmError]]


def read_guests(source: Descriptions, guests: Iterable[Guest], *, is_over: Callable[[], bool] = lambda: False) -> Seen:
    """Read and parse the guests' XML; return it, and the errors of single guests.

    The XML is None for a guest that has ended, UNKNOWN where it cannot be read, for whatever reason: no guest keeps the
    rest from being read. `is_over` is asked after each guest whether to stop. Blocks.
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
        if is_over():
            break
    return seen, failures
