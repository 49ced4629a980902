"""What ksmd's work costs: CPU seconds a page, measured on a real kernel.

Measured on Linux 6.18, two cores of an AMD EPYC (Zen 4) at 2.6 GHz under KVM, on 64, 512 and 2048 MiB of anonymous
memory (ksmd's schedstat over the pages of one full scan); guests' memory in QEMU, in huge pages, costs the same within
a tenth. Searching a tree costs more than its depth says, since each level is further from the caches: the square of
the depth fits all sizes within 5 %. Beside other work on the other core everything took 5 to 15 % longer than alone;
the values lie between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

JIFFY_S = 0.004
"""CONFIG_HZ=250, as Debian and most distributions build; sleeping is counted in jiffies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KsmdCosts:
    """CPU seconds, a page unless said otherwise; in parentheses what was measured, in microseconds.

    `first_s`: the first visit: rmap_item, checksum (0.87, 0.78, 0.71). `changed_s`: a later one that finds another
    checksum (0.82, 0.75, 0.72). `settled_s`: one that finds the same and searches the trees, without `stable_s` and
    `unstable_s`, to be multiplied by the square of each tree's depth (insertion 3.9, 4.2, 4.8 beside an empty stable
    tree, 4.4, 5.2, 6.0 beside one as large). `join_s`: one that merges with a merged page, without `stable_s` (3.5,
    3.7, 3.8). `pair_s`: what merging two pages adds to `settled_s`, besides another search of the stable tree (6.0,
    7.4, 8.2 in all). `merged_s`: a visit of a merged page (0.27). `skipped_s`: a page skipped by smart_scan (0.20 to
    0.22). `forget_s`: a page of a process that has ended (0.075). `wake_s`: one wake-up (18, beside an idle core).
    `full_scan_s`: the beginning of a full scan (100).
    """

    first_s: float = 0.80e-6
    changed_s: float = 0.75e-6
    settled_s: float = 3.1e-6
    stable_s: float = 0.0033e-6
    unstable_s: float = 0.0061e-6
    join_s: float = 2.9e-6
    pair_s: float = 1.8e-6
    merged_s: float = 0.275e-6
    skipped_s: float = 0.21e-6
    forget_s: float = 0.075e-6
    wake_s: float = 18e-6
    full_scan_s: float = 100e-6

    def search_stable_s(self, copies: int) -> float:
        """Tell what a search of the stable tree costs."""
        return self.stable_s * log2(1 + copies) ** 2

    def search_unstable_s(self, pages: int) -> float:
        """Tell what a search of the unstable tree costs."""
        return self.unstable_s * log2(1 + pages) ** 2


def wakes_at_s(now_s: float, sleep_millisecs: int) -> float:
    """Tell when a sleep that begins now ends: on a tick of the timer wheel, never early (kernel/time/timer.c)."""
    jiffies = -(-sleep_millisecs // round(JIFFY_S * 1000))
    grain = 1
    for limit, coarser in ((63, 8), (504, 64), (4032, 512), (32256, 4096), (258048, 32768)):
        if jiffies >= limit:
            grain = coarser
    return float((int(now_s / JIFFY_S + 1e-6) + jiffies) // grain + 1) * grain * JIFFY_S
