"""Figures of a benchmark: medians and percentiles of samples, the machine they come from, goals met or missed.

Pure, apart from `read_machine` and `read_revision`. Percentiles are nearest-rank: p99 of 200 samples is the 198th
smallest, a value that was really measured.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is told of a series of samples, all in the samples' unit."""

    samples: int
    median: float
    p99: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One goal beside what was measured; `met` is decided by "at most"."""

    what: str
    measured: float
    at_most: float
    unit: str

    @property
    def met(self) -> bool:
        return self.measured <= self.at_most

    def line(self) -> str:
        """Write one line of text."""
        verdict = "met" if self.met else "MISSED"
        return f"{self.what}: {self.measured:.2f} {self.unit}, goal at most {self.at_most:.2f} {self.unit}: {verdict}"

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "met": self.met}


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile; raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(math.ceil(len(samples) * percent / 100), 1) - 1]


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize samples; raises ValueError if there are none."""
    return Summary(
        samples=len(samples),
        median=percentile(samples, 50),
        p99=percentile(samples, 99),
        least=min(samples),
        most=max(samples),
    )


def read_machine() -> dict[str, object]:
    """Tell what the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    memory_kib = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1])
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": memory_kib // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libvirt": _first_line("libvirtd", "--version"),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "load_1_min": os.getloadavg()[0],
    }


def read_revision() -> str:
    """Tell which commit the checkout is at, with `-dirty` where a tracked file was changed."""
    return _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*")


def _first_line(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
