"""Rule 6 of the adaptive law: a full scan begins when what it is expected to gain is worth what it costs. Pure.

What it gains is the memory that will have merged, times the seconds since it could have: KiB times seconds. What share
of the backlog merges, and lasts, is learned from the full scans before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf, sqrt
from typing import NamedTuple

from virtksm.model.snapshot import Snapshot
from virtksm.policy.adaptive.changes import REWRITTEN, UNSEEN, changing, total_kib, unseen_of_kib
from virtksm.policy.adaptive.engage import Need
from virtksm.policy.adaptive.growth import Growth, judge_growth, seconds_to_end
from virtksm.policy.adaptive.state import AdaptiveState, Learned
from virtksm.values import replace

NEGLIGIBLE = 256
"""Less than this fraction of the memory is no backlog yet (chosen)."""
MIN_WAIT_S = 0.25
"""No pass is asked for sooner (as coalesce_ms by default)."""
PRICES: Mapping[Growth, float] = {
    Growth.BURST: 0.1,
    Growth.SERIES: 0.1,
    Growth.STEADY: 1.0,
    Growth.SETTLED: 10.0,
}
"""What saving the whole memory for a second is worth, in ksmd-seconds: little in a burst, which one full scan covers
(chosen)."""
PRESSING = 9.0
"""With no memory available, waiting costs so many times more, in addition (chosen)."""
SETTLED_WAIT_S = 4.0
"""How long a settled backlog waits on average: guests seldom start alone (chosen)."""
FIRST_MERGE_RATIO = 0.5
"""The merge ratio that is assumed before any is learned (chosen)."""
MAX_IMAGES = 32
"""Images whose merge ratio is kept, the last that taught it (chosen)."""
MIN_MERGE_RATIO = 0.05
"""The least merge ratio expected: else nothing would be scanned that could teach better (chosen)."""
NEWEST_MERGE_RATIO = 0.5
"""Weight of the last pair of full scans in the average (chosen)."""
CHECK_COST = 3.0
"""A check scan costs so many full scans: smart_scan visits old pages in few (chosen)."""
CHANGING_S = 300.0
"""What would double in so long goes on changing: a check scan would come too early (chosen)."""
LATEST_S, LATEST_COST = 4 * 3600.0, 1500.0
"""A check scan begins after so long at the latest, or so many times a full scan's cost: 0.2 % of a core (chosen)."""
MAX_FALL = 8
"""What one vain pair of full scans divides the merge ratio of changed memory by, at most; and how many times less than
of all memory is expected of a guest's, at most (chosen)."""


def full_scan_cost_s(snapshot: Snapshot, state: AdaptiveState, memory_kib: int | None = None) -> float:
    """Return the ksmd-seconds that a full scan takes by estimate: as the last ones, for the memory there is now."""
    per_kib = state.learned.full_scan_cost_s_per_kib
    first = state.learned.page_cost_s / snapshot.ksm.page_kib
    return (total_kib(snapshot, state) if memory_kib is None else memory_kib) * (first if per_kib is None else per_kib)


