"""Two zero pages of the agent's own that may merge: so KSM has a merged one to compare guests' zero pages with.

Since Linux 6.12 the zero pages of a huge page are gone once it is split, and with them the one that ksmd has split it
for. So no two of them ever merge, and as the first is still in its unstable tree, ksmd finds no twin behind it in that
full scan (mm/ksm.c: unstable_tree_search_insert). Beside one that has merged, ksmd splits each huge page that has a
zero page, and all of its zero pages come free. ksmd visits processes in the order in which they came to be mergeable:
this serves guests that start after the agent.
"""

import mmap
from contextlib import suppress

from virtksm.host.proc_files import AGENT
from virtksm.policy.adaptive.changes import OWN_PAGES


class ZeroPages:
    """Holds them while they are wanted."""

    def __init__(self) -> None:
        self._held: mmap.mmap | None = None

    def follow(self, *, are_wanted: bool) -> None:
        """Have them or not; where there is no memory for them, the next pass tries again."""
        if are_wanted and self._held is None:
            with suppress(OSError), open("/proc/self/comm", "wb") as name:  # noqa: PTH123  # pathlib takes memory
                name.write(AGENT)
            with suppress(OSError):
                self._held = mmap.mmap(-1, OWN_PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self._held.write(bytes(len(self._held)))  # or they would be the kernel's own, which KSM passes over
                self._held.madvise(mmap.MADV_MERGEABLE)  # fails on a kernel without KSM
        elif not are_wanted and self._held is not None:
            self._held.close()
            self._held = None
