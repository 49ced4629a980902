"""What is merged and saved, and whether unmerging fits: in the page size of the host, and None where not offered."""

import pytest

from virtksm.model.snapshot import KsmState
from virtksm.values import replace

SOME = KsmState.counted({"pages_shared": 10, "pages_sharing": 90, "ksm_zero_pages": 5}.get, 4)


@pytest.mark.parametrize("page_kib", [4, 16, 64])
def test_zero_pages_are_saved_too_and_unmerging_takes_a_copy_for_every_place(page_kib: int) -> None:
    some = replace(SOME, page_kib=page_kib)
    assert (some.merging_pages, some.zero_kib) == (100, some.kib(5))
    assert (some.saved_kib, some.unmerge_kib) == (95 * page_kib, 105 * page_kib)
    uncounted = replace(some, ksm_zero_pages=None)
    assert (uncounted.saved_kib, uncounted.zero_kib, uncounted.unmerge_kib) == (90 * page_kib, None, 100 * page_kib)


def test_a_merged_page_serves_on_average_as_many_places_as_share_it_and_its_first() -> None:
    assert SOME.places_per_page == 10
    assert replace(SOME, pages_shared=0, pages_sharing=0).places_per_page is None
    assert replace(SOME, pages_sharing=None).places_per_page is None


def test_it_says_how_much_memory_is_missing() -> None:
    assert [SOME.missing_kib(available_kib) for available_kib in (0, 419, 420, 10_000)] == [420, 1, 0, 0]


@pytest.mark.parametrize("name", ["pages_shared", "pages_sharing"])
def test_what_is_not_offered_is_none_and_never_nothing(name: str) -> None:
    ksm = replace(SOME, **{name: None})
    assert ksm.merging_pages is ksm.saved_kib is ksm.unmerge_kib is ksm.missing_kib(0) is None
