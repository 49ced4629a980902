"""What is merged, whether unmerging fits, and what keeps KSM from being certainly off."""

from __future__ import annotations

from dataclasses import replace

import pytest

from virtksm.model.decision import SwitchedOff
from virtksm.model.merged import Merged, find_doubts
from virtksm.model.snapshot import KsmState, Settings

NOTHING = Merged(pages_shared=0, pages_sharing=0, zero_pages=0, page_kib=4)
SOME = Merged(pages_shared=10, pages_sharing=90, zero_pages=5, page_kib=4)
OFF = SwitchedOff(since="2026-01-02T03:04:05Z")
PARKED_KSM = KsmState(settings=Settings(pages_to_scan=0, sleep_millisecs=10_000), run=1, advisor_mode="none")


def test_zero_pages_are_saved_too_and_unmerging_takes_a_copy_for_every_place() -> None:
    assert (SOME.saved_kib, SOME.needed_kib) == (95 * 4, 105 * 4)
    assert replace(SOME, zero_pages=None).needed_kib == 100 * 4
    assert replace(SOME, page_kib=64).needed_kib == 105 * 64
    assert not replace(NOTHING, zero_pages=1).is_nothing
    assert NOTHING.is_nothing


@pytest.mark.parametrize(("available_kib", "missing_kib"), [(0, 420), (419, 1), (420, 0), (10_000, 0)])
def test_it_says_how_much_memory_is_missing(available_kib: int, missing_kib: int) -> None:
    assert SOME.missing_kib(available_kib) == missing_kib
    assert SOME.as_dict(available_kib)["missing_kib"] == missing_kib


def doubts(
    *, off: SwitchedOff | None = OFF, ksm: KsmState = PARKED_KSM, merged: Merged = NOTHING, uncounted: bool = False
) -> str:
    return "\n".join(find_doubts(off, ksm, merged, has_uncounted_zero_pages=uncounted))


@pytest.mark.parametrize("run", [0, 1, 2])
def test_off_parked_and_nothing_merged_is_certain(run: int) -> None:
    assert doubts(ksm=replace(PARKED_KSM, run=run)) == ""


def test_each_doubt_has_its_remedy() -> None:
    scanning = replace(PARKED_KSM, settings=Settings(pages_to_scan=100, sleep_millisecs=20))
    assert "`virtksm off`" in doubts(off=None)
    assert "file: is damaged" in doubts(off=SwitchedOff(damage="file: is damaged"))
    assert "100 pages" in doubts(ksm=scanning)
    assert "advisor_mode" in doubts(ksm=replace(PARKED_KSM, advisor_mode="scan-time"))
    assert "90 pages share 10, 5 zero pages" in doubts(merged=SOME)
    assert "use_zero_pages" in doubts(uncounted=True)


def test_a_single_zero_page_is_a_doubt() -> None:
    assert "1 zero pages" in doubts(merged=replace(NOTHING, zero_pages=1))


@pytest.mark.parametrize("run", [0, 2])
def test_while_ksm_itself_is_off_its_settings_do_not_matter(run: int) -> None:
    idle = KsmState(settings=Settings(pages_to_scan=100, sleep_millisecs=20), run=run, advisor_mode="scan-time")
    assert doubts(ksm=idle) == ""


def test_what_is_not_known_is_no_proof() -> None:
    unknown = KsmState(settings=Settings(pages_to_scan=None, sleep_millisecs=None))
    assert doubts(ksm=unknown) != ""
