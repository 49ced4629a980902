"""Two zero pages of the agent's own that may merge: so KSM has a merged one to compare guests' zero pages with.

Since Linux 6.12 the zero pages of a huge page are gone once it is split, and with them the one that ksmd has split it
for. So no two of them ever merge, and as the first is still in its unstable tree, ksmd finds no twin behind it in that
full scan (mm/ksm.c: unstable_tree_search_insert). Beside one that has merged, ksmd splits each huge page that has a
zero page, and all of its zero pages come free.

So ksmd has to visit the agent before the guests. It visits processes in the order in which they came to be mergeable,
but the kernel puts a new one before the one that ksmd is visiting (__ksm_enter). Where guests are older than the agent,
as after a boot, it takes them when ksmd has just gone on to the first guest.

With use_zero_pages they merge into the kernel's own zero page, which KSM passes over from then on (mm/ksm.c:
try_to_merge_with_zero_page). Once that is off, the agent takes new ones, at its place among the processes.
"""

import asyncio
import mmap
from collections.abc import Callable
from contextlib import suppress

from virtksm.host.local_facts import ProcFacts
from virtksm.host.proc_files import AGENT
from virtksm.model.report import PassReport
from virtksm.policy.adaptive.changes import OWN_PAGES

UNDER_WAY_S = 0.02
"""So soon after it was set to scan ksmd is in the first guest, if that has half a GiB (6 GiB a second measured)."""


class ZeroPages:
    """Holds them while they are wanted; `read_setting` reads a file of KSM's."""

    def __init__(self, read_setting: Callable[[str], int | None] | None = None) -> None:
        self._held: mmap.mmap | None = None
        self._read_setting = read_setting or ProcFacts().ksm_counter
        self._may_be_kernels = False
        self._taking: asyncio.TimerHandle | None = None

    @property
    def are_held(self) -> bool:
        return self._held is not None

    def follow(self, report: PassReport) -> None:
        """Have them or not, as a pass decided, in a running event loop; without memory for them the next one tries."""
        ksm = report.snapshot.ksm
        was_scanning = bool(ksm.settings.pages_to_scan)
        if not report.decision.wants_zero_pages:
            self._drop()
        elif not report.snapshot.guests or (was_scanning and ksm.full_scans == 0):
            self._take()
        elif not was_scanning and report.after.pages_to_scan and self._taking is None:
            self._taking = asyncio.get_running_loop().call_later(UNDER_WAY_S, self._take)
        before, self._may_be_kernels = self._may_be_kernels, self._read_setting("use_zero_pages") == 1
        if self._held is not None and before and not self._may_be_kernels:
            self._drop()
            self._take()

    def _take(self) -> None:
        self._taking = None
        if self._held is not None:
            return
        with suppress(OSError), open("/proc/self/comm", "wb") as name:  # noqa: PTH123  # pathlib takes memory
            name.write(AGENT)
        try:
            self._held = mmap.mmap(-1, OWN_PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._held.write(bytes(len(self._held)))  # or they would be the kernel's own, which KSM passes over
            self._held.madvise(mmap.MADV_MERGEABLE)
        except OSError:
            self._drop()

    def _drop(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None
        if self._held is not None:
            self._held.close()
            self._held = None