def seconds_to_wait(snapshot: Snapshot, state: AdaptiveState, need: Need) -> float | None:
    """Return how long the backlog has yet to wait for its full scan; None if none is worth it."""
    memory_kib = total_kib(snapshot, state) or unseen_of_kib(snapshot, state)
    if is_second_due(state, memory_kib):
        return 0.0
    backlog, growth, has_backlog = state.backlog, judge_growth(state), is_due(state, memory_kib)
    more_kib_per_s = {key: kib_per_s for key, (kib_per_s, _) in changing(snapshot, state).items()}
    small_kib = memory_kib / NEGLIGIBLE - backlog.due_kib - backlog.changed_kib
    cost_s = full_scan_cost_s(snapshot, state, memory_kib)
    ratio = expect(snapshot, state, state.arrivals.started).ratio
    changed_gain_kib = expected_kib(state.learned, backlog.changed)
    more_gain_kib_per_s = expected_kib(state.learned, more_kib_per_s)

    price = PRICES[growth]
    price += (PRICES[Growth.SETTLED] - price) * need.pressure
    price *= 1 + PRESSING * need.pressure
    worth_kib_s = memory_kib * cost_s / price
    if not has_backlog:
        is_early = more_gain_kib_per_s * CHANGING_S > changed_gain_kib
        worth_kib_s *= CHECK_COST * (PRICES[Growth.SETTLED] / PRICES[Growth.STEADY] if is_early else 1)
    elif growth is Growth.SETTLED:
        worth_kib_s = max(worth_kib_s, SETTLED_WAIT_S * (1 - need.pressure) * backlog.due_kib * ratio)
    changed_gain_kib_s = backlog.changed_kib_s * changed_gain_kib / (backlog.changed_kib or 1.0)
    left_kib_s = max(worth_kib_s - backlog.waited_kib_s * ratio - changed_gain_kib_s, 0.0)

    gain_kib = backlog.due_kib * ratio + changed_gain_kib
    # gain_kib * t + more_gain_kib_per_s * t**2 / 2 = left_kib_s
    root = sqrt(gain_kib**2 + 2 * more_gain_kib_per_s * left_kib_s)
    wait_s = _divide(2 * left_kib_s, gain_kib + root)
    if small_kib > 0:
        wait_s = max(wait_s, _divide(small_kib, sum(more_kib_per_s.values())))
    if not has_backlog:  # what settles comes first: a check scan would scan it too early
        latest_s = max(state.learned.ended_s + max(LATEST_S, LATEST_COST * cost_s) - snapshot.taken_s, 0.0)
        return max(min(wait_s, latest_s), MIN_WAIT_S if backlog.settling else 0.0) if memory_kib else None
    ends_s = seconds_to_end(growth, state, memory_kib)
    return min(wait_s, max(ends_s, MIN_WAIT_S)) if ends_s > 0 else wait_s


def _divide(amount: float, per_s: float) -> float:
    """Return how long an amount takes; for ever where nothing comes."""
    return amount / per_s if per_s else inf if amount else 0.0


def is_due(state: AdaptiveState, memory_kib: int) -> bool:
    """Tell whether there is a backlog apart from what may have changed in place."""
    return state.backlog.due_kib * NEGLIGIBLE > memory_kib


def is_second_due(state: AdaptiveState, memory_kib: int) -> bool:
    """Tell whether a pair's second full scan is needed. Nothing defers it: the savings wait for it."""
    return state.scans.pair_left > 0 and state.backlog.scanned_once_kib * NEGLIGIBLE > memory_kib


class Expectation(NamedTuple):
    """The share of the backlog that is expected to merge and to last, and `source`, what most of it goes by."""

    ratio: float
    source: str


def expect(snapshot: Snapshot, state: AdaptiveState, started: Collection[str]) -> Expectation:
    """Return what is expected of the backlog, after these guests have `started`."""
    learned, by_image = state.learned, kib_by_image(snapshot, state, started)
    rest_kib = max(state.backlog.due_kib - sum(by_image.values()), 0)
    parts = {"": rest_kib or int(not by_image), **by_image}
    gain_kib = sum(kib * merge_ratio(learned, image) for image, kib in parts.items())
    ratio = max(_divide(gain_kib, sum(parts.values())), MIN_MERGE_RATIO)
    most = max(parts, key=lambda image: parts[image])
    if most not in learned.merge_ratios and not (learned.scanned_kib and most in ("", learned.image)):
        return Expectation(ratio, "as is assumed at first")
    return Expectation(ratio, "as earlier guests of the image did" if most else "as the last backlogs did")


def kib_by_image(snapshot: Snapshot, state: AdaptiveState, keys: Collection[str]) -> Mapping[str, int]:
    """Return how much memory these guests have, by image; that of strangers by a name that none has."""
    found: dict[str, int] = {}
    wanted = frozenset(keys)
    for guest in snapshot.guests if wanted else ():
        if guest.key in wanted:
            image = guest.image or "strangers"
            found[image] = found.get(image, 0) + state.guests_kib.get(guest.key, 0)
    return found


