"""KSM and memory at one moment, as values and as JSON: which `virtksm status` shows beside the last decision. Pure.

`as_dict` is `now` of `virtksm status --json` (docs/reference.md lists the fields); fields are added, never renamed.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from virtksm.model.report import PassReport
from virtksm.model.snapshot import HostMemory, KsmState, Snapshot
from virtksm.values import replace


class Origin(Enum):
    """Where the numbers come from."""

    LOCAL = "local"
    """This machine's kernel, read just now; guests are those of the last pass, or listed just now."""
    LIBVIRT = "libvirt"
    """The connection, asked just now."""
    LAST_PASS = "last_pass"  # noqa: S105  # no password
    """The last pass, since libvirt is not asked and the host is another machine."""


class CurrentKsm(NamedTuple):
    """KSM at one moment; None is unknown: memory that cannot be read, guests before the first pass."""

    origin: Origin
    ksm: KsmState
    host: HostMemory | None = None
    guests: int | None = None
    guests_unread: int | None = None
    committed_kib: int | None = None

    def counting(self, snapshot: Snapshot) -> CurrentKsm:
        return replace(
            self,
            guests=len(snapshot.guests),
            guests_unread=snapshot.guests_unread,
            committed_kib=snapshot.committed_kib,
        )

    @property
    def saved_kib(self) -> int | None:
        return self.ksm.saved_kib

    @property
    def saved_percent(self) -> float | None:
        """What is saved, of the guests' resident memory, which counts every place of a merged page."""
        if self.saved_kib is None or not self.committed_kib:
            return None
        return 100 * self.saved_kib / self.committed_kib

    def as_dict(self) -> dict[str, object]:
        """Return JSON values; memory in KiB, pages in pages of `page_kib`."""
        ksm, host = self.ksm, self.host
        return {
            "origin": self.origin.value,
            "ksm_run": ksm.run,
            "advisor_mode": ksm.advisor_mode,
            "redhat_only_zero_pages": ksm.redhat_only_zero_pages,
            "settings": ksm.settings.as_dict(),
            "pages_shared": ksm.pages_shared,
            "pages_sharing": ksm.pages_sharing,
            "ksm_zero_pages": ksm.ksm_zero_pages,
            "freed_kib": ksm.freed_kib,
            "page_kib": ksm.page_kib,
            "saved_kib": self.saved_kib,
            "saved_percent": None if self.saved_percent is None else round(self.saved_percent, 2),
            "ksmd_cpu_seconds": None if ksm.ksmd_cpu_seconds is None else round(ksm.ksmd_cpu_seconds, 2),
            "guests": self.guests,
            "guests_unread": self.guests_unread,
            "committed_kib": self.committed_kib,
            "total_kib": None if host is None else host.total_kib,
            "available_kib": None if host is None else host.spare_kib,
        }


def after_pass(report: PassReport) -> CurrentKsm:
    """Return KSM as a pass left it."""
    snapshot = report.snapshot
    ksm = replace(snapshot.ksm, settings=report.after)
    return CurrentKsm(origin=Origin.LAST_PASS, ksm=ksm, host=snapshot.host).counting(snapshot)
