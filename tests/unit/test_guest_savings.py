"""Shares of what KSM saves: twins save alike, sums are the kernel's counters, what it does not count is None."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.guests.process import ProcessKsm
from virtksm.guests.savings import ITEM_BYTES, Account, find_cost_bytes, find_left_over, find_profit_bytes, settle
from virtksm.model.snapshot import Guest, KsmState
from virtksm.values import replace

PAGE = 4096


def host(shared: int, sharing: int, zero: int | None = 0) -> KsmState:
    counters = {"pages_shared": shared, "pages_sharing": sharing, "ksm_zero_pages": zero}
    return KsmState.counted(counters.get, 4)


def process(merging: int, *, zero: int = 0, items: int = 0) -> ProcessKsm:
    return ProcessKsm(rmap_items=items, zero_pages=zero, merging_pages=merging)


def guest(rss_kib: int | None = None, freed_kib: int = 0) -> Guest:
    return Guest(uuid="u", name="g", rss_kib=rss_kib, freed_kib=freed_kib)


def test_twins_save_half_of_their_common_pages_each() -> None:
    twin = settle(process(1000, items=1500), guest(8192), host(1000, 1000))
    assert twin == Account(
        merged_bytes=1000 * PAGE,
        zero_bytes=0,
        freed_bytes=0,
        unmerged_bytes=8192 * 1024 - 1000 * PAGE,
        saved_bytes=500 * PAGE,
        cost_bytes=1500 * ITEM_BYTES,
        profit_bytes=500 * PAGE - 1500 * ITEM_BYTES,
    )


def test_a_zero_page_saves_a_whole_page_and_is_not_resident() -> None:
    account = settle(process(10, zero=100, items=110), guest(4096), host(5, 5, 100))
    assert account is not None
    assert account.saved_bytes == 105 * PAGE
    assert (account.merged_bytes, account.zero_bytes) == (110 * PAGE, 100 * PAGE)
    assert account.unmerged_bytes == 4096 * 1024 - 10 * PAGE


def test_what_huge_pages_gave_back_is_saved_on_its_guest_and_no_part_of_the_kernels_profit() -> None:
    merged = replace(host(5, 5, 100), freed_kib=400)
    account = settle(process(10, zero=100, items=110), guest(4096, freed_kib=400), merged)
    assert account is not None
    assert (account.freed_bytes, account.saved_bytes) == (100 * PAGE, 205 * PAGE)
    assert account.merged_bytes == 110 * PAGE, "unmerging gives none of it back"
    assert find_cost_bytes(merged, 105 * PAGE - 110 * ITEM_BYTES) == 110 * ITEM_BYTES
    assert find_profit_bytes(merged, 105 * PAGE - 110 * ITEM_BYTES) == account.profit_bytes
    assert find_profit_bytes(merged, None) is None
    left = find_left_over([(process(10, zero=100, items=110), account)], merged, 105 * PAGE - 110 * ITEM_BYTES)
    assert left is not None
    assert (left.saved_bytes, left.cost_bytes) == (0, 0)


def test_bookkeeping_without_a_merge_is_a_loss_and_an_rss_read_before_more_merged_is_not_negative() -> None:
    account = settle(process(0, items=1000), guest(8192), host(0, 0))
    assert account is not None
    assert (account.saved_bytes, account.profit_bytes) == (0, -1000 * ITEM_BYTES)
    account = settle(process(1000), guest(100), host(500, 500))
    assert account is not None
    assert account.unmerged_bytes == 0


@pytest.mark.parametrize(
    ("counted", "known"),
    [
        (ProcessKsm(), None),  # before Linux 5.19
        (ProcessKsm(rmap_items=100), None),
        (ProcessKsm(merging_pages=100), (50 * PAGE, None, None)),  # 5.19
        (ProcessKsm(merging_pages=100, rmap_items=64), (50 * PAGE, PAGE, 49 * PAGE)),  # 6.1
    ],
)
def test_what_a_kernel_does_not_count_is_not_known(
    counted: ProcessKsm, known: tuple[int, int | None, int | None] | None
) -> None:
    account = settle(counted, guest(), host(50, 50, None))
    assert (account and (account.saved_bytes, account.cost_bytes, account.profit_bytes)) == known
    assert account is None or account.unmerged_bytes is None


def test_what_guests_leave_is_others() -> None:
    merged = host(100, 300, 50)
    ksm = process(200, zero=20, items=500)
    account = settle(ksm, guest(), merged)
    assert account is not None
    left = find_left_over([(ksm, account)], merged, 350 * PAGE - 800 * ITEM_BYTES)
    assert left is not None
    assert (left.merging_pages, left.zero_pages) == (200, 30)
    assert left.saved_bytes == (150 + 30) * PAGE
    assert left.cost_bytes == 300 * ITEM_BYTES


def test_what_the_host_does_not_count_leaves_nothing_known() -> None:
    left = find_left_over([], host(100, 300, None), None)
    assert left is not None
    assert (left.merging_pages, left.zero_pages, left.cost_bytes) == (400, None, None)
    assert left.saved_bytes == 300 * PAGE
    assert find_cost_bytes(host(1, 1), None) is None
    unknown = replace(host(1, 1), pages_shared=None, pages_sharing=None)
    assert settle(process(10), guest(4096), unknown) is None
    assert find_left_over([], unknown, 0) is None
    assert find_cost_bytes(unknown, 0) is None


counts = st.integers(0, 10**7)


@given(st.lists(st.tuples(counts, counts, counts), max_size=30), st.floats(0, 1))
def test_the_shares_of_all_add_up_to_the_kernels_counters(processes: list[tuple[int, int, int]], part: float) -> None:
    merging = sum(one[0] for one in processes)
    merged = host(merging - int(merging * part), int(merging * part), sum(one[1] for one in processes))
    profit_bytes = (merged.saved_kib or 0) * 1024 - sum(one[2] for one in processes) * ITEM_BYTES
    settled = []
    for merging_pages, zero, items in processes:
        ksm = process(merging_pages, zero=zero, items=items)
        account = settle(ksm, guest(), merged)
        assert account is not None
        settled.append((ksm, account))
    left = find_left_over(settled, merged, profit_bytes)
    assert left is not None
    assert (left.merging_pages, left.zero_pages, left.cost_bytes) == (0, 0, 0)
    assert 0 <= left.saved_bytes <= len(processes)
