"""Rule 2 of the adaptive law: which memory has yet to be scanned, and how long it has waited.

The backlog is memory of guests and other processes that has appeared, and that ksmd has not scanned as often as merging
needs (twice: a page's checksum must be the same in two scans). Its states: settling (appeared a moment ago, left alone
for now), new (needs two scans), scanned once (needs one more), exited (pages of guests that have gone, still in the
kernel's counters: one). Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf

from virtksm.model.snapshot import Snapshot
from virtksm.policy.adaptive.changes import (
    CHANGED,
    OF_NONE,
    OTHER_PROCESSES,
    REWRITTEN,
    add,
    age_changed,
    attribute,
    known_kib,
    total_kib,
)
from virtksm.policy.adaptive.growth import RECENT_S, note_burst, note_start
from virtksm.policy.adaptive.state import AdaptiveState, Appeared, Arrivals, Backlog, Learned, Scans
from virtksm.values import replace

PAYS_COST = 300.0
"""What has merged pays if it lasts so many full scans' cost (chosen)."""
OWN_KIB = 36
"""Growth by less than this is QEMU's own: measuring a dirty rate takes it 32 (measured)."""
STEPS = 8
"""A process's memory settles in so many steps: what appears within one is taken together (chosen)."""


def account(snapshot: Snapshot, state: AdaptiveState, settle_s: float) -> AdaptiveState:
    """Return the state with the backlog as of this snapshot; memory is settling for `settle_s` seconds."""
    now_s, before, before_kib = snapshot.taken_s, state.backlog, state.guests_kib
    if state.taken_s is None or state.learned.ended_s > now_s:  # the first pass, or the clock began anew
        state = replace(state, learned=replace(state.learned, ended_s=now_s))
    seen = {guest.key: guest.mergeable_kib for guest in snapshot.guests if guest.can_merge}
    guests_kib = {key: _without_own(kib, before_kib.get(key, 0)) for key, kib in seen.items() if kib is not None}
    if snapshot.other_processes is not None:
        guests_kib[OTHER_PROCESSES] = snapshot.other_processes.kib
    unread_kib = {key: before_kib[key] for key, kib in seen.items() if kib is None and key in before_kib}
    # Of most guests nothing: passes of a full scan sense them but now and then.
    grown_kib = {key: kib - before_kib.get(key, 0) for key, kib in guests_kib.items() if before_kib.get(key) != kib}
    given_back_kib, refilled_kib = _count_given_back(snapshot, state, grown_kib)
    appeared = tuple(
        Appeared(now_s, key, kib - refilled_kib.get(key, 0))
        for key, kib in grown_kib.items()
        if kib > refilled_kib.get(key, 0)
    )
    all_kib = {**unread_kib, **guests_kib}
    unmergeable = {guest.key for guest in snapshot.guests if not guest.can_merge} & before_kib.keys()
    stopped = {key: kib for key, kib in before_kib.items() if key not in all_kib and key not in unmergeable}
    stopped_kib = sum(stopped.values())
    has_changed = bool(grown_kib.keys() - {OTHER_PROCESSES} or stopped_kib)

    here = [one for one in _gather(before.settling, appeared, settle_s / STEPS) if one.key in all_kib]
    settling = tuple(one for one in here if 0 <= now_s - one.at_s < settle_s)
    new_kib = dict(before.new)
    for one in here:
        if not 0 <= now_s - one.at_s < settle_s:
            new_kib[one.key] = new_kib.get(one.key, 0) + one.kib
    current = state.scans.current
    was_scanned = state.scans.cursor_full_scans is not None or state.pages_sharing  # by anybody
    # By run=2. In a full scan ksmd may be on its way to its first page.
    is_unmerged = current is None and was_scanned and known_kib(snapshot) == 0
    is_unmerged = is_unmerged or snapshot.ksm.run == 2 or _has_begun_anew(snapshot, state.scans)
    if is_unmerged:
        new_kib = dict(all_kib)
        for one in settling:
            new_kib[one.key] -= one.kib
    # Unmerging is no rewriting: all by the administrator, or a guest that cannot merge any more.
    is_unmerging = is_unmerged or unmergeable
    has_stopped = stopped_kib > 0 or grown_kib.get(OTHER_PROCESSES, 0) < 0
    rewritten_kib = 0 if is_unmerging else _rewritten_kib(snapshot, state, has_stopped=has_stopped)
    # What it has lost meanwhile that is found to be unable to merge: an older one was unmerged.
    unmerged_kib = sum(before_kib[key] for key in unmergeable)
    unmerged_kib = max(unmerged_kib - sum(one.kib for one in before.settling if one.key in unmergeable), 0)

    waited_s = 0.0 if state.taken_s is None else max(now_s - state.taken_s, 0.0)
    waiting_kib = before.new_kib + (before.scanned_once_kib if current is None else 0)
    arrivals = _note_arrivals(state, now_s, waited_s, appeared, all_kib)
    is_second = current is not None and state.scans.pair_left <= 1  # what that has merged and lost it does not count
    was_too_soon = is_too_soon(state, now_s) and not is_second
    state = replace(state, taken_s=now_s, guests_kib=all_kib, given_back_kib=given_back_kib)
    refilled = {CHANGED + key: kib for key, kib in refilled_kib.items()}
    rewritten = attribute(snapshot, state, waited_s, rewritten_kib)
    too_soon = (rewritten, refilled) if was_too_soon else ({}, {})
    learned = _charge(state.learned, *too_soon, unmerged_kib)
    beyond_rates = {**refilled, REWRITTEN: rewritten.get(REWRITTEN, 0.0)}
    changed = age_changed(snapshot, state, waited_s, beyond_rates, unmerged_kib)
    state = replace(
        state,
        pages_sharing=snapshot.ksm.pages_sharing,
        cow_ksm=snapshot.ksm.cow_ksm,
        unmapped_kib=snapshot.ksm.unmapped_kib if has_changed else state.unmapped_kib,
        swap_free_kib=snapshot.host.swap_free_kib if has_changed else state.swap_free_kib,
        backlog=Backlog(
            settling=settling,
            new={key: min(kib, all_kib[key]) for key, kib in new_kib.items() if kib > 0 and key in all_kib},
            scanned_once={} if is_unmerged else _within(before.scanned_once, all_kib),
            exited_kib=min(before.exited_kib + _seen_kib(before, stopped), known_kib(snapshot)),
            waited_kib_s=_without_gone(before.waited_kib_s + waiting_kib * waited_s, before, all_kib),
            exited_kib_s=before.exited_kib_s + before.exited_kib * waited_s,
            changed=changed,
            changed_kib_s=before.changed_kib_s + (before.changed_kib + sum(changed.values())) / 2 * waited_s,
        ),
        arrivals=arrivals,
        scans=_age_scans(snapshot, state, stopped_kib, unmerged_kib),
        learned=learned,
    )
    return note_burst(state, total_kib(snapshot, state))