def learn(snapshot: Snapshot, state: AdaptiveState, scanned_kib: int, merged_kib: int, *, is_check: bool) -> Learned:
    """Count a pair of full scans that has ended; whether what it has merged lasts is seen later."""
    learned = state.learned
    ratios = {image: ratio for image, ratio in learned.merge_ratios.items() if image not in ("", learned.image)}
    ratios |= {image: merge_ratio(learned, image) for image in (learned.image, "")}
    known = {*state.guests_kib, REWRITTEN, UNSEEN}
    changed_kibs = {key: kib for key, kib in learned.changed_kibs.items() if key in known}
    for key in learned.changed.keys() & known:
        changed_kibs[key] = (changed_kibs.get(key, 0.0) + learned.changed[key]) / 2
    return replace(
        learned,
        merge_ratios=dict(list(ratios.items())[-MAX_IMAGES - 1 :]),
        image="" if is_check else _image_of(snapshot, state, scanned_kib),
        changed_ratio=changed_ratio(learned),
        changed_kib=(learned.changed_kib + learned.scanned_kib) // 2 if learned.was_check else learned.changed_kib,
        changed_ratios={key: ratio for key, ratio in changed_ratios(learned).items() if key in known},
        changed_kibs=changed_kibs,
        changed=state.scans.changed if is_check else {},
        ended_s=snapshot.taken_s,
        scanned_kib=scanned_kib,
        merged_kib=min(merged_kib, scanned_kib),
        held_kib=snapshot.ksm.saved_kib or 0,
        was_check=is_check,
        rewritten_kib=0,
    )


def _image_of(snapshot: Snapshot, state: AdaptiveState, scanned_kib: int) -> str:
    """Return the image of which a pair of full scans tells: most of what it was for is of guests of it that started.

    Others of that image ran before, or the first of these had no twins.
    """
    started = frozenset(state.scans.started)
    by_image = kib_by_image(snapshot, state, started)
    image = max(by_image, key=lambda one: by_image[one], default="")
    older = (guest.image for guest in snapshot.guests if guest.can_merge and guest.key not in started)
    return image if image in older and 2 * by_image[image] > scanned_kib else ""


def merge_ratio(learned: Learned, image: str = "") -> float:
    """Return the share that has merged and lasted, of all or of an image, the last pair of full scans included.

    An image's is what has merged: nobody knows who rewrites, and guests that start are not to wait for others that do.
    """
    before = learned.merge_ratios.get(image, FIRST_MERGE_RATIO)
    if learned.was_check or not learned.scanned_kib or image not in ("", learned.image):
        return before
    share = learned.merged_kib / learned.scanned_kib if image else _lasting(learned)
    return before + (share - before) * NEWEST_MERGE_RATIO


def changed_ratio(learned: Learned) -> float:
    """Return the same of what may have changed in place, each pair weighted by how much that was.

    After one for new memory, too, rewriting tells what share of all that is merged does not last.
    """
    before = learned.changed_ratio
    if learned.was_check and learned.scanned_kib:
        weight = learned.scanned_kib / (learned.scanned_kib + learned.changed_kib)
        ratio = before + (_lasting(learned) - before) * weight
    else:
        ratio = before * (1 - learned.rewritten_kib / max(learned.held_kib, learned.rewritten_kib, 1))
    return max(ratio, before / MAX_FALL)


def changed_ratios(learned: Learned) -> Mapping[str, float]:
    """Return the same by changes.py's keys, of those that had changed: one that rewrites what merges pays for itself.

    What has merged of a pair nobody tells by guest: it is shared out as it was expected of each.
    """
    of_all, ratios = changed_ratio(learned), dict(learned.changed_ratios)
    if not (learned.was_check and learned.scanned_kib):
        times = of_all / (learned.changed_ratio or 1.0)
        return {key: ratio * times for key, ratio in ratios.items()}
    before = {key: ratios.get(key, learned.changed_ratio) for key in learned.changed}
    expected = sum(before[key] * kib for key, kib in learned.changed.items())
    times = _lasting(learned) * learned.scanned_kib / expected if expected else 1.0
    for key, kib in learned.changed.items():
        weight = kib / (kib + learned.changed_kibs.get(key, 0.0))
        ratio = before[key] + (min(before[key] * times, 1.0) - before[key]) * weight
        ratios[key] = max(ratio, of_all / MAX_FALL)
    return ratios


def expected_kib(learned: Learned, changed: Mapping[str, float]) -> float:
    """Return how much of what has changed, by key, is expected to merge and to last."""
    of_all, ratios = changed_ratio(learned), changed_ratios(learned)
    return sum(kib * ratios.get(key, of_all) for key, kib in changed.items())


def _lasting(learned: Learned) -> float:
    """Return the share of what the last pair was for that has merged, and has not been written to too soon."""
    return max(learned.merged_kib - learned.rewritten_kib, 0) / learned.scanned_kib
