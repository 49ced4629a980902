"""Rules 3 and 4 of the adaptive law: a full scan begins when what it is expected to gain is worth what it costs. Pure.

What it gains is the memory that will have merged, times the seconds since it could have: KiB times seconds. What share
of the backlog merges, and lasts, is learned from the full scans before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import inf, sqrt
from typing import NamedTuple

from virtksm.model.snapshot import IMAGE, Snapshot
from virtksm.policy.adaptive.changes import (
    CHANGED,
    OF_NONE,
    REWRITTEN,
    UNSEEN,
    add,
    changing,
    lone_share,
    total_kib,
    unseen_of_kib,
)
from virtksm.policy.adaptive.engage import Need
from virtksm.policy.adaptive.growth import Growth, judge_growth, seconds_coming
from virtksm.policy.adaptive.state import AdaptiveState, Backlog, Learned, Ratio
from virtksm.values import EMPTY, replace

NEGLIGIBLE = 256
"""What is so many times less than the memory is no backlog yet (chosen)."""
MIN_WAIT_S = 0.25
"""No pass is asked for sooner (chosen: coalesce_ms by default)."""
PRICES: Mapping[Growth, float] = {Growth.COMING: 0.1, Growth.STEADY: 1.0, Growth.SETTLED: 10.0}
"""Seconds of ksmd's that saving all memory for a second is worth, by growth (chosen)."""
PRESSING = 9.0
"""Waiting costs so much more, in addition, with no memory available (chosen)."""
SETTLED_WAIT_S = 4.0
"""A settled backlog's wait on average (chosen)."""
FIRST_MERGE_RATIO = 0.5
"""The merge ratio before any is learned (chosen)."""
FIRST_CHANGED_RATIO = 0.2
"""The same of changed memory (chosen)."""
MIN_MERGE_RATIO = 0.05
"""The least expected of a backlog that has twins elsewhere, so that it is scanned and learned from (chosen)."""
BOOKKEEPING = 1 / 64
"""The share of exited memory that KSM holds until it forgets that (kernel: an rmap_item a page)."""
MIN_SHARE = 1 / 1024
"""The least learned of any memory, so that it can rise again (chosen)."""
OLDER = 0.5
"""What a pair of full scans has taught counts so much as the next one's (chosen)."""
MAX_IMAGES = 32
"""So many images' merge ratios are kept, the newest (chosen)."""
CHECK_COST = 3.0
"""A check scan's cost, in full scans (chosen)."""
CHANGING_S = 300.0
"""No check scan begins while what it is expected to gain would double so soon (chosen)."""
LATEST_S, LATEST_COST = 4 * 3600.0, 1500.0
"""A full scan begins after so long at the latest, or so many full scans' cost: 0.2 % of a core (chosen)."""


def full_scan_cost_s(snapshot: Snapshot, state: AdaptiveState, memory_kib: int | None = None) -> float:
    """Return the ksmd-seconds that a full scan takes by estimate: as the last ones, for the memory there is now."""
    per_kib = state.learned.full_scan_cost_s_per_kib
    first = state.learned.cost_s_per_kib
    return (total_kib(snapshot, state) if memory_kib is None else memory_kib) * (first if per_kib is None else per_kib)