def _without_own(kib: int, before_kib: int) -> int:
    """Return what a guest holds, as before where it has grown by next to nothing, until that adds up."""
    return before_kib if before_kib < kib < before_kib + OWN_KIB else kib


def _seen_kib(before: Backlog, stopped: Mapping[str, int]) -> int:
    """Return what KSM has seen of guests that have stopped: nothing of what was settling or new."""
    new_kib = sum(before.new.get(key, 0) for key in stopped)
    return max(sum(stopped.values()) - new_kib - sum(one.kib for one in before.settling if one.key in stopped), 0)


def _without_gone(waited_kib_s: float, before: Backlog, here: Collection[str]) -> float:
    """Return how long what is there still has waited, by its share of what waits: what is gone has in vain."""
    waiting = add(before.new, before.scanned_once)
    here_kib = sum(kib for key, kib in waiting.items() if key.removeprefix(CHANGED) in here)
    return waited_kib_s * here_kib / (sum(waiting.values()) or 1)


def _has_begun_anew(snapshot: Snapshot, scans: Scans) -> bool:
    """Tell whether ksmd has begun anew: unmerging all, or a boot, has the kernel count full scans from 0 again."""
    seen = scans.cursor_full_scans if scans.current is None else scans.current.began.full_scans
    return seen is not None and snapshot.ksm.full_scans is not None and snapshot.ksm.full_scans < seen


