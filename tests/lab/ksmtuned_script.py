"""Generated lives of hosts, and what the real ksmtuned's own functions make of them.

Everything of a life follows from the random source handed in. Nothing here knows what the law answers; it only knows
where its thresholds lie, so that steps come near them more often than chance would have it.

The script's text is taken up to its main loop; its paths in /proc, /sys and /etc lead to a folder in memory, and the
guests' memory is fed. Its free_memory is called by the driver whenever the memory has changed, and its answer kept
while it has not, which halves the time. The rest is run by bash as it stands, in one bash for each core, all of them
with ksmtuned_script.bash.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.lab.ksmtuned_package import read_ksmtuned_file
from virtksm.config.schema import KsmtunedParams
from virtksm.values import replace

DRIVER = Path(__file__).with_suffix(".bash")
AWK_MAX_KIB = 2**31 - 1
"""Debian's awk (mawk) prints a larger sum as 2.14748e+09, on which the script's tests fail: docs/policies.md."""
DEFAULTS = KsmtunedParams()
HOSTS_KIB = ((1, 5_000), (5_000, 2**20), (2**20, 2**26), (2**22, 2**30), (2**30, 2**42))
"""Tiny, small, usual, large and huge hosts: 1 KiB to 4 PiB."""
MOODS = ["plenty"] * 9 + ["short", "tight", "tight", "edge", "edge", "any"]
"""Plenty of memory, short of it, tight (much committed, enough free), on an edge.

Plenty is frequent because a step that stops costs the script one subshell less.
"""


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
        """Yield the lines that the driver reads."""
        yield " ".join(["begin", str(self.total_kib), *(f"{key}={value}" for key, value in self.conf.items())])
        for step in self.steps:
            yield f"step {step.free_kib} {step.buffers_kib} {step.cached_kib} {step.committed_kib}"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What stands after a step: the kernel's three files, and the law's npages and threshold (KiB)."""

    run: int
    pages_to_scan: int
    sleep_millisecs: int
    npages: int
    thres_kib: int


FIRST = State(run=0, pages_to_scan=100, sleep_millisecs=20, npages=0, thres_kib=0)
"""The kernel's defaults, which the driver also puts in place at the beginning of a sequence."""


def generate(random: Random) -> Sequence:
    """Make one sequence of 20 steps, or of 45 where it is to climb to the top and come down again."""
    params = _params(random)
    total_kib = random.randint(*random.choice(HOSTS_KIB))
    thres_kib = max(total_kib * params.thres_coef // 100, params.thres_const)
    climbs = random.random() < 0.02
    moods = ["short"] * 8 + ["tight"] * 37 if climbs else ["plenty"]
    while len(moods) < 20:
        moods.append(random.choice(MOODS) if random.random() < 0.3 else moods[-1])
    steps: list[Step] = []
    for number, mood in enumerate(moods):
        step = _step(random, mood, total_kib, thres_kib)
        if steps and moods[number - 1] == mood and random.random() < 0.75:  # while a mood lasts, memory often stays
            step = replace(steps[-1], committed_kib=step.committed_kib)
        steps.append(step)
    conf = {
        f"KSM_{name.upper()}": getattr(params, name)
        for name in KsmtunedParams._fields
        if getattr(params, name) != getattr(DEFAULTS, name) or random.random() < 0.5
    }
    return Sequence(params=params, conf=conf, total_kib=total_kib, thres_kib=thres_kib, steps=tuple(steps))


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


def run_script(sequences: list[Sequence]) -> list[list[State]]:
    """Run the sequences through the real script, each core its share in one bash; return each one's states."""
    text = read_ksmtuned_file("usr/sbin/ksmtuned")
    workers = len(os.sched_getaffinity(0))
    shares = [sequences[worker::workers] for worker in range(workers)]
    memory = Path("/dev/shm")  # a step reads and writes five files
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        answers = run_shares(text, shares, Path(folder))
    return [answers[index % workers][index // workers] for index in range(len(sequences))]


def run_shares(text: str, shares: list[list[Sequence]], folder: Path) -> list[list[list[State]]]:
    started = []
    try:
        for number, share in enumerate(shares):
            place = folder / str(number)
            (place / "ksm").mkdir(parents=True)
            (place / "script").write_text(redirected(text, place))
            (place / "sequences").write_text("".join(f"{line}\n" for sequence in share for line in sequence.lines()))
            driver = [DRIVER, place / "script", place, place / "sequences", place / "states"]
            with (place / "errors").open("w") as errors:
                command = ["bash", "--norc", "--noprofile", *map(str, driver)]
                environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
                started.append(subprocess.Popen(command, env=environment, stdout=errors, stderr=errors))
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    for number, code in enumerate(codes):
        said = (folder / str(number) / "errors").read_text()
        assert (code, said) == (0, ""), f"the script complained: {said[:2000]}"
    return [list(parse_states(share, folder / str(number) / "states")) for number, share in enumerate(shares)]


def redirected(text: str, place: Path) -> str:
    """Return the script's text without its main loop, with its paths under `place` and the guests' memory fed."""
    functions, loop, _ = text.partition("\nPIDFILE=")
    assert loop, "the script's end has changed"
    for old, new in [
        ("/etc/ksmtuned.conf", f"{place}/ksmtuned.conf"),
        ("/proc/meminfo", f"{place}/meminfo"),
        ("/sys/kernel/mm/ksm/", f"{place}/ksm/"),
        ("committed=`committed_memory`", "committed=$fed_committed"),
        ("free=`free_memory`", "free=$found_free"),  # the driver calls free_memory, once for each change
    ]:
        assert old in functions, f"the script no longer has {old}"
        functions = functions.replace(old, new)
    for real in ("/proc/", "/sys/", "/etc/"):
        assert real not in functions, f"the script would touch the real {real}"
    return functions + "\n"


def parse_states(share: list[Sequence], path: Path) -> Iterator[list[State]]:
    lines = iter(path.read_text().splitlines())
    for sequence in share:
        states = []
        for _ in sequence.steps:
            status, run, pages, sleep_ms, npages, thres_kib = map(int, next(lines).split())
            assert status == 1 - run  # adjust's own answer
            states.append(
                State(run=run, pages_to_scan=pages, sleep_millisecs=sleep_ms, npages=npages, thres_kib=thres_kib)
            )
        yield states
    assert next(lines, None) is None
