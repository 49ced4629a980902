"""Rules 3 to 5 of the adaptive law: which memory is still owed visits, and how long it has waited.

Debt is memory that has appeared and that ksmd has not visited as often as merging needs (twice: a page's checksum must
hold still between two visits). It comes in three ages: young (appeared a moment ago, left alone while it settles),
fresh (owed two visits) and half (owed one). Pure.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from virtksm.model import Snapshot
from virtksm.policy.adaptive.past import MOST_SUM, AdaptivePast

PAGE_KIB = 4
"""KSM merges base pages; on hosts with larger ones the debt of broken merges is underestimated, nothing else."""
NEGLIGIBLE = 256
"""Less than this fraction of the memory, owed or gained, is nothing: it pays for no round, and probes find it."""
RECENT_S = 1.0
"""What appeared so lately tells how fast memory is appearing. Short, since after a burst it is what is waited for."""
BURST_SHARE = 120
"""Memory that would double within two minutes at the present rate is in a burst (guests start): it ends soon, and one
round then covers it all."""
STEADY_SHARE = 40
"""Debt that would double within 40 s at the present rate is still growing."""
PATIENCE = 1.25
"""After a burst the next one of its series is waited for this many times longer than the series' longest pause."""
MOST_PAUSE_S = 15.0
"""Bursts that are further apart are no series."""
DOUBLED = 0.8
"""Debt of this share of what is covered is worth a round in the middle of a series: each covers almost twice as much as
the one before, so that all of them together cost little more than twice the last."""


def account(snapshot: Snapshot, past: AdaptivePast, settle_s: float) -> AdaptivePast:
    """Return the past with the debt as of this snapshot; `settle_s` seconds make young memory fresh."""
    now_s = snapshot.taken_s
    guests_kib = {guest.key: guest.rss_kib for guest in snapshot.guests if guest.rss_kib is not None}
    unread = {guest.key for guest in snapshot.guests if guest.rss_kib is None}
    kept_kib = {key: kib for key, kib in past.guests_kib.items() if key in unread}  # unread is not gone
    appeared_kib = sum(max(kib - past.guests_kib.get(key, 0), 0) for key, kib in guests_kib.items())  # rule 3
    stopped = past.guests_kib.keys() - guests_kib.keys() - unread
    broken_kib = _broken_kib(snapshot, past, has_stopped=bool(stopped))

    young = (*past.young, (now_s, appeared_kib)) if appeared_kib else past.young
    settled_kib = sum(kib for at_s, kib in young if not 0 <= now_s - at_s < settle_s)  # rule 4
    young = tuple((at_s, kib) for at_s, kib in young if 0 <= now_s - at_s < settle_s)
    recent = (*past.recent, (now_s, appeared_kib)) if appeared_kib else past.recent
    recent = tuple((at_s, kib) for at_s, kib in recent if 0 <= now_s - at_s < RECENT_S)
    all_kib = sum(guests_kib.values()) + sum(kept_kib.values())
    stopped_kib = sum(past.guests_kib[key] for key in stopped)
    stayed = 1 - stopped_kib / (sum(past.guests_kib.values()) or 1)  # what has stopped owes nothing
    fresh_kib = min(int(past.fresh_kib * stayed) + settled_kib + broken_kib, all_kib)
    half_kib = min(int(past.half_kib * stayed), all_kib - fresh_kib)

    waited_s = 0.0 if past.taken_s is None else max(now_s - past.taken_s, 0.0)  # rule 5
    waiting_kib = past.fresh_kib + (past.half_kib if past.round is None else 0)
    past = replace(past, guests_kib={**kept_kib, **guests_kib})
    if is_burst(recent, total_kib(snapshot, past)):
        past = _note_burst(past, now_s)
    return replace(
        past,
        taken_s=now_s,
        young=young,
        recent=recent,
        fresh_kib=fresh_kib,
        half_kib=half_kib,
        waited_kib_s=min(past.waited_kib_s + waiting_kib * waited_s, float(MOST_SUM)),
        pages_sharing=snapshot.ksm.pages_sharing,
        cow_ksm=snapshot.ksm.cow_ksm,
        broken_kib=min(past.broken_kib + broken_kib, MOST_SUM),
        probe_due_s=None if past.taken_s is not None and past.taken_s > now_s else past.probe_due_s,  # another boot's
    )


