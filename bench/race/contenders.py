"""Who tunes KSM in a race: virtksm's agent, the real ksmtuned, the kernel's advisor, its defaults, and the bounds.

A contender begins before the first guest of a run starts, learns what has happened some twenty times a second, and
ends after the last sample. It writes to the KSM that script/bench has locked, and to nothing else.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.race.ground import Ground
from bench.race.works import Work
from bench.sim.real_memory import MergeableProcess
from bench.stage import running_agent
from demo.guests import KEPT_MIB, PayloadGuest
from tests.lab import reaper
from tests.lab.ksm import Ksm, wait_until
from tests.lab.ksmtuned_package import find_ksmtuned_file

BACKLOG = ("settling_bytes", "new_bytes", "scanned_once_bytes")
"""The numbers of a decision of the policy adaptive that say what is not scanned yet."""
WARM_MIB, WARM_SCANS = 4, 5
FRUITLESS_SCANS = 10
"""More than smart_scan's 8: so many full scans without more savings, and there is no more to find."""
FRUITFUL_SHARE = 0.001
MERGED_SHARE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a contender may know: all guests of the work have been started, have filled their memory."""

    all_started: bool
    all_settled: bool


class Contender:
    """One contender in one run; this one has fixed settings, the kernel's defaults if none are given."""

    def __init__(self, **settings: int) -> None:
        self._settings = settings
        self._stack = ExitStack()

    def begin(self, ground: Ground, work: Work) -> None:
        """Take up work; KSM is on, at the kernel's defaults."""
        ground.ksm.write(**self._settings)

    @property
    def is_ready(self) -> bool:
        """Tell whether the clock may start."""
        return True

    def act(self, moment: Moment) -> None:
        """Do what is due now."""

    def end(self) -> None:
        """Stop; the ground is cleared afterwards."""
        self._stack.close()

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        """Tell what an agent decided, in order: its log's `pass_completed` lines."""
        return ()


class AdvisorBoot(Contender):
    """The kernel's advisor, switched on before any guest, as if the machine had just been booted.

    It takes all CPU time that ksmd ever used for that of its first full scan, which leads it to 10 pages where that is
    much. So it makes some over a tiny process first.
    """

    def begin(self, ground: Ground, work: Work) -> None:
        guest = PayloadGuest(name="warm", memory_mib=WARM_MIB + KEPT_MIB, own_mib=WARM_MIB)
        with MergeableProcess(guest):
            ground.ksm.write(advisor_mode="scan-time")
            until_scans = ground.ksm.read("full_scans") + WARM_SCANS
            wait_until(lambda: ground.ksm.read("full_scans") >= until_scans, 120.0, f"{WARM_SCANS} full scans")


class AdvisorLate(Contender):
    """The kernel's advisor, switched on when the last guest has been started."""

    def begin(self, ground: Ground, work: Work) -> None:
        self._due: Ksm | None = ground.ksm

    def act(self, moment: Moment) -> None:
        if moment.all_started and self._due is not None:
            self._due.write(advisor_mode="scan-time")
            self._due = None


class Clairvoyant(Contender):
    """Scans flat out from the moment in which the last guest has settled until 99 % is merged, or no more can be."""

    def begin(self, ground: Ground, work: Work) -> None:
        self._ksm = ground.ksm
        self._scanning: bool | None = None
        self._best_pages = self._best_at_scan = 0
        self._enough_pages = round(work.expected_sharing_pages * MERGED_SHARE)
        self._ksm.write(pages_to_scan=0, sleep_millisecs=1000)

    def act(self, moment: Moment) -> None:
        if self._scanning is None and moment.all_settled:
            # Smaller batches than flat out's: within one it could not stop, and sleep 0 makes them as fast.
            self._ksm.write(pages_to_scan=10_000, sleep_millisecs=0)
            self._scanning = True
            self._best_at_scan = self._ksm.read("full_scans")
        elif self._scanning and self._is_done():
            self._ksm.write(pages_to_scan=0, sleep_millisecs=10_000)
            self._scanning = False

    def _is_done(self) -> bool:
        pages, scan = self._ksm.read("pages_sharing"), self._ksm.read("full_scans")
        if pages > self._best_pages + self._enough_pages * FRUITFUL_SHARE:
            self._best_pages, self._best_at_scan = pages, scan
        return pages >= self._enough_pages or scan > self._best_at_scan + FRUITLESS_SCANS


class Adaptive(Contender):
    """A real `virtksm agent` on the ground's libvirtd; the clock starts once it idles without a backlog.

    It may take `max_cpu_percent` of a core, all of it as peers may; 0, the default, is half a core of two CPUs.
    """

    def __init__(self, max_cpu_percent: int) -> None:
        super().__init__()
        self._law = f'[adaptive]\nengage = "always"\nmax_cpu_percent = {max_cpu_percent}\n'

    def begin(self, ground: Ground, work: Work) -> None:
        self._ksm = ground.ksm
        self._agent = self._stack.enter_context(running_agent(ground.folder / "agent", ground.uri, self._law))

    @property
    def is_ready(self) -> bool:
        (*_, last) = self.decisions()
        return read_backlog_mib(last["decision"]["numbers"]) == 0 and self._ksm.read("pages_to_scan") == 0

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        return self._agent.lines("pass_completed")


class RealKsmtuned(Contender):
    """The script of Debian's package, unpacked by script/setup, unchanged.

    A mount namespace puts a folder of the run over /etc. Its ksmtuned.conf there says that memory is always short,
    since the script's search for guests finds none of libvirt's. Then it boosts at every step, 60 s apart.
    """

    def begin(self, ground: Ground, work: Work) -> None:
        script = find_ksmtuned_file("usr/sbin/ksmtuned")
        etc = ground.folder / "etc"
        etc.mkdir()
        (etc / "ksmtuned.conf").write_text("KSM_THRES_COEF=100\n", encoding="ascii")
        if Path("/etc/alternatives").is_dir():  # where /usr/bin/awk leads to
            shutil.copytree("/etc/alternatives", etc / "alternatives", symlinks=True)
        pid_file = ground.folder / "ksmtuned.pid"
        shell = f"mount --bind {shlex.quote(str(etc))} /etc && exec bash {shlex.quote(str(script))}"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, *command],
            stdin=subprocess.PIPE,  # closed, it ends all of them
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PIDFILE": str(pid_file)},
        )
        self._stack.enter_context(process)
        wait_until(lambda: pid_file.exists() and pid_file.stat().st_size > 0, 5.0, "ksmtuned to begin")


def read_backlog_mib(numbers: Mapping[str, Any]) -> float:
    """Tell the backlog that a decision of the policy adaptive says, in the log's units."""
    return float(sum(numbers[name] for name in BACKLOG)) / (1 << 20)


CONTENDERS: Mapping[str, Callable[[], Contender]] = {
    "adaptive": lambda: Adaptive(max_cpu_percent=100),
    "adaptive-installed": lambda: Adaptive(max_cpu_percent=0),
    "ksmtuned": RealKsmtuned,
    "advisor-boot": AdvisorBoot,
    "advisor-late": AdvisorLate,
    "default": Contender,
    "flat": lambda: Contender(pages_to_scan=100_000, sleep_millisecs=0),
    "clairvoyant": Clairvoyant,
    "off": lambda: Contender(run=0),
}