def _age_scans(snapshot: Snapshot, state: AdaptiveState, stopped_kib: int, unmerged_kib: int) -> Scans:
    """Return the full scans without what has stopped or was unmerged; none is under way where ksmd has begun anew."""
    scans, current = state.scans, state.scans.current
    if _has_begun_anew(snapshot, scans):
        return Scans(fed=scans.last_fed)
    if current is not None:
        taken_along_kib = current.taken_along_kib + stopped_kib + 2 * unmerged_kib  # unmerging is a COW break, too
        if stopped_kib:
            taken_along_kib += max(state.unmapped_kib - snapshot.ksm.unmapped_kib, 0)
        scanning = _within(current.scanning, state.guests_kib)
        current = replace(current, scanning=scanning, taken_along_kib=taken_along_kib)
    return replace(scans, current=current)


def _note_arrivals(
    state: AdaptiveState, now_s: float, waited_s: float, appeared: Sequence[Appeared], all_kib: Mapping[str, int]
) -> Arrivals:
    """Note that guests have started, and what has appeared lately."""
    arrivals, before_kib = state.arrivals, state.guests_kib
    if state.taken_s is not None and any(key not in before_kib and key != OTHER_PROCESSES for key in all_kib):
        arrivals = note_start(arrivals, now_s)
    recent_share = RECENT_S / max(waited_s, RECENT_S)
    lately = tuple(replace(one, kib=int(one.kib * recent_share)) if one.key in before_kib else one for one in appeared)
    gathered = _gather(arrivals.recent, lately, RECENT_S / STEPS)
    return replace(
        arrivals, recent=tuple(one for one in gathered if one.key in all_kib and 0 <= now_s - one.at_s < RECENT_S)
    )


def _gather(before: Sequence[Appeared], appeared: Sequence[Appeared], step_s: float) -> Iterator[Appeared]:
    """Yield what had appeared and what has now; of one process what appears within a step is one.

    So there are no more than some STEPS of each, however often passes come.
    """
    added = {one.key: one for one in appeared}
    for one in before:
        if one.key in added and 0 <= added[one.key].at_s - one.at_s < step_s:
            yield replace(one, kib=one.kib + added.pop(one.key).kib)
        else:
            yield one
    yield from added.values()


def _within(scanning: Mapping[str, float], here: Collection[str]) -> Mapping[str, float]:
    """Return what is being scanned without what has stopped."""
    here = {*here, *OF_NONE}
    return {key: kib for key, kib in scanning.items() if key.removeprefix(CHANGED) in here}


def _count_given_back(
    snapshot: Snapshot, state: AdaptiveState, grown_kib: Mapping[str, int]
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return what each guest has given back until now, and what of it it has filled anew: written to, it is not new.

    What has come free by merging or was swapped out is in no resident memory either, and was not given back. Other
    processes are a sum: others come than have ended.
    """
    known = grown_kib.keys() & state.guests_kib.keys() - {OTHER_PROCESSES}
    fallen_kib = sum(max(-grown_kib[key], 0) for key in known)
    elsewhere_kib = max(snapshot.ksm.unmapped_kib - state.unmapped_kib, 0)
    if state.swap_free_kib is not None and snapshot.host.swap_free_kib is not None:
        elsewhere_kib += max(state.swap_free_kib - snapshot.host.swap_free_kib, 0)
    share = max(1 - elsewhere_kib / fallen_kib, 0.0) if fallen_kib else 0.0
    given_back, refilled = dict(state.given_back_kib), {}
    for key in known:
        before, grown = given_back.pop(key, 0), grown_kib[key]
        if again := min(before, max(grown, 0)):
            refilled[key] = again
        if left := before - again + int(max(-grown, 0) * share):
            given_back[key] = left
    return {key: kib for key, kib in given_back.items() if key in state.guests_kib}, refilled


def _charge(
    learned: Learned, rewritten: Mapping[str, float], refilled: Mapping[str, float], unmerged_kib: int
) -> Learned:
    """Count what was written to too soon after it had merged, without what was unmerged since.

    What a guest filled anew may never have merged: no more of it counts than the last pair scanned of its changes.
    """
    scanned = {
        key: min(kib, max(learned.pair.get(key, 0.0) - learned.rewritten.get(key, 0.0), 0.0))
        for key, kib in refilled.items()
    }
    charged = add(add(learned.rewritten, rewritten), scanned)
    left = max(1 - unmerged_kib / (sum(charged.values()) or inf), 0.0)
    return replace(learned, rewritten={key: kib * left for key, kib in charged.items()})


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
