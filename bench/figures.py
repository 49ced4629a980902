"""Figures of a benchmark: goals met or missed, tables, percentiles, the machine.

Percentiles are nearest-rank: p99 of 200 samples is the 198th smallest, a value that was really measured.
"""

import argparse
import math
import os
import platform
import random
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtksm.cli.progress import Progress

WARM_UP_RUNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One goal beside what was measured (None: it never came). `limit` is the most, or with `is_least` the least."""

    what: str
    measured: float | None
    limit: float
    unit: str = ""
    is_least: bool = False

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.is_least else self.measured <= self.limit

    def line(self) -> str:
        """Write one line of text."""
        measured = "never" if self.measured is None else f"{self.measured:.2f} {self.unit}".rstrip()
        limit = f"at {'least' if self.is_least else 'most'} {self.limit:.2f} {self.unit}".rstrip()
        return f"{self.what}: {measured}, goal {limit}: {'met' if self.met else 'MISSED'}"


def tell_goals(goals: Sequence[Goal], failures: Sequence[str] = ()) -> int:
    """Print goals and failures; return the exit code, 1 if a goal is missed or something failed."""
    print("\n".join(["", *(goal.line() for goal in goals), *(f"FAILED {failure}" for failure in failures)]))
    return 1 if failures or not all(goal.met for goal in goals) else 0


def number(value: float | None, digits: int) -> str:
    """Write a number; one that never came, None or infinite, is a dash."""
    return "-" if value in (None, math.inf) else f"{value:.{digits}f}"


def write_table(
    name: str,
    title: str,
    machine: Mapping[str, object],
    rows: Sequence[Sequence[str]],
    goals: Iterable[Goal],
    left_out: Iterable[str] = (),
) -> str:
    """Write one work's figures as Markdown: `rows` begin with their heads; then the goals, and why some have none."""
    heads, *others = rows
    lines = [
        *(f"## {name}", "", f"{title}.", ""),
        *(", ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""),
        *("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *others)),
        "",
        *(f"- {goal.line()}" for goal in goals),
        *(f"- not judged: {reason}" for reason in left_out),
    ]
    return "\n".join(lines) + "\n"


def names(known: Sequence[str]) -> Callable[[str], Sequence[str]]:
    """Return what parses NAME,NAME of these."""

    def parse(text: str) -> Sequence[str]:
        given = list(dict.fromkeys(name.strip() for name in text.split(",")))
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
        return given

    return parse


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile; raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(math.ceil(len(samples) * percent / 100), 1) - 1]


def median(samples: Sequence[float]) -> float:
    return percentile(samples, 50)


def in_words(samples: Sequence[float]) -> str:
    return (
        f"median {median(samples):8.2f}   p99 {percentile(samples, 99):8.2f}   max {max(samples):8.2f}   "
        f"min {min(samples):8.2f}   (n={len(samples)})"
    )


def interleave(timed: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Time all in turn, again and again, in an order drawn anew, so that the machine's other work falls on all alike.

    The first runs warm up, and are left out.
    """
    names = list(timed)
    times: dict[str, list[float]] = {name: [] for name in names}
    with Progress() as progress:
        for number in range(runs + WARM_UP_RUNS):
            random.shuffle(names)
            for name in names:
                progress.show(f"run {number + 1} of {runs + WARM_UP_RUNS}: {name}")
                measured = timed[name]()
                if number >= WARM_UP_RUNS:
                    times[name].append(measured)
    return times


def read_machine() -> dict[str, object]:
    """Tell what the figures were measured on, and the checkout's commit, with `-dirty` where a file was changed."""
    return {
        "cpu": parse_cpu(Path("/proc/cpuinfo").read_text(encoding="utf-8")) or platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1]) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libvirt": _first_line("libvirtd", "--version"),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "load_1_min": os.getloadavg()[0],
        "commit": _first_line(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"
        ),
    }


def parse_cpu(cpuinfo: str) -> str:
    """Tell the first CPU by all that /proc/cpuinfo says of its kind: some hosts tell guests no more than a brand."""
    fields = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())]
    first = dict(reversed(fields))
    numbers = ", ".join(f"{key} {first[key]}" for key in ("cpu family", "model", "stepping") if key in first)
    return first.get("model name", "") + (f" ({numbers})" if numbers else "")


def tell_machine() -> Mapping[str, object]:
    """Print and return it."""
    machine = read_machine()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    return machine


def _first_line(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
