"""The small curve and "lately": from single observations, with gaps, reboots and clocks as they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.cli.status_text import ASCII, BLOCKS, choose_marks, sparkline
from virtksm.history.curves import LATELY_S, Point, core_share, saved_levels
from virtksm.values import replace

NOW_S = 1_800_000_000.0


def at(ago_s: float, *, saved: int | None = None, cpu: float | None = None) -> Point:
    return Point(at_s=NOW_S - ago_s, saved_kib=saved, ksmd_cpu_seconds=cpu)


@pytest.mark.parametrize(
    ("points", "levels"),
    [
        ([], [None, None, None, None]),
        ([at(0, saved=7)], [None, None, None, 7]),
        ([at(500, saved=1), at(125, saved=2), at(119, saved=3), at(60, saved=4)], [1, 2, 4, 4]),
        ([at(60, saved=4), at(500, saved=1)], [1, 1, 4, 4]),
        ([at(500, saved=1), at(60, saved=None), at(-5, saved=9)], [1, 1, 1, 1]),
    ],
)
def test_each_stretch_has_what_was_seen_last(points: list[Point], levels: list[int | None]) -> None:
    assert saved_levels(points, until_s=NOW_S, step_s=60.0, steps=4) == levels


def test_so_have_the_parts_of_what_is_saved() -> None:
    points = [replace(at(100, saved=9), zero_kib=2, freed_kib=3), replace(at(0, saved=9), zero_kib=4)]
    for name, levels in (("zero_kib", [None, 2, 4]), ("freed_kib", [None, 3, 3])):
        assert saved_levels(points, until_s=NOW_S, step_s=60.0, steps=3, name=name) == levels


@pytest.mark.parametrize(
    ("points", "share"),
    [
        ([], None),
        ([at(LATELY_S + 1, cpu=1.0), at(200, cpu=8.0), at(100, cpu=9.0)], (1.0, 200.0)),
        ([at(7000, cpu=1.0), at(1000, cpu=5.0)], (0.5, 1000.0)),
        ([at(150, cpu=99.0), at(100, cpu=7.0), at(50, cpu=5.0)], (10.0, 50.0)),
        ([at(100, cpu=None), at(0.5, cpu=9.0)], None),
        ([at(-100, cpu=4.0)], None),
        ([at(2, cpu=4.0)], None),  # the clock was set back: no thread takes three cores
    ],
)
def test_ksmds_share_is_that_of_the_last_minutes_of_this_boot(
    points: list[Point], share: tuple[float, float] | None
) -> None:
    assert tuple(core_share(points, at(0, cpu=10.0)).values()) == (share or (None, None))
    assert core_share(points, at(0))["core_percent"] is None, "without ksmd's time"


@given(values=st.lists(st.none() | st.integers(0, 2**70), max_size=80), marks=st.sampled_from([BLOCKS, ASCII]))
def test_a_curve_has_a_mark_for_each_value_and_higher_ones_are_never_lower(
    values: list[int | None], marks: str
) -> None:
    curve = sparkline(values, marks)
    assert len(curve) == len(values)
    shown = sorted((value, marks.index(mark)) for value, mark in zip(values, curve, strict=True) if value is not None)
    assert [height for _, height in shown] == sorted(height for _, height in shown)
    assert all((mark == " ") == (value is None) for value, mark in zip(values, curve, strict=True))


def test_a_curve_stands_on_nothing_saved_and_reaches_up_to_the_most() -> None:
    assert sparkline([None, 0, 1, 50, 100], BLOCKS) == " ▁▁▅█"
    assert sparkline([0, 0], ASCII) == "__"
    assert sparkline([], ASCII) == ""


@pytest.mark.parametrize(
    ("encoding", "environ", "marks"),
    [
        ("utf-8", {"LANG": "de_DE.UTF-8"}, BLOCKS),
        ("utf-8", {"LC_ALL": "C.UTF-8", "LANG": "C"}, BLOCKS),
        ("utf-8", {}, ASCII),
        ("utf-8", {"LC_ALL": "", "LANG": "POSIX"}, ASCII),
        ("iso-8859-1", {"LANG": "de_DE"}, ASCII),
        ("no-such", {"LANG": "de_DE.UTF-8"}, ASCII),
        (None, {"LANG": "de_DE.UTF-8"}, ASCII),
    ],
)
def test_blocks_are_for_those_who_can_show_them(encoding: str | None, environ: dict[str, str], marks: str) -> None:
    assert choose_marks(encoding, environ) == marks
