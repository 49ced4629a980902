"""What the adaptive policy remembers from one pass to the next, and its form as plain JSON values.

A state is a value: the policy gets one and returns the next. Memory is in KiB, times are CLOCK_BOOTTIME seconds.
Counters that the kernel or the connection does not offer are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from virtksm.codec import build, dump

DEFAULT_PAGE_COST_S = 7e-6
"""ksmd's CPU time for one page of a first scan until it is measured: 130,000-160,000 pages/s (measured)."""

MAX = 2.0**53
"""Bounds kept numbers: beyond it (or not finite) they come from no clock and no counter."""
MAX_SUM = 2**52
"""Bounds sums that are kept; where it is reached, they are beyond every comparison anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """The kernel's counters at one moment, to take differences from."""

    taken_s: float
    full_scans: int
    pages_sharing: int
    cpu_s: float | None
    pages_scanned: int | None
    pages_skipped: int | None
    thp_split_page: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A full scan that is under way. `ends_at_full_scans` is the value of full_scans that ends it.

    `scanning_kib` is the fresh debt at its beginning: visited once when it ends.
    """

    ends_at_full_scans: int
    scanning_kib: int
    began: Meter
    fed: Meter | None = None
    """When ksmd was granted the last batch, of `batch_pages`."""
    batch_pages: int = 0
    over_s: float = 0.0
    """When it will be over at the latest, as far as can be reckoned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveState:
    """All that a pass hands to the next."""

    taken_s: float | None = None
    rule: str = ""
    """The rule that the last pass ended with."""
    engaged: bool = False
    guests_kib: Mapping[str, int] = field(default_factory=dict)
    """Resident memory of each guest, by `Guest.key`, and of other processes (debt.OTHER_PROCESSES)."""
    young: tuple[tuple[float, int], ...] = ()
    """Memory that appeared a moment ago, (when, KiB): it pays for no round until it has settled."""
    recent: tuple[tuple[float, int], ...] = ()
    """Memory that appeared in the last seconds, (when, KiB), settled or not: more is likely to come."""
    burst_since_s: float | None = None
    """Since when there has been a burst; None outside of one."""
    burst_at_s: float | None = None
    """When memory last appeared at a burst's rate."""
    has_starts: bool = False
    """Whether a guest has started since the last pair of rounds began."""
    start_s: float | None = None
    """When a guest was last seen to have started."""
    interval_s: float = 0.0
    """The longest interval between two starts of the present series."""
    fresh_kib: int = 0
    """Debt that no round begun since has visited."""
    half_kib: int = 0
    """Debt that one round has visited: merging takes two visits."""
    gone_kib: int = 0
    """Memory of guests that have stopped since the last round began: ksmd's counters still tell of it."""
    waited_kib_s: float = 0.0
    """How much debt has waited for how long since the last round began."""
    pages_sharing: int | None = None
    """As last seen, to notice merges that a write has broken where the kernel does not count them."""
    cow_ksm: int | None = None
    """As last seen, to notice merges that a write has broken."""
    yielded: float = 0.5
    """Which share of the debt has merged at last, averaged over the last ones that were paid."""
    gained_kib: int = 0
    broken_kib: int = 0
    """What rounds have merged, and what was broken, since the two were last compared."""
    backoff: int = 1
    full_scans: int | None = None
    """The full scan at whose end our last round left ksmd's cursor; None if it may be anywhere."""
    round: Round | None = None
    pair_left: int = 0
    """Rounds of the present pair that have yet to end: the second one begins as soon as the first has ended."""
    page_cost_s: float = DEFAULT_PAGE_COST_S
    round_cost_s_per_kib: float | None = None
    """ksmd's CPU time that a round is reckoned to take, for each KiB of memory; None before the first."""
    narrow_rounds: int = 0
    """Rounds in a row that skipped most of the old pages (smart_scan) while a second visit was owed."""
    tail_gained_kib: int = 0
    """What those after the first have merged."""
    retries: int = 0
    """Rounds made because the last one left much of the half debt unsettled."""
    probe_interval_s: float = 300.0
    probe_due_s: float | None = None
    probe_rounds: int = 0
    """Rounds of a probe that are still to be done."""
    probe_gained_kib: int = 0


def dump_state(state: AdaptiveState) -> dict[str, object]:
    """Return a state as plain JSON values."""
    values: dict[str, object] = dump(state)
    return values


def load_state(kept: Mapping[str, object]) -> AdaptiveState:
    """Rebuild a state from what `dump_state` gave; raises ValueError if it is not one, as another version's is not."""
    return build(AdaptiveState, kept, least=0, most=MAX, is_exact=True)
