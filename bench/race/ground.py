"""Where the race is run: a private libvirtd, guests that start, settle and stop on it, KSM put back between.

Guests are ended by their processes' ids. It writes to the kernel's KSM, which script/bench has locked, through
tests/lab/ksm.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.race.linux import LinuxGuest, build_linux_guest
from bench.stage import PAYLOAD
from demo.guests import PAGES_PER_MIB, PayloadGuest, parse_console
from tests.lab.fixtures import GuestFactory, RunningGuest
from tests.lab.ksm import Ksm, merging_pages_of_others, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from virtksm.host.proc_files import parse_memory_kib, parse_rollup_kib, read_private, read_process

PAGE_KIB = 1024 // PAGES_PER_MIB
MAX_FOREIGN_PAGES = 1000
QUIET_SCANS = 14
"""smart_scan skips a page for 8 scans at most, after 1 + 2 + 4 and three fruitless visits between."""


class Disturbed(Exception):
    """Other processes' memory merged during a run, so that its figures are worth nothing."""


@dataclass(slots=True, kw_only=True)
class GuestLife:
    """When a guest's memory was filled, None: not in this run; and whether it was stopped."""

    name: str
    settled_s: float | None = None
    has_stopped: bool = False


class Ground:
    """The guests of one run at a time; `folder` is for files of the run, removed in the end."""

    def __init__(self, libvirtd: PrivateLibvirtd) -> None:
        self._libvirtd = libvirtd
        self._start = GuestFactory(libvirtd, PAYLOAD.resolve())
        self._running: dict[str, RunningGuest] = {}
        self._runs = 0
        self.ksm = Ksm()
        self.guests: list[GuestLife] = []
        self.folder = libvirtd.root

    @property
    def uri(self) -> str:
        """Tell the libvirt URI of the guests, for a contender that asks for it."""
        return self._libvirtd.uri

    def clear(self) -> None:
        """End all guests, unmerge everything and set the kernel's defaults, so that every run begins alike."""
        self._start.end_all()
        self._running.clear()
        self.guests = []
        self.ksm.start_afresh()
        self._runs += 1
        self.folder = self._libvirtd.root / f"r{self._runs}"
        self.folder.mkdir()

    def settle(self, guests: Sequence[PayloadGuest]) -> None:
        """Start guests that have long been there when the clock starts, and scan until smart_scan skips their pages."""
        self.ksm.write(pages_to_scan=100_000, sleep_millisecs=0)
        for guest in guests:
            self._running[guest.name] = self._start(guest)
        target = self.ksm.read("full_scans") + QUIET_SCANS
        wait_until(lambda: self.ksm.read("full_scans") >= target, 300.0, f"{QUIET_SCANS} full scans")
        self.ksm.write(pages_to_scan=100, sleep_millisecs=20)

    def start(self, guest: PayloadGuest) -> None:
        kernel = build_linux_guest() if isinstance(guest, LinuxGuest) else None
        self._running[guest.name] = self._start(guest, settle=False, kernel=kernel)
        self.guests.append(GuestLife(name=guest.name))

    def stop(self, name: str) -> None:
        """Stop a guest at once, through libvirt."""
        self._running[name].domain.destroy()
        for life in self.guests:
            if life.name == name:
                life.has_stopped = True

    def resident_mib(self) -> float:
        """Tell what the guests that run hold resident, shared pages in each."""
        held = [parse_memory_kib(read_process(one.pid, "statm"), PAGE_KIB) for one in tuple(self._running.values())]
        return sum(one[0] for one in held if one is not None) / 1024

    def merged_pages(self) -> int | None:
        """Count the guests' pages that are merged now; None before Linux 6.7. It walks all of their memory."""
        merged = [parse_rollup_kib(read_private(one.pid, "smaps_rollup") or "") for one in self._running.values()]
        known = [kib for kib in merged if kib is not None]
        return sum(known) // PAGE_KIB if known else None

    def check_alone(self) -> None:
        """Check that KSM merges for the guests alone; raises Disturbed. Takes some 10 ms."""
        foreign = merging_pages_of_others({running.pid for running in self._running.values()})
        if foreign > MAX_FOREIGN_PAGES:
            raise Disturbed(f"{foreign} pages of other processes are merged (their /proc/PID/ksm_merging_pages)")

    def note_settled(self, *, began_s: float) -> None:
        """Note which guests have filled their memory, from `began_s` on; raises PayloadFailed when one has an error."""
        for life in self.guests:
            console = self._running[life.name].console
            is_filling = life.settled_s is None and not life.has_stopped and console.exists()
            if is_filling and parse_console(console.read_text(encoding="ascii", errors="replace")):
                life.settled_s = time.monotonic() - began_s
