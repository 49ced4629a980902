"""Curves through samples: where they break, what may be left out, and ksmd's share of a core."""

from typing import Any

import pytest

from tests.fakes import SAMPLE
from virtksm.history.curves import GAP_S, Point, as_curves, cpu_shares, pieces
from virtksm.history.samples import Sample, thin
from virtksm.values import replace

STEP_S = 10.0


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((), []),
        ((0.0, GAP_S, 2 * GAP_S), [(0.0, GAP_S, 2 * GAP_S)]),
        ((0.0, GAP_S + 1), [(0.0,), (GAP_S + 1,)]),
        ((100.0, 110.0, 50.0, 60.0), [(100.0, 110.0), (50.0, 60.0)]),
    ],
)
def test_a_curve_breaks_where_nobody_looked_and_where_the_clock_was_set_back(
    times: tuple[float, ...], expected: list[tuple[float, ...]]
) -> None:
    found = pieces([replace(SAMPLE, at_s=at_s) for at_s in times])
    assert [tuple(sample.at_s for sample in piece) for piece in found] == expected


@pytest.mark.parametrize(("apart_s", "points"), [(60.0, 300), (10.0, 20), (300.0, 1000)])
def test_a_day_is_one_curve_however_thinned_and_however_long_the_policy_waits(apart_s: float, points: int) -> None:
    def seen(since_s: float, until_s: float) -> list[Sample]:
        times = [since_s + number * apart_s for number in range(int((until_s - since_s) / apart_s))]
        return [replace(SAMPLE, at_s=at_s, saved_kib=4, ksmd_cpu_seconds=at_s / 20) for at_s in times]

    now = Point(at_s=86_400.0, saved_kib=4, ksmd_cpu_seconds=4320.0)
    drawn: Any = as_curves(thin(seen(0, 86_400), points, until_s=now.at_s), now, 480.0)
    assert [len(drawn[name]) for name in ("saved_kib", "core_percent")] == [1, 1]
    with_gap = [*seen(0, 30_000), *seen(50_000, 86_400)]
    drawn = as_curves(thin(with_gap, points, until_s=now.at_s), now, 480.0)
    assert [len(drawn[name]) for name in ("saved_kib", "core_percent")] == [2, 2]


@pytest.mark.parametrize(
    ("cpu_seconds", "width_s", "expected"),
    [
        ((0.0, 1.0, 1.0, 3.0), 10.0, [(0, 10, 0.1), (10, 20, 0.0), (20, 30, 0.2)]),
        ((0.0, 1.0, 1.0, 3.0), 15.0, [(0, 20, 0.05), (20, 30, 0.2)]),
        ((50.0, 51.0, 2.0, 3.0), 10.0, [(0, 10, 0.1), (20, 30, 0.1)]),
        ((None, None, 2.0, 3.0), 10.0, [(20, 30, 0.1)]),
        ((0.0, 1.0, 361.0, 362.0), 10.0, [(0, 10, 0.1), (20, 30, 0.1)]),
    ],
)
def test_ksmds_share_of_a_core(
    cpu_seconds: tuple[float | None, ...], width_s: float, expected: list[tuple[float, float, float]]
) -> None:
    samples = [
        replace(SAMPLE, at_s=number * STEP_S, ksmd_cpu_seconds=cpu_s) for number, cpu_s in enumerate(cpu_seconds)
    ]
    found = cpu_shares(samples, width_s)
    assert [(one.from_s, one.to_s) for one in found] == [(from_s, to_s) for from_s, to_s, _ in expected]
    assert [one.share for one in found] == pytest.approx([share for _, _, share in expected])


def test_curves_to_draw_end_at_the_present_moment() -> None:
    samples = [replace(SAMPLE, at_s=at_s, saved_kib=4, ksmd_cpu_seconds=at_s / 20) for at_s in (0.0, 10.0, 500.0)]
    now = Point(at_s=520.0, saved_kib=8, ksmd_cpu_seconds=26.0)
    assert as_curves(samples, now, 10.0) == {
        "saved_kib": [[[0.0, 4], [10.0, 4]], [[500.0, 4], [520.0, 8]]],
        "core_percent": [[[0.0, 5.0], [10.0, 5.0]], [[500.0, 5.0], [520.0, 5.0]]],
        "ksmd": {"core_percent": 5.0, "over_s": 20.0},
    }
    soon = as_curves(samples, Point(at_s=503.0, saved_kib=8, ksmd_cpu_seconds=99.0), 10.0)
    assert soon["core_percent"] == [[[0.0, 5.0], [10.0, 5.0]]], "a burst of three seconds is no peak"
    assert as_curves([], now, 10.0) == {
        "saved_kib": [],
        "core_percent": [],
        "ksmd": {"core_percent": None, "over_s": None},
    }