def _broken_kib(snapshot: Snapshot, past: AdaptivePast, *, has_stopped: bool) -> int:
    """Return what was merged and has been written to since the last pass: it may merge again.

    Where the kernel does not count such writes, what pages_sharing has fallen by between two rounds: less and later.
    """
    cow_ksm, sharing = snapshot.ksm.cow_ksm, snapshot.ksm.pages_sharing
    if cow_ksm is not None:
        return 0 if past.cow_ksm is None else max(cow_ksm - past.cow_ksm, 0) * PAGE_KIB
    if past.pages_sharing is None or sharing is None or past.round is not None or has_stopped:
        return 0
    return max(past.pages_sharing - sharing, 0) * PAGE_KIB


def total_kib(snapshot: Snapshot, past: AdaptivePast) -> int:
    """Return the memory that a round has to visit: the guests', or all that KSM knows of if that is more.

    The difference is mergeable memory of others (systemd's MemoryKSM=, prctl), which has no guest to stand for it.
    """
    return max(sum(past.guests_kib.values()), known_kib(snapshot))


def known_kib(snapshot: Snapshot) -> int:
    """Return the memory that KSM has visited and not forgotten."""
    ksm = snapshot.ksm
    known = (ksm.pages_shared, ksm.pages_sharing, ksm.pages_unshared, ksm.pages_volatile)
    return sum(pages or 0 for pages in known) * PAGE_KIB


class Growth(Enum):
    """How memory is appearing, judged by what the present rate would come to; a pause is one between two bursts."""

    BURST = "burst"
    PAUSE = "pause"
    STEADY = "steady"
    SETTLED = "settled"


def is_burst(appeared: tuple[tuple[float, int], ...], memory_kib: int) -> bool:
    """Tell whether so much has appeared lately that the memory would double within two minutes."""
    return sum(kib for _, kib in appeared) * BURST_SHARE > memory_kib


def judge_growth(past: AdaptivePast, memory_kib: int) -> Growth:
    """Tell whether more memory is to be expected, so that a round should wait for it (rule 6)."""
    if is_burst(past.recent, memory_kib):
        return Growth.BURST
    if _pause_left_s(past) > 0:
        return Growth.PAUSE
    young_kib, recent_kib = (sum(kib for _, kib in appeared) for appeared in (past.young, past.recent))
    return Growth.STEADY if recent_kib * STEADY_SHARE > past.fresh_kib + young_kib else Growth.SETTLED


def has_doubled(past: AdaptivePast, memory_kib: int, reserve_kib: int) -> bool:
    """Tell whether about as much memory waits for its first visit as is covered, and as should be available."""
    debt_kib = past.fresh_kib + sum(kib for _, kib in past.young)
    return debt_kib >= DOUBLED * max(memory_kib - debt_kib, reserve_kib)


def seconds_to_end(growth: Growth, past: AdaptivePast, memory_kib: int) -> float:
    """Return in how many seconds a burst or a pause will be over if nothing more appears; 0.0 for the others."""
    if growth is Growth.PAUSE:
        return _pause_left_s(past)
    left_s, now_s, recent = 0.0, past.taken_s or 0.0, past.recent
    while growth is Growth.BURST and is_burst(recent, memory_kib):
        left_s, recent = recent[0][0] + RECENT_S - now_s, recent[1:]
    return left_s


def _pause_left_s(past: AdaptivePast) -> float:
    """Return how much longer the next burst of a series is waited for."""
    if past.burst_s is None or past.taken_s is None:
        return 0.0
    return past.burst_s + PATIENCE * past.pause_s - past.taken_s


def _note_burst(past: AdaptivePast, now_s: float) -> AdaptivePast:
    """Note a burst that is there now, and the pause before it if it was seen to be over."""
    pause_s = None if past.burst_s is None else now_s - past.burst_s
    if pause_s is None or not 0 <= pause_s <= MOST_PAUSE_S:
        return replace(past, burst_s=now_s, pause_s=0.0)
    was_over = past.taken_s is not None and past.burst_s is not None and past.taken_s > past.burst_s
    return replace(past, burst_s=now_s, pause_s=max(past.pause_s, pause_s) if was_over else past.pause_s)
