"""The soak's judgement: what counts as flat."""

import pytest

from bench.soak import Sample, judge, later, rise


def series(rss_mib_per_s: float = 0.0, descriptors: int = 10, threads_every_s: int = 10**6) -> list[Sample]:
    return [
        Sample(
            t_s=float(at_s),
            rss_mib=40 + rss_mib_per_s * at_s,
            descriptors=descriptors + at_s % 2,
            threads=3 + at_s // threads_every_s,
            cpu_s=at_s / 10,
        )
        for at_s in range(0, 600, 2)
    ]


def missed(samples: list[Sample], reconnected_s: tuple[float, ...] = (0.3,)) -> list[str]:
    return [goal.what for goal in judge(samples, reconnected_s) if not goal.met]


def test_what_grows_and_a_late_reconnect_are_found_and_a_flat_run_meets_all_goals() -> None:
    assert rise(series(0.01), lambda one: one.rss_mib) == pytest.approx(598 * 0.01)
    assert later(series())[0].t_s == 180.0
    assert missed(series()) == missed(series(), ()) == []
    assert missed(series(rss_mib_per_s=0.01)) == ["RSS, rise"]
    assert missed(series(threads_every_s=50)) == ["threads, rise"]
    assert missed(series(), (0.3, 2.1)) == ["connected again after the socket answered, at worst"]
