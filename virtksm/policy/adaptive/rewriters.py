"""Rule 12 of the adaptive law: a guest that keeps rewriting what merges is named, and is to be out of KSM for a day.

After a full scan ksmd rests. What is merged of a guest (`Guest.merged`) can then only fall: its pages are written to
or given back, by which its resident memory falls, too. So two readings of a rest tell how much was rewritten at least,
but no more than the host's COW breaks: khugepaged takes pages apart, too. A rest speaks against a guest when most of
what was merged at its beginning is rewritten before it has paid (`PAYS_COST`): what it still saves counts for it.
Rewriting that is no backlog, as it is below 1/NEGLIGIBLE of the memory, is none here either. Pure.
"""

from __future__ import annotations

from virtksm.model.snapshot import MergedReading, Snapshot
from virtksm.policy.adaptive.backlog import seconds_to_pay
from virtksm.policy.adaptive.changes import total_kib
from virtksm.policy.adaptive.state import AdaptiveState, Watched
from virtksm.policy.adaptive.worth import NEGLIGIBLE
from virtksm.values import EMPTY, replace

REPEATS = 3
"""So many rests in a row must speak against a guest (chosen)."""
OUT_S = 24 * 3600.0
"""For so long it is to be out; then it merges again, and is watched anew (issue 21)."""


def watch(snapshot: Snapshot, state: AdaptiveState, *, is_wanted: bool) -> AdaptiveState:
    """Return the state with what the readings of the present rest say; with none of it unless `is_wanted`."""
    if not is_wanted:
        return replace(state, watched=EMPTY, rewriters=EMPTY) if state.watched or state.rewriters else state
    if state.scans.current is not None:
        return state
    running = {guest.key for guest in snapshot.guests}
    rewriters = {key: end_s for key, end_s in state.rewriters.items() if key in running and snapshot.taken_s < end_s}
    watched = {}
    began_s, paid_s = state.learned.ended_s, state.learned.ended_s + seconds_to_pay(state)
    for guest in snapshot.guests:
        if not guest.can_merge or guest.key in rewriters:
            continue
        one, merged = state.watched.get(guest.key), guest.merged
        if merged is not None and began_s < merged.taken_s < paid_s:
            one = _look(snapshot, state, one, merged)
        if one is not None and one.times >= REPEATS:
            rewriters[guest.key] = snapshot.taken_s + OUT_S
        elif one is not None:
            watched[guest.key] = one
    return replace(state, watched=watched, rewriters=rewriters)


def _look(snapshot: Snapshot, state: AdaptiveState, before: Watched | None, now: MergedReading) -> Watched:
    """Return what is known of a guest by a reading of the present rest."""
    began_s = state.learned.ended_s
    if before is None or before.rest_s != began_s:
        times = before.times if before is not None and before.is_rewritten else 0
        return Watched(rest_s=began_s, first=now, times=times)
    fallen_kib = before.first.merged_kib - now.merged_kib - max(before.first.rss_kib - now.rss_kib, 0)
    rewritten_kib = min(fallen_kib, state.learned.rewritten_kib)
    is_most = rewritten_kib * 2 > before.first.merged_kib and rewritten_kib * NEGLIGIBLE > total_kib(snapshot, state)
    if before.is_rewritten or not is_most:
        return before
    return replace(before, is_rewritten=True, times=before.times + 1)


def wants_merged(snapshot: Snapshot, state: AdaptiveState) -> bool:
    """Tell whether a reading is of use now: the first of a rest, and more where anything is rewritten."""
    began_s = state.learned.ended_s
    if state.scans.current is not None or snapshot.taken_s - began_s >= seconds_to_pay(state):
        return False
    is_first = not any(one.rest_s == began_s for one in state.watched.values())
    return is_first or state.learned.rewritten_kib * NEGLIGIBLE > total_kib(snapshot, state)
