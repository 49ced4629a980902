"""Rule 12 of the adaptive law: a guest that keeps rewriting what merges is named, and is to be out of KSM for a day.

After a full scan ksmd rests. It goes on counting what it has merged of a guest, while what of that is still mapped can
only fall: a reading of both (`Guest.merged`) tells how much the guest has written to, or given back, since ksmd saw it.
A rest speaks against a guest when that is most of it, before it has paid (`PAYS_COST`): what it still saves counts for
it. No guest loses more than the host has COW breaks, as khugepaged unmerges pages, too. The guests that lose most
come first, and none any more once what the others lose is no backlog (NEGLIGIBLE). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from virtksm.model.snapshot import Snapshot
from virtksm.policy.adaptive.backlog import is_too_soon, seconds_to_pay
from virtksm.policy.adaptive.changes import total_kib
from virtksm.policy.adaptive.state import AdaptiveState, Watched
from virtksm.policy.adaptive.worth import NEGLIGIBLE
from virtksm.values import EMPTY, replace

REPEATS = 3
"""So many rests in a row have to speak against a guest (chosen)."""
OUT_S = 24 * 3600.0
"""For so long it is to be out; then it merges again, and is watched anew (chosen)."""


def watch(snapshot: Snapshot, state: AdaptiveState, *, is_wanted: bool) -> AdaptiveState:
    """Return the state with what readings of the present rest say; with none of it unless `is_wanted`."""
    if not is_wanted:
        return replace(state, watched=EMPTY, rewriters=EMPTY) if state.watched or state.rewriters else state
    if state.scans.current is not None:
        return state
    rest_s = state.learned.ended_s
    rests = state.rests if state.rests[1] == rest_s else (state.rests[1], rest_s)
    running = {guest.key for guest in snapshot.guests}
    rewriters = {key: end_s for key, end_s in state.rewriters.items() if key in running and snapshot.taken_s < end_s}
    watched = {key: one for key, one in state.watched.items() if key in running and one.rest_s in rests}
    lost_kib = {key: kib for key, kib in _find_lost(snapshot, state).items() if key not in rewriters}
    left_kib = sum(lost_kib.values())
    for key in sorted(lost_kib, key=lambda one: -lost_kib[one]):
        if left_kib <= _negligible_kib(snapshot, state):
            break
        left_kib -= lost_kib[key]
        before = watched.get(key)
        if before is None or before.rest_s != rest_s:
            watched[key] = Watched(rest_s=rest_s, times=1 if before is None else before.times + 1)
        if watched[key].times >= REPEATS:
            del watched[key]
            rewriters[key] = snapshot.taken_s + OUT_S
    return replace(state, rests=rests, watched=watched, rewriters=rewriters)


def _find_lost(snapshot: Snapshot, state: AdaptiveState) -> Mapping[str, int]:
    """Return by guest what it has lost in the present rest of what had merged, where that is most of it."""
    began_s, end_s = state.learned.ended_s, state.learned.ended_s + seconds_to_pay(state)
    broken_kib, lost_kib = _broken_kib(snapshot, state), {}
    for guest in snapshot.guests if broken_kib > _negligible_kib(snapshot, state) else ():
        reading = guest.merged
        if reading is not None and guest.can_merge and began_s < reading.taken_s < end_s:
            kib = min(reading.counted_kib - reading.mapped_kib, broken_kib)
            if kib * 2 > reading.counted_kib:
                lost_kib[guest.key] = kib
    return lost_kib


def wants_merged(snapshot: Snapshot, state: AdaptiveState) -> bool:
    """Tell whether a reading is of use now: ksmd rests, and enough was rewritten that has not paid."""
    is_resting = state.scans.current is None and is_too_soon(state, snapshot.taken_s)
    return is_resting and _broken_kib(snapshot, state) > _negligible_kib(snapshot, state)


def _negligible_kib(snapshot: Snapshot, state: AdaptiveState) -> int:
    """Return what is no backlog yet: less than that begins no full scan."""
    return total_kib(snapshot, state) // NEGLIGIBLE


def _broken_kib(snapshot: Snapshot, state: AdaptiveState) -> int:
    """Return the host's COW breaks since the last full scan began."""
    began, now = state.learned.began_cow_ksm, snapshot.ksm.cow_ksm
    return 0 if began is None or now is None else snapshot.ksm.kib(max(now - began, 0))
