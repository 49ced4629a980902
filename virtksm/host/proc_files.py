"""Files of /proc/PID, and numbers as the kernel writes them. Reads only.

The kernel reads most of these files without a lock of the process, so its owner cannot stop a reader: cgroup, comm,
ksm_merging_pages, stat, statm, status. `cmdline`, and `ksm_stat` after Linux 6.12, take the lock on the process's
memory, which its owner may hold for ever, and a process that hangs in a driver does: a reader then waits as long, and
cannot be interrupted. Only `LimitedReads` reads these.
"""

from __future__ import annotations

import os
import re
import resource
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import psutil

from virtksm.errors import VirtksmError
from virtksm.host.bounded import BoundedCalls, Wait
from virtksm.text import printable

if TYPE_CHECKING:
    from virtksm.guests.process import MergeableMemory, ProcessKsm

MAX_BYTES = 1 << 17
"""The part of a process's command line that is read: it may be endless, and -uuid is in QEMU's first KiB."""
NUMBER = "[0-9]{1,20}"
"""The form of a 64-bit counter; Python would take other scripts' digits, and refuse too many of them."""
_STATM = re.compile(rb"[0-9]{1,20} ([0-9]{1,20}) ([0-9]{1,20}) ")
_COUNTER, _SIGNED = re.compile(rf"{NUMBER}\n?"), re.compile(rf"-?{NUMBER}\n?")
KERNEL_THREAD = 0x00200000
"""PF_KTHREAD of the kernel's include/linux/sched.h, which no program can set."""
AGENT = b"virtksm"
"""The name of an agent that has mergeable memory: two pages (agent/zero_pages.py), which nobody counts."""
INIT = 1
STATM_BYTES = 256
MAX_DESCRIPTORS = 1 << 16
"""Ten times what any host's guests take; of a million, programs that are started may close each."""
LIMIT_S = 1.0
MAX_STUCK = 8
"""Threads that may hang; with as many, nothing more is read."""
AT_ONCE = 256
"""Processes that are read within one limit: on a host of thousands, slow is not taken for hanging."""

Result = TypeVar("Result")


class Process:
    """One process: its open statm is its own, even if its number is in use again; so the next pass reads that alone.

    `started` is in clock ticks. `statm` is what `lives` has read.
    """

    __slots__ = ("_descriptor", "pid", "started", "statm")

    def __init__(self, pid: int, descriptor: int, started: int) -> None:
        self.pid, self._descriptor, self.started = pid, descriptor, started
        self.statm = b""

    def __del__(self) -> None:
        os.close(self._descriptor)

    def lives(self) -> bool:
        """Tell whether it has not ended, and read its statm."""
        try:
            self.statm = os.pread(self._descriptor, STATM_BYTES, 0)
        except OSError:
            self.statm = b""
        return bool(self.statm)


class Stat(NamedTuple):
    """Of /proc/PID/stat: CPU time and begin in clock ticks, and whether it is one of the kernel's own threads."""

    ticks: int
    started: int
    is_kernels: bool


def list_pids() -> list[int]:
    """Return the numbers of all processes that this user may see, ascending; none where /proc is not mounted."""
    try:
        return psutil.pids()
    except (OSError, IndexError):  # IndexError: it takes the first of an empty list
        return []


def identify(pid: int) -> Process | None:
    """Return the process that has this number now; None for none."""
    try:
        descriptor = _open(pid, "statm")
    except OSError:
        return None
    stat = parse_stat(read_process(pid, "stat"))
    process = Process(pid, descriptor, 0 if stat is None else stat.started)
    return process if stat is not None and process.lives() else None  # in this order: `stat` is this one's, too


def allow_descriptors() -> None:
    """Allow this process more descriptors, as far as it may have them: each guest takes one, and usual are 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_DESCRIPTORS)), hard))


def read_private(pid: int, name: str) -> str | None:
    """Return a file of /proc/PID that its owner and root may read; None to others, "" where the kernel has no such."""
    try:
        return _read(pid, name, MAX_BYTES).decode("ascii", "replace")
    except PermissionError:
        return None
    except OSError:
        return ""


def read_process(pid: int, name: str, max_bytes: int = 1 << 13) -> bytes:
    """Return a file of /proc/PID, nothing if the process has ended or hides it."""
    try:
        return _read(pid, name, max_bytes)
    except OSError:
        return b""


def _open(pid: int, name: str) -> int:
    return os.open(f"{psutil.PROCFS_PATH}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)


def _read(pid: int, name: str, max_bytes: int) -> bytes:
    handle = _open(pid, name)  # with `read` a quarter of what `open` costs
    try:
        return os.read(handle, max_bytes)
    finally:
        os.close(handle)


def read_small(path: str) -> str | None:
    """Return a file's text; None where the kernel has no such file (older, or built without), or hides it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # half of what `open` costs: a pass reads a dozen
        try:
            parts = iter(lambda: os.read(handle, MAX_BYTES), b"")  # of some files the kernel gives a page at a time
            return b"".join(parts).decode("ascii", "replace")
        finally:
            os.close(handle)
    except OSError:
        return None


def read_name(pid: int) -> str:
    """Return a process's name, which it chooses itself."""
    return read_process(pid, "comm").decode("utf-8", "replace").removesuffix("\n")


