"""The soak's judgement: what counts as flat."""

from __future__ import annotations

import pytest

from bench.soak import Sample, judge, later, rise


def series(rss_mib_per_s: float = 0.0, descriptors: int = 10, cpu_power: float = 1.0) -> list[Sample]:
    return [
        Sample(
            t_s=float(at_s),
            rss_mib=40 + rss_mib_per_s * at_s,
            descriptors=descriptors + at_s % 2,
            threads=3,
            cpu_s=at_s**cpu_power / 10,
        )
        for at_s in range(0, 600, 2)
    ]


def verdicts(samples: list[Sample], reconnected_s: tuple[float, ...] = (0.3,)) -> dict[str, bool]:
    return {goal.what: goal.met for goal in judge(samples, reconnected_s)}


def test_a_straight_line_rises_by_what_it_rises() -> None:
    assert rise(series(0.01), lambda one: one.rss_mib) == pytest.approx(598 * 0.01)


def test_the_warming_up_is_left_out() -> None:
    assert later(series())[0].t_s == 180.0


def test_a_flat_run_meets_all_goals() -> None:
    assert all(verdicts(series()).values())


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        (series(rss_mib_per_s=0.01), "RSS, rise"),
        (
            [Sample(t_s=float(t), rss_mib=40, descriptors=t // 50, threads=3, cpu_s=t) for t in range(600)],
            "descriptors, rise",
        ),
        (
            [Sample(t_s=float(t), rss_mib=40, descriptors=9, threads=t // 50, cpu_s=t) for t in range(600)],
            "threads, rise",
        ),
        (series(cpu_power=3.0), "CPU time, rise"),
    ],
)
def test_what_grows_is_found(samples: list[Sample], what: str) -> None:
    assert [name for name, met in verdicts(samples).items() if not met] == [what]


def test_a_late_reconnect_is_found() -> None:
    assert not verdicts(series(), (0.3, 2.1))["connected again after the socket answered, at worst"]
    assert len(verdicts(series(), ())) == 4, "not judged in a soak without one"