def seconds_to_wait(snapshot: Snapshot, state: AdaptiveState, need: Need) -> float | None:
    """Return how long the backlog has yet to wait for its full scan; None if none is worth it."""
    memory_kib = total_kib(snapshot, state) or unseen_of_kib(snapshot, state)
    if is_second_due(state, memory_kib):
        return 0.0
    backlog, growth = state.backlog, judge_growth(state, memory_kib)
    has_backlog = is_backlog(backlog.due_kib, memory_kib)
    more_kib_per_s = {key: kib_per_s for key, (kib_per_s, _) in changing(snapshot, state).items()}
    small_kib = memory_kib / NEGLIGIBLE - backlog.due_kib - backlog.changed_kib
    cost_s = full_scan_cost_s(snapshot, state, memory_kib)
    shares = expect(snapshot, state)
    ratio, _ = expect_of_backlog(shares, backlog)
    changed_gain_kib = shares.gain_kib(backlog.changed)
    more_gain_kib_per_s = shares.gain_kib(more_kib_per_s)
    # Of exited memory KSM counts as much as merged as it does of all.
    exited_ratio = max(1 - lone_share(snapshot, state), BOOKKEEPING)
    due_gain_kib = (backlog.due_kib - backlog.exited_kib) * ratio + backlog.exited_kib * exited_ratio
    waited_gain_kib_s = backlog.waited_kib_s * ratio + backlog.exited_kib_s * exited_ratio

    price = PRICES[growth]
    price += (PRICES[Growth.SETTLED] - price) * need.pressure
    price *= 1 + PRESSING * need.pressure
    worth_kib_s = memory_kib * cost_s / price
    if not has_backlog:
        told_kib_per_s = {key: kib_per_s for key, kib_per_s in more_kib_per_s.items() if key != UNSEEN}
        is_early = shares.gain_kib(told_kib_per_s) * CHANGING_S > changed_gain_kib
        worth_kib_s *= CHECK_COST * (PRICES[Growth.SETTLED] / PRICES[Growth.STEADY] if is_early else 1)
    elif growth is Growth.SETTLED:
        worth_kib_s = max(worth_kib_s, SETTLED_WAIT_S * (1 - need.pressure) * due_gain_kib)
    changed_gain_kib_s = backlog.changed_kib_s * changed_gain_kib / (backlog.changed_kib or 1.0)
    left_kib_s = max(worth_kib_s - waited_gain_kib_s - changed_gain_kib_s, 0.0)

    gain_kib = due_gain_kib + changed_gain_kib
    # gain_kib * t + more_gain_kib_per_s * t**2 / 2 = left_kib_s
    root = sqrt(gain_kib**2 + 2 * more_gain_kib_per_s * left_kib_s)
    wait_s = _divide(2 * left_kib_s, gain_kib + root)
    if small_kib > 0:
        wait_s = max(wait_s, _divide(small_kib, sum(more_kib_per_s.values())))
    if growth is Growth.COMING and has_backlog:
        wait_s = min(wait_s, max(seconds_coming(state, memory_kib), MIN_WAIT_S))
    if is_backlog(backlog.settling_kib, memory_kib) and not has_backlog:  # a check scan would scan it too early
        wait_s = inf
    latest_s = max(state.learned.ended_s + max(LATEST_S, LATEST_COST * cost_s) - snapshot.taken_s, 0.0)
    return min(wait_s, latest_s) if memory_kib else None


def _divide(amount: float, per_s: float) -> float:
    """Return how long an amount takes; for ever where nothing comes."""
    return amount / per_s if per_s else inf if amount else 0.0


def is_backlog(kib: float, memory_kib: float) -> bool:
    """Tell whether so much is a backlog, beside so much memory."""
    return kib * NEGLIGIBLE > memory_kib


def is_second_due(state: AdaptiveState, memory_kib: int) -> bool:
    """Tell whether a pair's second full scan is needed. Nothing defers it: the savings wait for it."""
    scans, backlog = state.scans, state.backlog
    return scans.pair_left > 0 and (scans.is_check or is_backlog(backlog.scanned_once_kib, memory_kib))


