"""Rule 2 of the adaptive law, its second half: memory that may have changed in place, where no count tells.

How fast a guest's memory changes is measured (`Guest.dirty_kib_per_s`) or, where it is not, or is too slow for that,
assumed; how much of it merges is learned by what full scans find (`worth`). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from virtksm.model.snapshot import Snapshot, Source
from virtksm.policy.adaptive.state import AdaptiveState

OTHER_PROCESSES = "other_processes"
"""The key of other processes' memory among the guests'. It is one sum: processes come and go, and while the sum stays
the same nothing is added to the backlog."""
CHANGED = "changed "
"""What begins the key of a process's changed memory."""
UNSEEN = CHANGED + "unseen"
"""The key of changes that nothing tells: in memory of no known process, and those too slow to be measured."""
REWRITTEN = CHANGED + "rewritten"
"""The key of merged pages that were written to beyond what was measured."""
OF_NONE = (UNSEEN.removeprefix(CHANGED), REWRITTEN.removeprefix(CHANGED))
"""What stands there for a process."""
BLIND_S = 24 * 3600.0
"""Unmeasured memory changes once in so long, so a rewriter is out for as long (chosen)."""
QUIET_S = 7 * BLIND_S
"""Measured memory changes at least once in so long: below 1 MiB a second only disk reads are told (chosen)."""
OWN_PAGES = 2
"""Zero pages of the agent's own that may merge (kernel: one alone has no twin)."""
UNSEEN_SHARE = 1 / 64
"""Unseen other processes hold this share of memory (chosen)."""


def add(kib: Mapping[str, float], more_kib: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of two amounts by key."""
    return {**kib, **{key: kib.get(key, 0) + more for key, more in more_kib.items()}}


def age_changed(
    snapshot: Snapshot, state: AdaptiveState, passed_s: float, more: Mapping[str, float], unmerged_kib: int
) -> Mapping[str, float]:
    """Return what has changed by key, `passed_s` later, with `more` that no process's rate accounts for.

    Rates are without new memory. No process changes more than it has that has not merged.
    """
    before, lone = state.backlog.changed, lone_share(snapshot, state)
    changed = {REWRITTEN: max(before.get(REWRITTEN, 0.0) - unmerged_kib, 0.0)}
    for key, (kib_per_s, kib) in changing(snapshot, state).items():
        kib_before = before.get(key, 0.0)
        aged_kib = max(min(kib_before + kib_per_s * passed_s, kib * lone), kib_before)
        changed[key] = min(aged_kib + more.get(key, 0.0), kib)
    lone_kib = (total_kib(snapshot, state) + unseen_of_kib(snapshot, state)) * lone
    changed[REWRITTEN] = min(changed[REWRITTEN] + more.get(REWRITTEN, 0.0), lone_kib)
    return changed


def attribute(snapshot: Snapshot, state: AdaptiveState, passed_s: float, rewritten_kib: float) -> Mapping[str, float]:
    """Return by key how much of what was written to after it had merged each process's rate accounts for.

    The rest has the key REWRITTEN. A process's own KSM statistics change no sooner than ksmd visits its pages again.
    """
    if not rewritten_kib:
        return {}
    more_kib = {key: kib_per_s * passed_s for key, (kib_per_s, _) in changing(snapshot, state).items() if kib_per_s}
    times = min(rewritten_kib / (sum(more_kib.values()) or inf), 1.0)
    theirs = {key: kib * times for key, kib in more_kib.items()}
    return {**theirs, REWRITTEN: max(rewritten_kib - sum(theirs.values()), 0.0)}


def changing(snapshot: Snapshot, state: AdaptiveState) -> Mapping[str, tuple[float, int]]:
    """Return by key how many KiB a process writes to in a second, and how many it has."""
    lone = lone_share(snapshot, state)
    found = {CHANGED + key: (kib * lone / BLIND_S, kib) for key, kib in state.guests_kib.items()}
    unseen_kib = unseen_of_kib(snapshot, state)
    unseen_kib_per_s = unseen_kib * lone / BLIND_S
    for guest in snapshot.guests:
        if guest.dirty_kib_per_s is not None and (one := found.get(key := CHANGED + guest.key)) is not None:
            found[key] = guest.dirty_kib_per_s, one[1]
            unseen_kib_per_s += max(one[1] * lone / QUIET_S - guest.dirty_kib_per_s, 0.0)
            unseen_kib += one[1]
    return found | {UNSEEN: (unseen_kib_per_s, unseen_kib)} if unseen_kib else found


def unseen_of_kib(snapshot: Snapshot, state: AdaptiveState) -> int:
    """Return how much mergeable memory there may be besides what is seen, by estimate; 0 where all is seen."""
    others = snapshot.other_processes
    if others is not None and not others.unread:
        return 0
    return max(known_kib(snapshot) - sum(state.guests_kib.values()), int(snapshot.host.usable_kib * UNSEEN_SHARE))


def lone_share(snapshot: Snapshot, state: AdaptiveState) -> float:
    """Return the share of the memory that has not merged."""
    merged_kib = snapshot.ksm.kib(snapshot.ksm.merging_pages or 0)
    return max(1 - merged_kib / (total_kib(snapshot, state) + unseen_of_kib(snapshot, state) or 1), 0.0)


def total_kib(snapshot: Snapshot, state: AdaptiveState) -> int:
    """Return the memory that a full scan covers: guests' and other processes', or all that KSM knows of if more.

    The difference is mergeable memory of other processes that may not be read.
    """
    return max(sum(state.guests_kib.values()), 0 if knows_of_none(snapshot) else known_kib(snapshot))


def known_kib(snapshot: Snapshot) -> int:
    """Return the memory that KSM has scanned and not forgotten."""
    ksm = snapshot.ksm
    known = (ksm.pages_shared, ksm.pages_sharing, ksm.pages_unshared, ksm.pages_volatile)
    return ksm.kib(sum(pages or 0 for pages in known))


def knows_of_none(snapshot: Snapshot) -> bool:
    """Tell whether KSM knows of no page but the agent's own."""
    return known_kib(snapshot) <= snapshot.ksm.kib(OWN_PAGES if snapshot.source is Source.LOCAL else 0)
