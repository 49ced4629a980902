"""What a kernel offers of KSM, and what tests need of it.

A test that is `real` says what it needs beyond Linux 5.10 by `@pytest.mark.needs(NAME, ...)`: a file of KSM's folder
(`advisor_mode`), a line of /proc/PID/ksm_stat (`ksm_stat:ksm_process_profit`), a counter of /proc/vmstat
(`vmstat:cow_ksm`), transparent `huge_pages`, switched on, or `chromium`, which Ubuntu has as a snap alone. Where one is
lacking, the test does not apply (tests/not_applicable.py).
"""

import re
from pathlib import Path

import pytest


class Kernel:
    """A kernel: the first two numbers of its version, and what it offers by the names above."""

    def __init__(self, root: Path) -> None:
        found = re.match(r"\d+\.\d+", _read(root / "proc/sys/kernel/osrelease"))
        self.version = found[0] if found else "unknown"
        ksm = root / "sys/kernel/mm/ksm"
        self.offers = {
            *(path.name for path in (ksm.iterdir() if ksm.is_dir() else ())),
            *(f"ksm_stat:{name}" for name in re.findall(r"^\w+", _read(root / "proc/self/ksm_stat"), re.MULTILINE)),
            *(f"vmstat:{name}" for name in re.findall(r"^\w+", _read(root / "proc/vmstat"), re.MULTILINE)),
        }
        if re.search(r"\[(always|madvise)\]", _read(root / "sys/kernel/mm/transparent_hugepage/enabled")):
            self.offers.add("huge_pages")
        if (root / "usr/bin/chromium").exists():
            self.offers.add("chromium")

    def lacks(self, item: pytest.Item) -> set[str]:
        """Return what a test needs in vain."""
        return needs_of(item) - self.offers


KERNEL = pytest.StashKey[Kernel]()


def needs_of(item: pytest.Item) -> set[str]:
    """Return what a test needs; nothing where it stands on a fake instead of the kernel."""
    is_real = item.get_closest_marker("real") is not None
    return {name for mark in item.iter_markers("needs") for name in mark.args} if is_real else set()


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii") if path.exists() else ""
