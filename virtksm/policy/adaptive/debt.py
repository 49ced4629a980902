"""Rules 3 to 5 of the adaptive law: which memory is still owed visits, and how long it has waited.

Debt is memory that has appeared, of guests and of others, and that ksmd has not visited as often as merging needs
(twice: a page's checksum must hold still between two visits). It comes in three ages: young (appeared a moment ago,
left alone while it settles), fresh (owed two visits) and half (owed one). Pure.
"""

from __future__ import annotations

from dataclasses import replace

from virtksm.model.snapshot import Snapshot
from virtksm.policy.adaptive.growth import RECENT_S, note_burst, note_start
from virtksm.policy.adaptive.state import MAX_SUM, AdaptiveState

OTHER_PROCESSES = "others"
"""What stands for the memory of others among the guests'. It counts as a sum: processes come and go, and what they do
not change together is no debt."""
NEGLIGIBLE = 256
"""Less than this fraction of the memory, owed or gained, is nothing: it pays for no round, and probes find it."""


def account(snapshot: Snapshot, state: AdaptiveState, settle_s: float) -> AdaptiveState:
    """Return the state with the debt as of this snapshot; `settle_s` seconds make young memory fresh."""
    now_s = snapshot.taken_s
    guests_kib = {guest.key: guest.rss_kib for guest in snapshot.guests if guest.rss_kib is not None}
    if snapshot.other_processes is not None:
        guests_kib[OTHER_PROCESSES] = snapshot.other_processes.kib
    unread = {guest.key for guest in snapshot.guests if guest.rss_kib is None}
    kept_kib = {key: kib for key, kib in state.guests_kib.items() if key in unread}  # unread is not gone
    appeared_kib = sum(max(kib - state.guests_kib.get(key, 0), 0) for key, kib in guests_kib.items())  # rule 3
    stopped = state.guests_kib.keys() - guests_kib.keys() - unread
    broken_kib = _broken_kib(snapshot, state, has_stopped=bool(stopped))

    young = (*state.young, (now_s, appeared_kib)) if appeared_kib else state.young
    settled_kib = sum(kib for at_s, kib in young if not 0 <= now_s - at_s < settle_s)  # rule 4
    young = tuple((at_s, kib) for at_s, kib in young if 0 <= now_s - at_s < settle_s)
    recent = (*state.recent, (now_s, appeared_kib)) if appeared_kib else state.recent
    recent = tuple((at_s, kib) for at_s, kib in recent if 0 <= now_s - at_s < RECENT_S)
    all_kib = sum(guests_kib.values()) + sum(kept_kib.values())
    stopped_kib = sum(state.guests_kib[key] for key in stopped)
    if OTHER_PROCESSES in guests_kib:  # a sum: what it falls by is what processes have held that ended
        stopped_kib += max(state.guests_kib.get(OTHER_PROCESSES, 0) - guests_kib[OTHER_PROCESSES], 0)
    stayed = 1 - stopped_kib / (sum(state.guests_kib.values()) or 1)  # what has stopped owes nothing
    covered_kib = all_kib - sum(kib for _, kib in young)
    forgotten_kib = covered_kib if state.full_scans is not None and known_kib(snapshot) == 0 else 0  # run=2: unmerged
    fresh_kib = min(max(int(state.fresh_kib * stayed) + settled_kib + broken_kib, forgotten_kib), all_kib)
    half_kib = min(int(state.half_kib * stayed), all_kib - fresh_kib)
    current = state.round
    if current is not None:
        current = replace(current, scanning_kib=int(current.scanning_kib * stayed))

    waited_s = 0.0 if state.taken_s is None else max(now_s - state.taken_s, 0.0)  # rule 5
    waiting_kib = state.fresh_kib + state.gone_kib + (state.half_kib if state.round is None else 0)
    if state.taken_s is not None and guests_kib.keys() - state.guests_kib.keys() - {OTHER_PROCESSES}:
        state = note_start(state, now_s)
    state = replace(
        state,
        taken_s=now_s,
        guests_kib={**kept_kib, **guests_kib},
        young=young,
        recent=recent,
        fresh_kib=fresh_kib,
        half_kib=half_kib,
        round=current,
        gone_kib=min(state.gone_kib + stopped_kib, known_kib(snapshot)),
        waited_kib_s=min(state.waited_kib_s + waiting_kib * waited_s, float(MAX_SUM)),
        pages_sharing=snapshot.ksm.pages_sharing,
        cow_ksm=snapshot.ksm.cow_ksm,
        broken_kib=min(state.broken_kib + broken_kib, MAX_SUM),
        probe_due_s=None
        if state.taken_s is not None and state.taken_s > now_s
        else state.probe_due_s,  # another boot's
    )
    return note_burst(state, total_kib(snapshot, state))


def _broken_kib(snapshot: Snapshot, state: AdaptiveState, *, has_stopped: bool) -> int:
    """Return what was merged and has been written to since the last pass: it may merge again.

    Where the kernel does not count such writes, what pages_sharing has fallen by between two rounds: less and later.
    """
    cow_ksm, sharing = snapshot.ksm.cow_ksm, snapshot.ksm.pages_sharing
    if cow_ksm is not None:
        return 0 if state.cow_ksm is None else snapshot.ksm.kib(max(cow_ksm - state.cow_ksm, 0))
    if state.pages_sharing is None or sharing is None or state.round is not None or has_stopped:
        return 0
    return snapshot.ksm.kib(max(state.pages_sharing - sharing, 0))


def total_kib(snapshot: Snapshot, state: AdaptiveState) -> int:
    """Return the memory that a round has to visit: that of guests and others, or all that KSM knows of if that is more.

    The difference is mergeable memory that nobody told of: others' that may not be read.
    """
    return max(sum(state.guests_kib.values()), known_kib(snapshot))


def owed_kib(state: AdaptiveState) -> int:
    """Return the debt that waits for a round; what is young is not among it."""
    return state.fresh_kib + state.half_kib + state.gone_kib


def known_kib(snapshot: Snapshot) -> int:
    """Return the memory that KSM has visited and not forgotten."""
    ksm = snapshot.ksm
    known = (ksm.pages_shared, ksm.pages_sharing, ksm.pages_unshared, ksm.pages_volatile)
    return ksm.kib(sum(pages or 0 for pages in known))
