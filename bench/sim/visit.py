"""One visit: what ksmd does with pages that are alike (scan_get_next_rmap_item and cmp_and_merge_page in mm/ksm.c).

`foresee` says what will happen, and to how many of the pages the same; `carry_out` does it. Between the two the caller
finds out how many pages there is time for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bench.sim.costs import KsmdCosts
from bench.sim.memory import Kind, Region
from bench.sim.pages import PageState, grow_older
from bench.sim.trees import Trees, Waiting
from virtksm.values import replace


class Act(Enum):
    """What a visit comes to."""

    SKIP = "skip"
    MERGED = "merged"
    FIRST = "first"
    CHANGED = "changed"
    INSERT = "insert"
    JOIN = "join"
    PAIR = "pair"


MERGES = frozenset({Act.JOIN, Act.PAIR})


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """The same act for pages up to `high` - 1, which leaves them in `state`; with `twins` for a pair."""

    act: Act
    high: int
    state: PageState
    twins: Waiting | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What differs between kernels: smart_scan (6.7), and whether an unsettled page searches the stable tree, too.

    Since 6.11 a page whose checksum is new is left alone; before, it was merged at once if merged twins existed.
    """

    smart_scan: bool = True
    checksum_first: bool = True


def foresee(region: Region, low: int, now_s: float, trees: Trees, rules: Rules) -> Visit:
    """Tell what the visit of page `low`, and of as many after it as fare the same, comes to."""
    _, high, state = region.states.run_at(low)
    high = min(high, region.filled(now_s))
    if state.is_merged:
        return Visit(act=Act.MERGED, high=high, state=state)
    if rules.smart_scan:
        state, skipped = grow_older(state)
        if skipped:
            return Visit(act=Act.SKIP, high=high, state=state.out_of_trees())
    settled = state.checksum_of == state.version
    if not settled and rules.checksum_first:
        return _take_checksum(state, high)
    is_merged, high = _search_stable(region, low, high, trees, state.version)
    if is_merged:
        merged = replace(state.out_of_trees(), merged_as=state.version)
        return Visit(act=Act.JOIN, high=high, state=merged)
    if not settled:
        return _take_checksum(state, high)
    return _search_unstable(region, low, high, now_s, trees, state.out_of_trees())


def _take_checksum(state: PageState, high: int) -> Visit:
    taken = replace(state.out_of_trees(), checksum_of=state.version)
    return Visit(act=Act.CHANGED if state.known else Act.FIRST, high=high, state=taken)


def _search_stable(region: Region, low: int, high: int, trees: Trees, version: int) -> tuple[bool, int]:
    """Tell whether the content of page `low` is merged already, and up to which page that is as true."""
    key = region.key(version)
    if key is None:
        return False, high
    index, _, _ = region.indexes(low, high)
    _, end, pages = trees.content(key).live.run_at(index)
    return pages > 0, high if region.kind is Kind.ZERO else min(high, end)


def _search_unstable(region: Region, low: int, high: int, now_s: float, trees: Trees, state: PageState) -> Visit:
    inserted = replace(state, inserted_in=trees.full_scan)
    merged = replace(state, merged_as=state.version)
    key = region.key(state.version)
    if key is None:
        return Visit(act=Act.INSERT, high=high, state=inserted)
    index, _, _ = region.indexes(low, high)
    shift = low - index
    _, end, twins = trees.content(key).waiting.run_at(index)
    # Of many pages of one content the first is inserted, the next makes a pair, and all further ones join.
    end = low + 1 if region.kind is Kind.ZERO else min(high, end)
    if twins is None or twins.full_scan != trees.full_scan or twins.region.guest.has_ended:
        return Visit(act=Act.INSERT, high=end, state=inserted)
    twins.region.catch_up(trees, now_s)
    _, twins_end, twin = twins.region.states.run_at(index + twins.shift)
    end = min(end, twins_end - twins.shift + shift)
    if twin.inserted_in != trees.full_scan or twin.version != state.version:
        return Visit(act=Act.INSERT, high=end, state=inserted)
    return Visit(act=Act.PAIR, high=end, state=merged, twins=twins)


def carry_out(visit: Visit, region: Region, low: int, high: int, trees: Trees) -> None:
    """Do it with pages low..high-1, where high is at most the visit's."""
    if visit.act is Act.MERGED:
        return
    pages = high - low
    for start, end, old in list(region.states.within(low, high)):
        forget(trees, region, start, end, old)
    trees.known += pages
    region.states.assign(low, high, visit.state)
    version = visit.state.version
    if visit.act is Act.INSERT:
        trees.inserted += pages
        trees.in_tree += pages
        key = region.key(version)
        if key is not None:
            first, end, _ = region.indexes(low, high)
            waiting = Waiting(region=region, shift=low - first, full_scan=trees.full_scan)
            trees.content(key).waiting.assign(first, end, waiting)
    elif visit.act in MERGES:
        region.count(trees, low, high, version, stable=1, live=1)
        if visit.twins is not None:
            _merge_twins(visit.twins, region, low, high, trees)


def _merge_twins(twins: Waiting, region: Region, low: int, high: int, trees: Trees) -> None:
    first, end, _ = region.indexes(low, high)
    twin_low, twin_high = first + twins.shift, end + twins.shift
    for start, stop, old in list(twins.region.states.within(twin_low, twin_high)):
        trees.inserted -= stop - start
        trees.in_tree -= stop - start
        merged = replace(old, inserted_in=None, merged_as=old.version)
        twins.region.states.assign(start, stop, merged)
        twins.region.count(trees, start, stop, old.version, stable=1, live=1)


def forget(trees: Trees, region: Region, low: int, high: int, state: PageState) -> None:
    """Take pages out of both trees and out of the counters (remove_rmap_item_from_tree, and the item itself)."""
    if not state.known:
        return
    trees.known -= high - low
    if state.inserted_in is not None:
        trees.inserted -= high - low
    if state.merged_as is not None:
        region.count(trees, low, high, state.merged_as, stable=-1)


def cost_s(visit: Visit, costs: KsmdCosts, trees: Trees) -> float:
    """Tell the CPU seconds that the visit costs a page."""
    match visit.act:
        case Act.SKIP:
            return costs.skipped_s
        case Act.MERGED:
            return costs.merged_s
        case Act.FIRST:
            return costs.first_s
        case Act.CHANGED:
            return costs.changed_s
    stable_s = costs.search_stable_s(trees.stable.copies)
    if visit.act is Act.JOIN:
        return costs.join_s + stable_s
    insert_s = costs.settled_s + stable_s + costs.search_unstable_s(trees.in_tree)
    return insert_s + (costs.pair_s + stable_s if visit.act is Act.PAIR else 0.0)
