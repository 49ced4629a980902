"""Payload guests: tiny real virtual machines whose memory content is known to the page.

In: a description of a guest (`PayloadGuest`), the payload kernel built by bench/guest/build and an open libvirt
connection. Out: a running transient domain, and the moment at which its memory is filled. Used by tests and benchmarks,
too. It must not import libvirt (the caller's connection is all it needs), read KSM, or decide how long a guest lives.
What each option does to the guest's pages is told in bench/guest/payload.c.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from xml.etree import ElementTree as ET

from virtksm.errors import VirtksmError

# The payload leaves its own 2 MiB and the BIOS's topmost one alone.
KEPT_MIB = 3
PAGES_PER_MIB = 256
# virDomainCreateFlags in libvirt-domain.h, part of its ABI.
_VIR_DOMAIN_START_PAUSED = 1

_SETTLED = re.compile(r"^virtksm-guest: settled .*\n", re.MULTILINE)
_ERROR = re.compile(r"^virtksm-guest: error (.*)\n", re.MULTILINE)
"""Whole lines: a console may be read while the guest writes to it."""

Domain_co = TypeVar("Domain_co", covariant=True)


class CreatesDomains(Protocol[Domain_co]):
    """The one thing needed of a libvirt connection."""

    def createXML(self, xml: str, flags: int = 0, /) -> Domain_co: ...  # noqa: N802 - libvirt's name


class PayloadFailed(VirtksmError):
    """The payload refused its options, or did not settle in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadGuest:
    """One guest: what fills its memory, in MiB, and what it does to it afterwards.

    `common_mib` pages are equal in all guests of the same `image`, `own_mib` pages only in those of the same `seed`.
    `slow_mib_per_s` 0 fills as fast as the machine can. Growing begins `grow_after_s` after it has settled, with
    `grow_zero_mib` of zero pages, then its own (simulated: at once, its own), and ends when memory is full.
    `hotplug_mib` is the room for memory devices, 0 none. With `balloon` it answers libvirt's requests (and so sends
    events), but gives no memory back; with `chatters` it reports another size all the time, and an event comes every
    second. `drift_mib` of its own pages become equal in all guests within `drift_s`, beginning `drift_after_s` after it
    has settled, and as many of the next ones beginning `drift_again_s` after it has. With `is_shared` others may map
    its memory, as virtiofs and vhost-user need it.
    Raises ValueError when the content does not fit into the memory.
    """

    name: str
    memory_mib: int
    common_mib: int = 0
    zero_mib: int = 0
    own_mib: int = 0
    seed: int = 0
    image: int = 0
    rewrite_per_s: int = 0
    rewrite_common_per_s: int = 0
    slow_mib_per_s: int = 0
    grow_mib_per_min: int = 0
    grow_after_s: int = 0
    grow_zero_mib: int = 0
    reboot_after_s: int = 0
    off_after_s: int = 0
    nosharepages: bool = False
    is_shared: bool = False
    balloon: bool = False
    chatters: bool = False
    hotplug_mib: int = 0
    drift_mib: int = 0
    drift_s: int = 60
    drift_after_s: int = 0
    drift_again_s: int = 0

    def __post_init__(self) -> None:
        if self.content_mib + KEPT_MIB > self.memory_mib:
            raise ValueError(
                f"guest {self.name!r}: {self.content_mib} MiB of content and {KEPT_MIB} MiB kept do not fit into "
                f"{self.memory_mib} MiB"
            )

    @property
    def can_merge(self) -> bool:
        """Whether its configuration lets its memory merge."""
        return not (self.nosharepages or self.is_shared)

    @property
    def content_mib(self) -> int:
        """Return what the payload fills before it settles, in MiB."""
        return self.common_mib + self.zero_mib + self.own_mib

    def cmdline(self) -> str:
        """Write the options as the payload reads them; those that are 0 are left out."""
        options = {
            "common": self.common_mib,
            "zero": self.zero_mib,
            "own": self.own_mib,
            "seed": self.seed,
            "image": self.image,
            "slow": self.slow_mib_per_s,
            "rewrite": self.rewrite_per_s,
            "rewrite_common": self.rewrite_common_per_s,
            "grow": self.grow_mib_per_min,
            "grow_after": self.grow_after_s,
            "grow_zero": self.grow_zero_mib,
            "reboot_after": self.reboot_after_s,
            "off_after": self.off_after_s,
            "balloon": 2 if self.chatters else int(self.balloon),
            "drift": self.drift_mib,
            "drift_s": self.drift_s if self.drift_mib else 0,
            "drift_after": self.drift_after_s,
            "drift_again": self.drift_again_s,
        }
        return " ".join(["virtksm-guest", *(f"{name}={value}" for name, value in options.items() if value)])

    def domain_xml(self, kernel: Path, console: Path | None) -> str:
        """Write the domain XML: one vCPU, no video, no USB, the serial port to the file `console` if given."""
        domain = ET.Element("domain", type="qemu")  # software emulation, which runs everywhere

        def add(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
            element = ET.SubElement(parent, tag, attributes)
            element.text = text or None
            return element

        add(domain, "name", self.name)
        if self.hotplug_mib:
            maximum = str(self.memory_mib + self.hotplug_mib)
            add(domain, "maxMemory", maximum, unit="MiB", slots="4")
        add(domain, "memory", str(self.memory_mib), unit="MiB")
        backing = domain if self.can_merge else add(domain, "memoryBacking")
        if self.nosharepages:
            add(backing, "nosharepages")
        if self.is_shared:
            add(backing, "source", type="memfd")
            add(backing, "access", mode="shared")
        add(domain, "vcpu", "1")
        boot = add(domain, "os")
        add(boot, "type", "hvm", arch="x86_64", machine="pc")
        add(boot, "kernel", str(kernel))
        add(boot, "cmdline", self.cmdline())
        add(add(domain, "features"), "acpi")
        if self.hotplug_mib:  # libvirt plugs memory only into guests with NUMA cells
            numa = add(add(domain, "cpu"), "numa")
            add(numa, "cell", id="0", cpus="0", memory=str(self.memory_mib), unit="MiB")
        devices = add(domain, "devices")
        add(devices, "controller", type="usb", model="none")
        if console is not None:
            add(add(devices, "serial", type="file"), "source", path=str(console))
        add(devices, "memballoon", model="virtio" if self.balloon or self.chatters else "none")
        return ET.tostring(domain, encoding="unicode")


def memory_device_xml(mib: int) -> str:
    """Write the XML of a memory module of `mib` MiB, to be attached to a guest that has `hotplug_mib`."""
    device = ET.Element("memory", model="dimm")
    target = ET.SubElement(device, "target")
    ET.SubElement(target, "size", unit="MiB").text = str(mib)
    ET.SubElement(target, "node").text = "0"
    return ET.tostring(device, encoding="unicode")


def start_guest(
    connection: CreatesDomains[Domain_co],
    guest: PayloadGuest,
    *,
    kernel: Path,
    console: Path | None = None,
    paused: bool = False,
) -> Domain_co:
    """Create the guest as a transient domain and return libvirt's handle of it.

    `kernel` is the payload (build/payload.elf), absolute. Raises what the connection raises (libvirtError).
    """
    xml = guest.domain_xml(kernel, console)
    return connection.createXML(xml, _VIR_DOMAIN_START_PAUSED if paused else 0)


def parse_console(text: str) -> int:
    """Count how often a payload has settled (again after each reboot), from its console's text.

    Raises PayloadFailed when the payload reported an error.
    """
    if error := _ERROR.search(text):
        raise PayloadFailed(f"the payload guest gave up: {error[1].strip()}")
    return len(_SETTLED.findall(text))


def wait_settled(console: Path, timeout_s: float, *, times: int = 1) -> None:
    """Wait until the payload that writes to `console` has filled its memory (`times` times, with reboots).

    Raises PayloadFailed when it reports an error or `timeout_s` seconds have passed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        # QEMU creates the file a moment after the domain; until then there is nothing to read.
        text = console.read_text(encoding="ascii", errors="replace") if console.exists() else ""
        if parse_console(text) >= times:
            return
        if time.monotonic() >= deadline:
            raise PayloadFailed(f"{console}: not settled within {timeout_s:g} s; it says {text!r}")
        time.sleep(0.02)
