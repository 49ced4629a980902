"""What is merged, what unmerging it takes, and whether this host's KSM is certainly off. Pure.

Unmerging (writing 2 to KSM's `run`) gives every place its own copy again: merged pages of both kinds at once, while
shared pages go only when the last of their places has its copy. So that many copies have to fit into available memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtksm.model.decision import SwitchedOff
from virtksm.model.snapshot import KsmState

UNCOUNTED_ZERO_PAGES = "use_zero_pages is 1 on a kernel that does not count the zero pages it merges (before 6.6)"
COUNT_ZERO_PAGES = "echo 0 > /sys/kernel/mm/ksm/use_zero_pages, and start the guests anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """KSM's counters in pages of `page_kib`; `zero_pages` is None where the kernel or the connection has no count."""

    pages_shared: int
    pages_sharing: int
    zero_pages: int | None
    page_kib: int

    @classmethod
    def of(cls, ksm: KsmState) -> Merged | None:
        """Return what is merged; None where the counters are not offered."""
        if ksm.pages_shared is None or ksm.pages_sharing is None:
            return None
        return cls(
            pages_shared=ksm.pages_shared,
            pages_sharing=ksm.pages_sharing,
            zero_pages=ksm.ksm_zero_pages,
            page_kib=ksm.page_kib,
        )

    @property
    def merging_pages(self) -> int:
        """The places that share a page, each page's first included; zero pages are none of them."""
        return self.pages_shared + self.pages_sharing

    @property
    def zero_kib(self) -> int:
        """The merged zero pages, which are in nobody's resident memory."""
        return (self.zero_pages or 0) * self.page_kib

    @property
    def saved_kib(self) -> int:
        return self.pages_sharing * self.page_kib + self.zero_kib

    @property
    def needed_kib(self) -> int:
        """The memory that unmerging takes at its height."""
        return self.pages_shared * self.page_kib + self.saved_kib

    @property
    def is_nothing(self) -> bool:
        return self.needed_kib == 0

    def missing_kib(self, available_kib: int) -> int:
        """Return how much memory lacks for unmerging; 0 if it fits."""
        return max(self.needed_kib - available_kib, 0)

    def as_dict(self, available_kib: int) -> dict[str, object]:
        """Return JSON values (docs/reference.md)."""
        return {
            "pages_shared": self.pages_shared,
            "pages_sharing": self.pages_sharing,
            "ksm_zero_pages": self.zero_pages,
            "saved_kib": self.saved_kib,
            "needed_kib": self.needed_kib,
            "available_kib": available_kib,
            "missing_kib": self.missing_kib(available_kib),
        }


def find_doubts(off: SwitchedOff | None, ksm: KsmState, merged: Merged, *, has_uncounted_zero_pages: bool) -> list[str]:
    """Return what keeps KSM from being certainly off, each with its remedy; nothing if it is."""
    doubts = []
    if off is None:
        doubts.append("virtksm is not switched off: `virtksm off`")
    elif off.warning:
        doubts.append(off.warning)
    if ksm.run in (None, 1):  # 0 and 2 keep ksmd from scanning, whatever the settings are
        if ksm.settings.pages_to_scan != 0:
            doubts.append(f"ksmd scans {ksm.settings.pages_to_scan} pages at a time: `virtksm off` parks it")
        if ksm.advisor_is_on:
            doubts.append("the kernel's advisor may set pages_to_scan: echo none > /sys/kernel/mm/ksm/advisor_mode")
    if not merged.is_nothing:
        zero = f", {merged.zero_pages} zero pages" if merged.zero_pages else ""
        doubts.append(
            f"{merged.pages_sharing} pages share {merged.pages_shared}{zero}: unmerge, as `virtksm off` tells how"
        )
    if has_uncounted_zero_pages:
        doubts.append(f"{UNCOUNTED_ZERO_PAGES}: {COUNT_ZERO_PAGES}")
    return doubts
