"""The kernel's KSM for tests: one lock, its whole state saved and restored, and counters to compare with.

KSM is one global state of the machine. Whoever writes to it, or depends on it, holds `ksm_lock` meanwhile and leaves
every value as it was: `KsmState.save` and `restore`. This is test code: the product itself never writes below /sys.
"""

import contextlib
import fcntl
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab.hang import HANG_S

KSM_ROOT = Path("/sys/kernel/mm/ksm")
LOCK_PATH = Path("/run/lock/virtksm-ksm.lock")
DEFAULTS, IDLE = (100, 20), (0, 10_000)
"""pages_to_scan and sleep_millisecs: the kernel's, and those of an idle ksmd."""

# Kernel: merge_across_nodes and max_page_sharing change only while nothing is shared, pages_to_scan only while the
# advisor is off; and run wakes ksmd, so it comes last.
_WHILE_UNSHARED = ("merge_across_nodes", "max_page_sharing")
_LAST = ("advisor_mode", "run")


@contextmanager
def ksm_lock() -> Iterator[None]:
    """Hold the machine-wide lock (flock, which dies with its holder); raises TimeoutError."""
    with LOCK_PATH.open("ab") as file:

        def is_ours() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_until(is_ours, 600.0, f"{LOCK_PATH}, which somebody else holds")
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class KsmState:
    """What every writable file of KSM held: file name to the text that writing takes."""

    values: Mapping[str, str]

    @classmethod
    def save(cls, root: Path = KSM_ROOT) -> Self:
        """Read all writable files; raises OSError."""
        writable = [path for path in sorted(root.iterdir()) if path.stat().st_mode & 0o200]
        return cls(values={path.name: parse_value(path.read_text(encoding="ascii")) for path in writable})

    def restore(self, root: Path = KSM_ROOT) -> None:
        """Write back what differs, in the order the kernel wants it; raises OSError.

        Everything is unmerged first where KSM was not running, or where what differs demands it.
        """

        def differs(name: str) -> bool:
            return parse_value((root / name).read_text(encoding="ascii")) != self.values[name]

        must_unmerge = any(differs(name) for name in _WHILE_UNSHARED if name in self.values)
        if must_unmerge or (self.values["run"] != "1" and differs("run")):
            (root / "run").write_text("2", encoding="ascii")
        if "advisor_mode" in self.values and parse_value((root / "advisor_mode").read_text()) != "none":
            (root / "advisor_mode").write_text("none", encoding="ascii")
        ordinary = [name for name in self.values if name not in _LAST]
        for name in [*ordinary, *(name for name in _LAST if name in self.values)]:
            if differs(name):
                (root / name).write_text(self.values[name], encoding="ascii")


def parse_value(text: str) -> str:
    """Take the chosen word of a list such as "[none] scan-time", or the text itself."""
    chosen = re.search(r"\[(.+?)\]", text)
    return chosen[1] if chosen else text.strip()


class Ksm:
    """KSM's files, and the waiting that tests need; hold `ksm_lock` while using it."""

    def __init__(self, root: Path = KSM_ROOT) -> None:
        self.root = root

    def read(self, name: str) -> int:
        """Read one number; raises OSError or ValueError."""
        return int((self.root / name).read_text(encoding="ascii"))

    def settings(self) -> tuple[int, int]:
        """Read pages_to_scan and sleep_millisecs."""
        return self.read("pages_to_scan"), self.read("sleep_millisecs")

    def write(self, **values: int | str) -> None:
        """Write settings in the order given; raises OSError."""
        for name, value in values.items():
            (self.root / name).write_text(str(value), encoding="ascii")

    def start_afresh(self) -> None:
        """Unmerge all, set the kernel's defaults and switch KSM on."""
        self.write(run=2)
        if (self.root / "advisor_mode").exists():
            self.write(advisor_mode="none")
        self.write(pages_to_scan=100, sleep_millisecs=20, merge_across_nodes=1, use_zero_pages=0)
        if (self.root / "smart_scan").exists():
            self.write(smart_scan=1)
        self.write(run=1)

    def merge_all(self, timeout_s: float = HANG_S) -> None:
        """Scan flat out until two more full scans have merged nothing new, then park; raises TimeoutError."""
        self.write(pages_to_scan=20000, sleep_millisecs=1)
        deadline = time.monotonic() + timeout_s
        merged, merged_before = -1, -2
        while merged != merged_before:
            self._wait_full_scans(2, deadline - time.monotonic())
            merged, merged_before = self.read("pages_shared") + self.read("pages_sharing"), merged
        # Kernel: writing run waits for ksmd's lock, so for the end of the batch of 20,000 pages that it may be in.
        self.write(pages_to_scan=0, sleep_millisecs=1000, run=1)

    def _wait_full_scans(self, count: int, timeout_s: float) -> None:
        target = self.read("full_scans") + count
        wait_until(lambda: self.read("full_scans") >= target, timeout_s, f"{count} full scans")


@contextmanager
def lent_ksm() -> Iterator[Ksm]:
    """Lend the real KSM alone: locked, nothing merged, kernel's defaults, run=1; restored afterwards."""
    with ksm_lock():
        state = KsmState.save()
        try:
            lent = Ksm()
            lent.start_afresh()
            yield lent
        finally:
            state.restore()


def find_ksmd() -> Path:
    """Find ksmd's folder in /proc; raises LookupError where it is in another pid namespace (a container)."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if comm.read_text(encoding="utf-8", errors="replace") == "ksmd\n":
                return comm.parent
    raise LookupError("no ksmd in /proc")


def merging_pages(pid: int) -> int:
    """Count the pages of one process that are merged (/proc/PID/ksm_merging_pages); raises OSError when it ended."""
    text = Path(f"/proc/{pid}/ksm_merging_pages").read_text(encoding="ascii")
    return int(text or "0")  # empty for kernel threads and zombies, which have no memory


def merging_pages_of_others(pids: set[int]) -> int:
    """Count the merged pages of all processes but these."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in pids:
            try:
                total += merging_pages(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
    return total


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition of the outside world, looking every 10 ms; raises TimeoutError naming `what`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.1f} s in vain for {what}")
        time.sleep(0.01)


def wait_agreed(read: Callable[[], tuple[object, object]], timeout_s: float, what: str) -> None:
    """Wait until what is found and what is expected are the same; raises TimeoutError, whose note tells both.

    For figures of a system that goes on meanwhile: `read` reads all of them anew each time.
    """
    found: object = None
    expected: object = None

    def agree() -> bool:
        nonlocal found, expected
        found, expected = read()
        return bool(found == expected)

    try:
        wait_until(agree, timeout_s, what)
    except TimeoutError as error:
        error.add_note(f"found:    {found}\nexpected: {expected}")
        raise