class Shares(NamedTuple):
    """What share of memory is expected to merge and to last: by key, as learned, and the image of each guest.

    The key of new memory is its process's, that of changed memory begins with CHANGED: a guest that rewrites what
    merges pays for itself. New memory of one of which nothing is known goes by its image. `lasting` is the share of all
    that is saved which was not rewritten soon, `saving` the share of merged memory that is saved. `least` is expected
    of any backlog: nothing where one process has all memory, as twins are in another's.
    """

    learned: Learned
    images: Mapping[str, str]
    lasting: float
    saving: float
    least: float

    def known(self, key: str) -> Ratio | None:
        """Return what was learned of a key's memory, else of its image's."""
        return ratio_of(self.learned, key if key in self.learned.ratios else self.images.get(key, ""))

    def of(self, key: str) -> Ratio:
        """Return what is expected of a key's memory.

        Of merged pages that were written to, as much merges as saves.
        """
        if (known := self.known(key)) is not None:
            return known
        if not key.startswith(CHANGED):
            return Ratio(FIRST_MERGE_RATIO, 0.0)
        share, merging = FIRST_CHANGED_RATIO * self.lasting, self.saving if key == REWRITTEN else FIRST_CHANGED_RATIO
        return Ratio(share, 0.0, lost=max(merging - share, 0.0))

    def merging_kib(self, kib_by_key: Mapping[str, float]) -> float:
        """Return how much of this memory is expected to merge, lasting or not."""
        expected = ((kib, self.of(key)) for key, kib in kib_by_key.items())
        return sum(kib * (one.share + one.lost) for kib, one in expected)

    def gain_kib(self, kib_by_key: Mapping[str, float]) -> float:
        """Return how much of this memory is expected to merge and to last."""
        return sum(kib * self.of(key).share for key, kib in kib_by_key.items() if kib)

    def held_kib(self, kib_by_key: Mapping[str, float]) -> float:
        """Return how much of this memory has merged and lasted, as far as it was learned."""
        known = ((self.known(key), kib) for key, kib in kib_by_key.items())
        return sum(kib * one.share for one, kib in known if one is not None and kib > 0)

    def ratio(self, kib_by_key: Mapping[str, float], of_none: str = "") -> float:
        """Return what share of it that is; where there is none, that of the key `of_none`."""
        kib = sum(kib_by_key.values())
        return self.gain_kib(kib_by_key) / kib if kib else self.of(of_none).share


def expect(snapshot: Snapshot, state: AdaptiveState) -> Shares:
    """Return what is expected now."""
    images = {guest.key: guest.image for guest in snapshot.guests if guest.can_merge and guest.image is not None}
    learned = state.learned
    lasting = 1 - learned.rewritten_kib / max(learned.saved_kib, learned.rewritten_kib, 1)
    merging, held_kib = snapshot.ksm.merging_pages, state.guests_kib.values()
    apart = 1 - max(held_kib, default=0) / max(sum(held_kib), 1)
    saving = (snapshot.ksm.pages_sharing or 0) / merging if merging else 1.0
    return Shares(learned, images, lasting, saving, least=MIN_MERGE_RATIO * min(2 * apart, 1.0))


def expect_of_backlog(shares: Shares, backlog: Backlog) -> tuple[float, str]:
    """Return the share of the new backlog that is expected to merge and to last, and what most of it goes by."""
    parts = add(backlog.new, backlog.scanned_once)
    most = max(parts, key=lambda key: parts[key], default="")
    source = "as is assumed at first"
    if most in shares.learned.ratios:
        source = "as its last backlogs did"
    elif shares.images.get(most) in shares.learned.ratios:
        source = "as earlier guests of the image did"
    return max(shares.ratio(parts), shares.least), source


