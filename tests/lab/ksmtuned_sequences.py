"""Generated lives of hosts for the differential test of ksmtuned's law: settings, a total, and what each step finds.

Everything follows from the random source handed in. Nothing here knows what the law answers; it only knows where its
thresholds lie, so that the steps come near them more often than chance would have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from virtksm.config.schema import KsmtunedParams

AWK_MAX_KIB = 2**31 - 1
"""Debian's awk (mawk) prints a larger sum as 2.14748e+09, on which the script's tests fail: docs/policies.md."""

DEFAULTS = KsmtunedParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step finds, in KiB."""

    free_kib: int
    buffers_kib: int
    cached_kib: int
    committed_kib: int

    @property
    def available_kib(self) -> int:
        return self.free_kib + self.buffers_kib + self.cached_kib


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One host's life. `conf` is its ksmtuned.conf, from which keys at their default may be missing."""

    params: KsmtunedParams
    conf: Mapping[str, int]
    total_kib: int
    thres_kib: int
    steps: tuple[Step, ...]

    def lines(self) -> Iterator[str]:
        """Yield the lines that ksmtuned_driver.bash reads."""
        yield " ".join(["begin", str(self.total_kib), *(f"{key}={value}" for key, value in self.conf.items())])
        for step in self.steps:
            yield f"step {step.free_kib} {step.buffers_kib} {step.cached_kib} {step.committed_kib}"


def generate(random: Random) -> Sequence:
    """Make one sequence of 20 steps, or of 45 where it is to climb to the top and come down again."""
    params = _params(random)
    total_kib = _total_kib(random)
    thres_kib = max(total_kib * params.thres_coef // 100, params.thres_const)
    climbs = random.random() < 0.02
    moods = ["short"] * 8 + ["tight"] * 37 if climbs else list(_moods(random, 20))
    return Sequence(
        params=params,
        conf=_conf(random, params),
        total_kib=total_kib,
        thres_kib=thres_kib,
        steps=tuple(_steps(random, moods, total_kib, thres_kib)),
    )


def _params(random: Random) -> KsmtunedParams:
    if random.random() < 0.4:
        return DEFAULTS
    least = random.choice([1, 2, 64, 100, random.randint(1, 1000)])
    most = random.choice([least, least + 1, 1250, 1250, 5000, random.randint(1, 10_000), 1_000_000])
    return KsmtunedParams(
        monitor_interval=random.choice([1, 60, 86_400]),
        sleep_msec=random.choice([0, 1, 9, 10, 10, 11, 50, 100, 250]),
        npages_boost=random.choice([0, 1, 299, 300, 300, 7_000, 1_000_000]),
        npages_decay=random.choice([0, -1, -49, -50, -50, -700, -1_000_000]),
        npages_min=least,
        npages_max=max(least, most),
        thres_coef=random.choice([0, 1, 19, 20, 20, 33, 50, 99, 100]),
        thres_const=random.choice([0, 1, 2048, 2048, 100_000, 2**24, 2**40]),
    )


def _total_kib(random: Random) -> int:
    """A tiny, small, usual, large or huge host: 1 KiB to 4 PiB."""
    least, most = random.choice(
        [(1, 5_000), (5_000, 2**20), (2**20, 2**26), (2**20, 2**26), (2**22, 2**30), (2**30, 2**42)]
    )
    return random.randint(least, most)


def _conf(random: Random, params: KsmtunedParams) -> dict[str, int]:
    """The settings under ksmtuned's names; of those at their default some are left for the script to fill in."""
    return {
        f"KSM_{name.upper()}": getattr(params, name)
        for name in KsmtunedParams.__dataclass_fields__
        if getattr(params, name) != getattr(DEFAULTS, name) or random.random() < 0.5
    }


def _moods(random: Random, count: int) -> Iterator[str]:
    """A mood lasts for a few steps: plenty of memory, short of it, tight (much committed, enough free), on an edge.

    Plenty is frequent because a step that stops costs the script one subshell less.
    """
    mood = "plenty"
    for _ in range(count):
        if random.random() < 0.3:
            mood = random.choice(["plenty"] * 9 + ["short", "tight", "tight", "edge", "edge", "any"])
        yield mood


def _steps(random: Random, moods: list[str], total_kib: int, thres_kib: int) -> Iterator[Step]:
    """While a mood lasts the free memory often stays as it was: the driver asks the script for it when it changes."""
    before: tuple[str, Step] | None = None
    for mood in moods:
        step = _step(random, mood, total_kib, thres_kib)
        if before is not None and before[0] == mood and random.random() < 0.75:
            step = replace(before[1], committed_kib=step.committed_kib)
        before = mood, step
        yield step


def _step(random: Random, mood: str, total_kib: int, thres_kib: int) -> Step:
    room = max(total_kib - thres_kib, 0)
    anything = random.randint(0, total_kib)
    free_kib, committed_kib = {
        "plenty": (random.randint(thres_kib, max(total_kib, thres_kib)) + 1, random.randint(0, room)),
        "short": (random.randint(0, thres_kib), anything),
        "tight": (random.randint(thres_kib, max(total_kib, thres_kib)), room + random.randint(0, thres_kib)),
        "edge": (thres_kib + random.randint(-1, 1), room + random.randint(-1, 1)),
        "any": (random.randint(0, total_kib), anything),
    }[mood]
    if mood == "edge" and random.random() < 0.6:  # one of the two conditions alone
        if random.random() < 0.5:
            free_kib = random.randint(thres_kib, max(total_kib, thres_kib)) + 1
        else:
            committed_kib = random.randint(0, room)
    free_kib = min(max(free_kib, 0), AWK_MAX_KIB)
    first, second = sorted((random.randint(0, free_kib), random.randint(0, free_kib)))
    return Step(
        free_kib=first,
        buffers_kib=second - first,
        cached_kib=free_kib - second,
        committed_kib=max(committed_kib, 0),
    )
