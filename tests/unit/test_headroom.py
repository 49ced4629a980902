"""Room for more guest memory: its four rules, and what happens at their borders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.config.schema import Config
from virtksm.guests.headroom import MAX_RATIO, GuestNeed, Headroom, Host, find_headroom, find_node_rooms
from virtksm.model.snapshot import NodeMemory
from virtksm.values import replace

GIB = 1024 * 1024
EMPTY = Host(
    available_kib=20 * GIB, reserve_kib=4 * GIB, saved_kib=0, unmerging_kib=0, swap_free_kib=0, is_merging=True
)
MERGED = replace(EMPTY, saved_kib=4 * GIB, unmerging_kib=5 * GIB)
GROWN = GuestNeed(held_kib=8 * GIB, max_kib=8 * GIB)


def rooms(headroom: Headroom) -> tuple[int, int, int]:
    return headroom.room_kib.safe, headroom.room_kib.unmerged, headroom.room_kib.at_ratio


def test_without_guests_all_but_the_reserve_is_room() -> None:
    headroom = find_headroom([], EMPTY)
    assert rooms(headroom) == (16 * GIB, 16 * GIB, 16 * GIB)
    assert (headroom.merge_ratio, headroom.risk.missing_kib) == (0.0, 0)


def test_at_the_ratio_new_memory_takes_less_than_its_size() -> None:
    headroom = find_headroom([GROWN], MERGED)
    assert headroom.merge_ratio == 0.5
    assert rooms(headroom) == (11 * GIB, 16 * GIB, 32 * GIB)
    assert headroom.risk.needed_kib == 5 * GIB + 32 * GIB
    assert headroom.risk.missing_kib == 17 * GIB
    for swap_kib, after_kib in ((None, None), (0, 17 * GIB), (10 * GIB, 7 * GIB), (20 * GIB, 0)):
        beside = find_headroom([GROWN], replace(MERGED, swap_free_kib=swap_kib))
        assert (beside.risk.missing_kib, beside.risk.missing_after_swap_kib) == (17 * GIB, after_kib)


def test_ksm_that_is_off_merges_nothing_new() -> None:
    headroom = find_headroom([GROWN], replace(MERGED, is_merging=False))
    assert headroom.merge_ratio == 0.5, "what is merged stays so"
    assert rooms(headroom) == (11 * GIB, 16 * GIB, 16 * GIB)


@pytest.mark.parametrize(
    ("guest", "growth_kib"),
    [
        (GuestNeed(held_kib=2 * GIB, max_kib=8 * GIB), 6 * GIB),
        (GuestNeed(held_kib=9 * GIB, max_kib=8 * GIB), 0),
        (GuestNeed(held_kib=None, max_kib=8 * GIB), 8 * GIB),
        (GuestNeed(held_kib=2 * GIB, max_kib=None), 0),
        (GuestNeed(held_kib=None, max_kib=None), 0),
        (GuestNeed(held_kib=2 * GIB, max_kib=8 * GIB, freed_kib=3 * GIB), 6 * GIB),
        (GuestNeed(held_kib=7 * GIB, max_kib=8 * GIB, freed_kib=3 * GIB), 3 * GIB),
        (GuestNeed(held_kib=7 * GIB, max_kib=None, freed_kib=3 * GIB), 3 * GIB),
        (GuestNeed(held_kib=2 * GIB, max_kib=8 * GIB, swapped_kib=GIB), 6 * GIB),
        (GuestNeed(held_kib=2 * GIB, max_kib=None, swapped_kib=GIB), GIB),
    ],
)
def test_what_running_guests_may_still_take_is_no_room(guest: GuestNeed, growth_kib: int) -> None:
    headroom = find_headroom([guest], EMPTY)
    assert headroom.growth_kib == growth_kib
    assert rooms(headroom) == (16 * GIB - growth_kib,) * 3


def test_a_host_that_is_full_has_no_room_and_says_what_is_missing() -> None:
    headroom = find_headroom([replace(GROWN, max_kib=16 * GIB)], replace(MERGED, available_kib=3 * GIB))
    assert rooms(headroom) == (0, 0, 0)
    assert headroom.risk.missing_kib == 10 * GIB


def test_the_ratio_is_of_all_that_is_held_zero_pages_of_no_guest_and_freed_memory_included_and_never_more() -> None:
    host = replace(MERGED, saved_kib=24 * GIB, zero_kib=22 * GIB)
    assert find_headroom([GROWN], host).merge_ratio == 24 / (8 + 22)
    assert find_headroom([GROWN], replace(MERGED, saved_kib=100 * GIB)).merge_ratio == MAX_RATIO
    assert find_headroom([replace(GROWN, freed_kib=2 * GIB)], MERGED).merge_ratio == 4 / (8 + 2)
    assert find_headroom([replace(GROWN, held_kib=None)], MERGED).merge_ratio == 0.0


@pytest.mark.parametrize(
    ("available_gib", "safe_gib", "more", "room_gib"),
    [
        (30, 100, {}, 30 - 8 - 4 - 2),
        (30, 100, {"merged_kib": None}, 30 - 8 - 4 - 5),
        (30, 9, {}, 9),
        (13, 100, {}, 0),
        (30, 100, {"bound_to": ((0,), (1,))}, 30 - 8 - 2 - 1),
        (30, 100, {"bound_to": ((0,), (0,))}, 30 - 8 - 4 - 2),
        (30, 100, {"bound_to": ((1,),)}, 30 - 8),
    ],
)
def test_a_node_that_guests_are_bound_to_has_a_room_of_its_own_never_more_than_the_hosts(
    available_gib: int, safe_gib: int, more: dict[str, object], room_gib: int
) -> None:
    bound: dict[tuple[int, ...], NodeMemory] = {(0,): NodeMemory(40 * GIB, available_gib * GIB, nodes=(0,))}
    guest = replace(GuestNeed(held_kib=4 * GIB, max_kib=8 * GIB, merged_kib=2 * GIB, bound_to=((0,),)), **more)
    needs = [guest, GROWN]
    (room,) = find_node_rooms(needs, bound, Config(), unmerging_kib=5 * GIB, safe_kib=safe_gib * GIB)
    assert (room.nodes, room.available_kib, room.reserve_kib) == ((0,), available_gib * GIB, 8 * GIB)
    assert room.safe_kib == room_gib * GIB
    assert find_node_rooms(needs, {}, Config(), unmerging_kib=0, safe_kib=0) == []


amounts = st.integers(0, 2**40)
needs = st.builds(GuestNeed, held_kib=st.none() | amounts, max_kib=st.none() | amounts, swapped_kib=amounts)
hosts = st.builds(
    Host,
    available_kib=amounts,
    reserve_kib=amounts,
    saved_kib=amounts,
    unmerging_kib=amounts,
    swap_free_kib=st.none() | amounts,
    is_merging=st.booleans(),
)


@given(st.lists(needs, max_size=8), hosts)
def test_the_rooms_stand_in_order_and_the_safe_one_fits_whatever_happens(guests: list[GuestNeed], host: Host) -> None:
    headroom = find_headroom(guests, host)
    assert 0 <= headroom.room_kib.safe <= headroom.room_kib.unmerged
    assert headroom.room_kib.unmerged <= headroom.room_kib.at_ratio or host.available_kib < host.reserve_kib
    if headroom.room_kib.safe:
        taken_kib = host.unmerging_kib + headroom.growth_kib + headroom.room_kib.safe
        assert taken_kib <= host.available_kib - host.reserve_kib
    assert headroom.risk.missing_kib >= (headroom.risk.missing_after_swap_kib or 0)
