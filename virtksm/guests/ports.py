"""A survey's needs of the world, beyond those of a pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from virtksm.guests.process import GuestMerging, GuestProcess, MergeableMemory, OtherProcess
from virtksm.model.snapshot import Guest, MergedReading
from virtksm.tuning.ports import Hypervisor, LocalFacts


class Descriptions(Protocol):
    """libvirt's descriptions of guests, which cost 0.2-1 ms each: no pass reads them."""

    def guest_xml(self, uuid: str) -> str:
        """Return a running domain's XML (virDomainGetXMLDesc).

        Raises GuestVanished, LibvirtUnreachable, and SensingFailed where it may not be read.
        """


class Connection(Hypervisor, Descriptions, Protocol):
    """A libvirt connection that also describes guests."""

    def taints(self, uuid: str) -> tuple[str, ...] | None:
        """Return why libvirt marks a guest as tainted; None before libvirt 7.1. Raises as `guest_xml`."""


class Monitor(Protocol):
    """QEMU's monitor, for what libvirt has no call. Each call marks the domain as tainted, and may hold its guest.

    Raises GuestVanished, LibvirtUnreachable, MonitorRefused without the right, Unsupported where the guest is none of
    QEMU's, and MonitorFailed where QEMU answers with an error. A monitor that hangs keeps the caller waiting.
    """

    def merging(self, guest_uuid: str) -> GuestMerging:
        """Ask a guest's QEMU for its version and its memory backends."""

    def set_merging(self, guest_uuid: str, *, merge: bool) -> None:
        """Switch all memory backends of a guest, one after the other, until one fails.

        Returns when QEMU has: it unmerges meanwhile. QEMU leaves a backend alone that has the value already, and tells
        nothing of a kernel that refuses: read the kernel's own figures.
        """


class GuestFacts(LocalFacts, Protocol):
    """A survey's needs of this host; no pass has them."""

    def processes(self, running: tuple[Guest, ...]) -> tuple[GuestProcess | None, ...]:
        """Return the guests' processes, in the same order; None where none was found or answers."""

    def identities(self, running: tuple[Guest, ...]) -> tuple[str | None, ...]:
        """Return what tells each guest's process from any other since boot, in the same order; None as above."""

    def lives(self, identity: str) -> bool:
        """Return whether the process that `identities` has told of has not ended."""

    def mergeable_memory(self, guest: Guest) -> MergeableMemory | None:
        """Return what of a guest's memory the kernel may merge; None where this user may not read it (root may)."""

    def merged(self, running: tuple[Guest, ...]) -> Iterator[tuple[str, MergedReading]]:
        """Read one guest after the other (`Guest.key`), as asked for: the kernel walks its page tables.

        Guests that this user may not read are left out (root may), and all before Linux 6.7.
        """

    def merging_processes(self, running: tuple[Guest, ...]) -> tuple[OtherProcess, ...]:
        """Return the other processes that have merged pages, of those that may be read."""

    def general_profit_bytes(self) -> int | None:
        """Return KSM's general_profit, which may be negative; None before Linux 6.4."""