class LimitedReads:
    """Reads with a limit, of one caller, to be used from one thread.

    A process that does not answer is left out, and named in `trouble` until it does. It costs its limit once, and one
    thread.
    """

    def __init__(self, limit_s: float = LIMIT_S, wait: Wait = threading.Event.wait) -> None:
        self._limit_s = limit_s
        self._wait = wait
        self._stuck: dict[int, tuple[BoundedCalls, str]] = {}

    @property
    def trouble(self) -> tuple[str, ...]:
        """The processes that do not answer, with the remedy: the same words as long as they do not."""
        self._forget_answered()
        return tuple(text for _, text in self._stuck.values())

    def read(self, pids: Iterable[int], read: Callable[[int], Result], *, max_hangs: int = 1) -> dict[int, Result]:
        """Return what `read` returns for each process, without those that do not answer within the limit.

        After `max_hangs` such processes the rest stays unread, too: a caller waits for so many limits at most.
        """
        self._forget_answered()
        results: dict[int, Result] = {}
        left = [pid for pid in pids if pid not in self._stuck]
        while left and max_hangs and len(self._stuck) < MAX_STUCK:
            done, calls = self._read_some(left[:AT_ONCE], read)
            results.update(done)
            left = left[len(done) :]
            if calls.waiting is not None and len(done) < AT_ONCE and left:
                stuck = left.pop(0)
                self._stuck[stuck] = calls, _describe(stuck)
                max_hangs -= 1
        return results

    def _read_some(
        self, pids: list[int], read: Callable[[int], Result]
    ) -> tuple[list[tuple[int, Result]], BoundedCalls]:
        results, is_over, calls = list[tuple[int, Result]](), threading.Event(), BoundedCalls(_Hangs, self._wait)

        def work() -> None:
            for pid in pids:
                if is_over.is_set():
                    return
                results.append((pid, read(pid)))

        with suppress(_Hangs):
            calls.run("/proc", work, self._limit_s)
        is_over.set()
        return list(results), calls

    def _forget_answered(self) -> None:
        self._stuck = {pid: stuck for pid, stuck in self._stuck.items() if stuck[0].waiting is not None}


class _Hangs(VirtksmError):
    """A process does not answer within the limit."""


def _describe(pid: int) -> str:
    return (
        f"process {pid} ({printable(read_name(pid))}) does not let its files in /proc be read: its memory is locked "
        f"while it hangs (cat /proc/{pid}/stack); it and processes read after it may count as unread until it goes on "
        "or ends"
    )


def parse_counter(text: str, *, is_signed: bool = False) -> int | None:
    """Parse a file that holds one number; None if it does not."""
    return int(text) if (_SIGNED if is_signed else _COUNTER).fullmatch(text) else None


def parse_process_ksm(stat: str, merging_pages: str) -> ProcessKsm:
    """Parse /proc/PID/ksm_stat, and /proc/PID/ksm_merging_pages for kernels whose ksm_stat lacks it (before 6.4)."""
    from virtksm.guests.process import ProcessKsm  # making it is start-up time, and no pass asks

    fields = dict(re.findall(r"^(\w+):? (\S+)$", stat, re.MULTILINE))

    answers = {"yes": True, "no": False}
    return ProcessKsm(
        rmap_items=parse_counter(fields.get("ksm_rmap_items", "")),
        zero_pages=parse_counter(fields.get("ksm_zero_pages", "")),
        merging_pages=parse_counter(fields.get("ksm_merging_pages", merging_pages)),
        profit_bytes=parse_counter(fields.get("ksm_process_profit", ""), is_signed=True),
        merges_any=answers.get(fields.get("ksm_merge_any", "")),
        is_mergeable=answers.get(fields.get("ksm_mergeable", "")),
    )


def parse_smaps(lines: Iterable[str]) -> MergeableMemory:
    """Parse /proc/PID/smaps, where a mapping's last line is its VmFlags."""
    from virtksm.guests.process import MergeableMemory

    sizes, merged_kib, amounts = list[int](), None, dict[str, int]()
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "VmFlags":
            if "mg" in rest.split():
                sizes.append(amounts.get("Size", 0))
            if "KSM" in amounts:
                merged_kib = (merged_kib or 0) + amounts["KSM"]
            amounts = {}
        elif name in ("Size", "KSM") and (kib := parse_counter(rest.strip().removesuffix(" kB"))) is not None:
            amounts[name] = kib
    return MergeableMemory(mappings_kib=tuple(sizes), merged_kib=merged_kib)


def parse_rollup_kib(text: str) -> int | None:
    """Parse the mapped KSM pages of /proc/PID/smaps_rollup; None before Linux 6.7."""
    found = re.search(rf"^KSM: +({NUMBER}) kB$", text, re.MULTILINE)
    return None if found is None else int(found[1])


def parse_stat(text: bytes) -> Stat | None:
    """Parse /proc/PID/stat (proc_pid_stat(5)); None for other text (it ended)."""
    fields = text.rpartition(b")")[2].split()  # the name in front may hold anything
    if len(fields) < 20:
        return None
    flags, user, system, started = (parse_counter(fields[at].decode("ascii", "replace")) for at in (6, 11, 12, 19))
    if flags is None or user is None or system is None or started is None:
        return None
    return Stat(ticks=user + system, started=started, is_kernels=bool(flags & KERNEL_THREAD))


def parse_memory_kib(statm: bytes, page_kib: int) -> tuple[int, int] | None:
    """Return a process's resident memory and the part of it that is files' or shared, by its /proc/PID/statm.

    None for other text, or 0 pages (it ended).
    """
    found = _STATM.match(statm)
    resident_kib = 0 if found is None else int(found[1]) * page_kib
    return (resident_kib, int(found[2]) * page_kib) if found is not None and resident_kib else None


def parse_owner(status: bytes) -> int | None:
    """Return the user of a process by its /proc/PID/status; None where its user ids differ (a setuid program)."""
    found = re.search(rb"^Uid:((?:\t[0-9]{1,10}){4})$", status, re.MULTILINE)
    users = {int(user) for user in found[1].split()} if found else set()
    return users.pop() if len(users) == 1 else None