def learn(snapshot: Snapshot, state: AdaptiveState, pair: Mapping[str, float], merged_kib: int) -> Learned:
    """Count a pair of full scans that has ended; whether what it has merged lasts is seen later.

    It tells of an image where more than one guest of it runs: the first has no twins.
    """
    shares, pair = expect(snapshot, state), {key: kib for key, kib in pair.items() if kib}
    running, of_images = Counter(shares.images.values()), dict[str, float]()
    for key, kib in pair.items():
        if running[image := shares.images.get(key, "")] > 1:
            of_images[image] = of_images.get(image, 0.0) + kib
    scanned = {**pair, **of_images}
    ratios = {key: shares.of(key) for key in shares.learned.ratios}
    newest = {
        key: ratios.get(key)
        or replace(shares.of(key), kib=state.guests_kib.get(key.removeprefix(CHANGED), 0) / NEGLIGIBLE)
        for key in scanned
    }
    older = {key: one for key, one in ratios.items() if key not in newest}
    known = {*state.guests_kib, *OF_NONE, *[key for key in older if key.startswith(IMAGE)][-MAX_IMAGES:]}
    return replace(
        state.learned,
        ratios={key: one for key, one in older.items() if key.removeprefix(CHANGED) in known} | newest,
        pair=scanned,
        expected_kib=sum(kib * newest[key].share for key, kib in pair.items()),
        lost_kib=sum(kib * newest[key].lost for key, kib in pair.items()),
        lost_part=None,
        merged_kib=min(merged_kib, int(sum(pair.values()))),
        saved_kib=snapshot.ksm.saved_kib or 0,
        rewritten=EMPTY,
        ended_s=snapshot.taken_s,
    )


def learn_lost(snapshot: Snapshot, learned: Learned) -> Learned:
    """Count what is lost of what the last pair of full scans has saved, as the first full scan after it has found.

    What was rewritten tells whose it was. That are mappings, which had saved less; no more of any is lost than the pair
    was for. What has merged beyond that is of the memory that was not rewritten.
    """
    if learned.lost_part is not None:  # by now what was rewritten has merged again
        return learned
    pair = {key: kib for key, kib in learned.pair.items() if key in learned.ratios and not key.startswith(IMAGE)}
    part = min(max(learned.saved_kib - (snapshot.ksm.saved_kib or 0), 0) / (learned.rewritten_kib or inf), 1.0)
    lost_kib = expected_kib = 0.0
    for key, kib in pair.items():
        rewritten_kib = _rewritten_kib(learned, key)
        lost_kib += min(rewritten_kib * part, kib) if key.startswith(CHANGED) or CHANGED + key not in pair else 0.0
        expected_kib += learned.ratios[key].share * max(kib - rewritten_kib, 0.0)
    return replace(learned, lost_kib=lost_kib, lost_part=part, expected_kib=expected_kib)


def _rewritten_kib(learned: Learned, key: str) -> float:
    return learned.rewritten.get(CHANGED + key.removeprefix(CHANGED), 0.0)


def ratio_of(learned: Learned, key: str) -> Ratio | None:
    """Return what has merged and lasted of a key's memory, the last pair of full scans included; None if none is known.

    What has merged of a pair nobody tells by guest. As much of each as before is expected to be lost, until it is known
    what is; the rest is shared out as it was expected to last. What was rewritten is charged to whose it was; where
    that is unknown, to all that had changed until it is known what is lost, and to new memory where none had been
    rewritten before.
    """
    before, kib = learned.ratios.get(key), learned.pair.get(key)
    if before is None or not kib:
        return before
    part, rewritten = learned.lost_part, _rewritten_kib(learned, key) / kib
    lost = before.lost * min(learned.merged_kib / (learned.lost_kib or inf), 1.0) if part is None else rewritten * part
    lasts = max(learned.merged_kib - learned.lost_kib, 0.0) / (learned.expected_kib or inf)
    lasting = before.share * lasts * (1.0 if part is None else max(1 - rewritten, 0.0))
    merged = min(lost + lasting, 1.0)
    is_unknown = (key.startswith(CHANGED) and part is None) or REWRITTEN not in learned.pair
    unknown_kib = _rewritten_kib(learned, REWRITTEN) if is_unknown and key != REWRITTEN else 0.0
    lasted = merged * (1 - min(unknown_kib / (learned.merged_kib or inf), 1.0))
    lasted, weight = max(lasted - (rewritten if part is None else lost), 0.0), kib / (kib + before.kib)
    share = before.share + (lasted - before.share) * weight
    lost = before.lost + (merged - lasted - before.lost) * weight
    return Ratio(share=max(share, MIN_SHARE), kib=(kib + before.kib) * OLDER, lost=lost)
