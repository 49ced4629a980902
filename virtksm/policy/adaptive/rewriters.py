"""Rule 6 of the adaptive law: a guest that keeps rewriting what merges is named, and is to be out of KSM for a day.

After a full scan ksmd rests. It goes on counting what it has merged of a guest, while what of that is still mapped can
only fall: a reading of both (`Guest.merged`) tells how much the guest has written to, or given back, since ksmd saw it.
That speaks against a guest when it is most of it, before it has paid (`PAYS_COST`): what it still saves counts for it.
No guest loses more than the host has COW breaks, as khugepaged unmerges pages, too. The guests that lose most come
first, and none any more once what the others lose is no backlog.

A rest in which little of a guest had merged tells nothing: smart_scan leaves pages that were rewritten alone for up to
eight full scans, and merges them again in a later one. Only what holds until it has paid speaks for a guest. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtksm.model.snapshot import MergedReading, Snapshot
from virtksm.policy.adaptive.backlog import is_too_soon, seconds_to_pay
from virtksm.policy.adaptive.changes import BLIND_S, total_kib
from virtksm.policy.adaptive.state import AdaptiveState, Watched
from virtksm.policy.adaptive.worth import is_backlog
from virtksm.values import EMPTY, replace

REPEATS = 3
"""Rests in a row after which a rewriter is taken out (chosen)."""
MOST = 0.5
"""It has lost, or holds again, more than this share of what had merged (chosen)."""


def watch(snapshot: Snapshot, state: AdaptiveState, *, is_wanted: bool) -> AdaptiveState:
    """Return the state with what readings of the present rest say; with none of it unless `is_wanted`."""
    if not is_wanted:
        return replace(state, watched=EMPTY, rewriters=EMPTY) if state.watched or state.rewriters else state
    if state.scans.current is not None:
        return state
    rest_s, now_s = state.learned.ended_s, snapshot.taken_s
    able = {guest.key: guest.can_merge for guest in snapshot.guests}
    rewriters = {key: end_s for key, end_s in state.rewriters.items() if key in able and now_s < end_s}
    paid_s = now_s - seconds_to_pay(state)
    watched = {
        key: one
        for key, one in state.watched.items()
        if able.get(key) and (one.held_s in (None, rest_s) or one.held_s > paid_s)
    }
    lost_kib = {key: kib for key, kib in _find_lost(snapshot, state).items() if key not in rewriters}
    left_kib = sum(lost_kib.values())
    for key in sorted(lost_kib, key=lambda one: -lost_kib[one]):
        if not is_backlog(left_kib, total_kib(snapshot, state)):
            break
        left_kib -= lost_kib[key]
        before = watched.get(key)
        if before is None or before.rest_s != rest_s:
            watched[key] = Watched(rest_s, 1 if before is None else before.times + 1, lost_kib[key])
        if watched[key].times >= REPEATS:
            del watched[key]
            rewriters[key] = now_s + BLIND_S
    for key, reading in _readings(snapshot, state) if watched else ():
        if key in watched and watched[key].rest_s != rest_s:
            watched[key] = _hold(watched[key], reading.mapped_kib, rest_s)
    return replace(state, watched=watched, rewriters=rewriters)


def _hold(one: Watched, mapped_kib: int, rest_s: float) -> Watched:
    """Note whether a guest that has lost nothing in this rest holds most of what it lost before: since it rests."""
    if mapped_kib < one.lost_kib * MOST:
        return replace(one, held_s=None)
    return one if one.held_s is not None else replace(one, held_s=rest_s)


def _readings(snapshot: Snapshot, state: AdaptiveState) -> Iterator[tuple[str, MergedReading]]:
    """Yield by guest what was read of it in the present rest, before what had merged has paid."""
    began_s, end_s = state.learned.ended_s, state.learned.ended_s + seconds_to_pay(state)
    for guest in snapshot.guests:
        if guest.merged is not None and guest.can_merge and began_s < guest.merged.taken_s < end_s:
            yield guest.key, guest.merged


def _find_lost(snapshot: Snapshot, state: AdaptiveState) -> Mapping[str, int]:
    """Return by guest what it has lost in the present rest of what had merged, where that is most of it."""
    broken_kib, lost_kib = _broken_kib(snapshot, state), {}
    matters = is_backlog(broken_kib, total_kib(snapshot, state))
    for key, reading in _readings(snapshot, state) if matters else ():
        kib = min(reading.counted_kib - reading.mapped_kib, broken_kib)
        if kib > reading.counted_kib * MOST:
            lost_kib[key] = kib
    return lost_kib


def wants_merged(snapshot: Snapshot, state: AdaptiveState) -> bool:
    """Tell whether a reading is of use now: ksmd rests, and what was rewritten has not paid.

    That is enough to matter, or it has half paid, and is not known what a guest holds that has lost it before.
    """
    if state.scans.current is not None or not is_too_soon(state, snapshot.taken_s):
        return False
    if is_backlog(_broken_kib(snapshot, state), total_kib(snapshot, state)):
        return True
    has_half_paid = snapshot.taken_s - state.learned.ended_s > seconds_to_pay(state) / 2
    return has_half_paid and not state.watched.keys() <= {key for key, _ in _readings(snapshot, state)}


def _broken_kib(snapshot: Snapshot, state: AdaptiveState) -> int:
    """Return the host's COW breaks since the last full scan began."""
    began, now = state.learned.began_cow_ksm, snapshot.ksm.cow_ksm
    return 0 if began is None or now is None else snapshot.ksm.kib(max(now - began, 0))
