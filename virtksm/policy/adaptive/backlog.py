"""Rules 3 to 5 of the adaptive law: which memory has yet to be scanned, and how long it has waited.

The backlog is memory of guests and other processes that has appeared, and that ksmd has not scanned as often as merging
needs (twice: a page's checksum must be the same in two scans). Its states: settling (appeared a moment ago, left alone
for now), new (needs two scans), scanned once (needs one more), exited (pages of guests that have gone, still in the
kernel's counters: one). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from virtksm.model.snapshot import Snapshot
from virtksm.policy.adaptive.changes import OTHER_PROCESSES, REWRITTEN, age_changed, known_kib, total_kib
from virtksm.policy.adaptive.growth import RECENT_S, note_burst, note_start
from virtksm.policy.adaptive.state import MAX, MAX_SUM, AdaptiveState, Backlog
from virtksm.values import replace

PAYS_COST = 300.0
"""What has merged pays when it lasts so many times the cost of a full scan (chosen)."""


def account(snapshot: Snapshot, state: AdaptiveState, settle_s: float) -> AdaptiveState:
    """Return the state with the backlog as of this snapshot; memory is settling for `settle_s` seconds."""
    known, state = state, _without_unmergeable(snapshot, state)
    now_s, before = snapshot.taken_s, state.backlog
    if state.taken_s is None or state.learned.ended_s > now_s:  # the first pass, or the clock began anew
        state = replace(state, learned=replace(state.learned, ended_s=now_s))
    seen = [(guest.key, guest.mergeable_kib) for guest in snapshot.guests if guest.can_merge]
    guests_kib = {key: kib for key, kib in seen if kib is not None}
    if snapshot.other_processes is not None:
        guests_kib[OTHER_PROCESSES] = snapshot.other_processes.kib
    unread = [key for key, kib in seen if kib is None]
    kept_kib = {key: state.guests_kib[key] for key in unread if key in state.guests_kib}  # unread is not gone
    before_kib = state.guests_kib
    # Of most guests nothing: passes of a full scan sense them but now and then.
    grown_kib = {key: kib - before_kib.get(key, 0) for key, kib in guests_kib.items() if before_kib.get(key) != kib}
    given_back_kib, refilled_kib = _count_given_back(snapshot, state, grown_kib)
    appeared_kib = sum(max(grown - refilled_kib.get(key, 0), 0) for key, grown in grown_kib.items())  # rule 3
    stopped = before_kib.keys() - guests_kib.keys() - {*unread}

    appeared = ((now_s, appeared_kib),) if appeared_kib else ()
    settling = tuple((at_s, kib) for at_s, kib in (*before.settling, *appeared) if 0 <= now_s - at_s < settle_s)
    settling_kib = sum(kib for _, kib in settling)
    settled_kib = before.settling_kib + appeared_kib - settling_kib  # rule 4
    recent = tuple((at_s, kib) for at_s, kib in (*state.arrivals.recent, *appeared) if 0 <= now_s - at_s < RECENT_S)
    all_kib = sum(guests_kib.values()) + sum(kept_kib.values())
    stopped_kib = sum(state.guests_kib[key] for key in stopped)
    if OTHER_PROCESSES in guests_kib:  # a sum: what it falls by is what processes have held that ended
        stopped_kib += max(state.guests_kib.get(OTHER_PROCESSES, 0) - guests_kib[OTHER_PROCESSES], 0)
    stayed = 1 - stopped_kib / (sum(state.guests_kib.values()) or 1)  # what has stopped takes its backlog away
    was_scanned = state.scans.cursor_full_scans is not None or state.pages_sharing  # by anybody
    is_unmerged = was_scanned and known_kib(snapshot) == 0  # by run=2
    forgotten_kib = all_kib - settling_kib if is_unmerged else 0
    # Unmerging is no rewriting: all by the administrator, or a guest that cannot merge any more.
    is_unmerging = is_unmerged or snapshot.ksm.run == 2 or state is not known
    rewritten_kib = 0 if is_unmerging else _rewritten_kib(snapshot, state, has_stopped=bool(stopped))
    rewritten_kib += sum(refilled_kib.values())
    new_kib = min(max(int(before.new_kib * stayed) + settled_kib, forgotten_kib), all_kib)
    current = state.scans.current
    if current is not None:
        current = replace(current, scanning_kib=int(current.scanning_kib * stayed))

    waited_s = 0.0 if state.taken_s is None else max(now_s - state.taken_s, 0.0)  # rule 5
    waiting_kib = before.new_kib + before.exited_kib + (before.scanned_once_kib if current is None else 0)
    arrivals = state.arrivals
    arrivals = replace(arrivals, started=tuple(key for key in arrivals.started if key in guests_kib or key in unread))
    started = [key for key in guests_kib if key not in state.guests_kib and key != OTHER_PROCESSES]
    if state.taken_s is not None and started:
        arrivals = note_start(arrivals, now_s, started)
    learned_kib = min(state.learned.rewritten_kib + rewritten_kib * is_too_soon(state, now_s), MAX_SUM)
    state = replace(state, taken_s=now_s, guests_kib={**kept_kib, **guests_kib}, given_back_kib=given_back_kib)
    changed = age_changed(snapshot, state, waited_s, rewritten_kib)  # rule 11
    changed_kib_s = before.changed_kib_s + (before.changed_kib + sum(changed.values())) / 2 * waited_s
    state = replace(
        state,
        pages_sharing=snapshot.ksm.pages_sharing,
        cow_ksm=snapshot.ksm.cow_ksm,
        unmapped_kib=snapshot.ksm.unmapped_kib,
        backlog=Backlog(
            settling=settling,
            new_kib=new_kib,
            scanned_once_kib=min(int(before.scanned_once_kib * stayed), all_kib + snapshot.ksm.unmapped_kib - new_kib),
            exited_kib=min(before.exited_kib + stopped_kib, known_kib(snapshot)),
            waited_kib_s=min(before.waited_kib_s + waiting_kib * waited_s, MAX),
            changed=changed,
            changed_kib_s=min(changed_kib_s, MAX),
        ),
        arrivals=replace(arrivals, recent=recent),
        scans=replace(state.scans, current=current),
        learned=replace(state.learned, rewritten_kib=learned_kib),
    )
    return note_burst(state, total_kib(snapshot, state))


def _without_unmergeable(snapshot: Snapshot, state: AdaptiveState) -> AdaptiveState:
    """Take guests out that have counted, and of which it has been learned since that they cannot merge.

    That is learned a moment after a guest is first seen, so that its memory is the newest: it is settling. Of what is
    not, its share goes. An older guest was unmerged: so much of what counts as rewritten since may be that.
    """
    unmergeable = {guest.key for guest in snapshot.guests if not guest.can_merge} & state.guests_kib.keys()
    if not unmergeable:
        return state
    kib = sum(state.guests_kib[key] for key in unmergeable)
    backlog, current = state.backlog, state.scans.current
    settling = _without_newest(backlog.settling, kib)
    older_kib = kib - backlog.settling_kib + sum(kib for _, kib in settling)
    stayed = 1 - older_kib / (sum(state.guests_kib.values()) or 1)
    if current is not None:
        current = replace(current, scanning_kib=int(current.scanning_kib * stayed))
    changed_kib = max(backlog.changed.get(REWRITTEN, 0.0) - older_kib, 0.0)
    return replace(
        state,
        guests_kib={key: kib for key, kib in state.guests_kib.items() if key not in unmergeable},
        backlog=replace(
            backlog,
            settling=settling,
            new_kib=int(backlog.new_kib * stayed),
            scanned_once_kib=int(backlog.scanned_once_kib * stayed),
            changed={**backlog.changed, REWRITTEN: changed_kib},
        ),
        learned=replace(state.learned, rewritten_kib=max(state.learned.rewritten_kib - older_kib, 0)),
        arrivals=replace(state.arrivals, recent=_without_newest(state.arrivals.recent, kib)),
        scans=replace(state.scans, current=current),
    )


def _without_newest(appeared: tuple[tuple[float, int], ...], kib: int) -> tuple[tuple[float, int], ...]:
    """Return what appeared, and when, less so much of the newest."""
    left = []
    for at_s, appeared_kib in reversed(appeared):
        taken_kib = min(appeared_kib, kib)
        kib -= taken_kib
        if taken_kib < appeared_kib:
            left.append((at_s, appeared_kib - taken_kib))
    return tuple(reversed(left))


def _count_given_back(
    snapshot: Snapshot, state: AdaptiveState, grown_kib: Mapping[str, int]
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return what each guest has given back until now, and what of it it has filled anew: written to, it is not new.

    What has come free by merging is in no resident memory either, and was not given back. Other processes are a sum:
    others come than have ended.
    """
    known = grown_kib.keys() & state.guests_kib.keys() - {OTHER_PROCESSES}
    fallen_kib = sum(max(-grown_kib[key], 0) for key in known)
    merged_kib = max(snapshot.ksm.unmapped_kib - state.unmapped_kib, 0)
    share = max(1 - merged_kib / fallen_kib, 0.0) if fallen_kib else 0.0
    given_back, refilled = dict(state.given_back_kib), {}
    for key in known:
        before, grown = given_back.pop(key, 0), grown_kib[key]
        refilled[key] = min(before, max(grown, 0))
        if left := before - refilled[key] + int(max(-grown, 0) * share):
            given_back[key] = left
    return {key: kib for key, kib in given_back.items() if key in state.guests_kib}, refilled


def is_too_soon(state: AdaptiveState, now_s: float) -> bool:
    """Tell whether what is written to now was merged in vain by the last pair of full scans."""
    return now_s - state.learned.ended_s < seconds_to_pay(state)


def seconds_to_pay(state: AdaptiveState) -> float:
    """Return how long what has merged has to last, or it was merged in vain."""
    return PAYS_COST * (state.learned.full_scan_cost_s_per_kib or 0.0) * sum(state.guests_kib.values())


def _rewritten_kib(snapshot: Snapshot, state: AdaptiveState, *, has_stopped: bool) -> int:
    """Return what was merged and has been written to since the last pass: it may merge again.

    Where the kernel does not count COW breaks, what pages_sharing has fallen by between two full scans: less and later.
    """
    cow_ksm, sharing = snapshot.ksm.cow_ksm, snapshot.ksm.pages_sharing
    if cow_ksm is not None:
        return 0 if state.cow_ksm is None else snapshot.ksm.kib(max(cow_ksm - state.cow_ksm, 0))
    if state.pages_sharing is None or sharing is None or state.scans.current is not None or has_stopped:
        return 0
    return snapshot.ksm.kib(max(state.pages_sharing - sharing, 0))
