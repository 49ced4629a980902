"""The contenders that are processes: virtksm's agent with either policy, and the real ksmtuned; and the list of all.

The real ksmtuned is the script of Debian's package, unpacked by script/setup, unchanged, run by bash in a mount
namespace of its own, where a folder of the run's lies over /etc, so that it reads our ksmtuned.conf whatever the
machine has. It is ended by its process group's id. What it writes is the kernel's KSM, which script/bench has locked,
and its pid file in the run's folder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.race.contenders import AdvisorBoot, AdvisorLate, Clairvoyant, Contender, Default, Flat, Off
from bench.race.ground import Ground
from bench.race.measures import read_owed_mib
from bench.race.steps import Work
from bench.rest import process_cpu_ns
from bench.stage import Agent
from tests.lab.ksmtuned_package import find_ksmtuned_file

UNDER_PRESSURE_LAW = "policy = 'ksmtuned'\n[ksmtuned]\nthres_coef = 100\n"
UNDER_PRESSURE_CONF = "KSM_THRES_COEF=100\n"
ADAPTIVE = '[adaptive]\nengage = "always"\n'


class PeerMissing(Exception):
    """A contender's program is not there, or ended at once."""


class VirtksmAgent(Contender):
    """A real `virtksm agent` on the ground's libvirtd; with `waits_parked` the clock starts once it owes nothing."""

    def __init__(self, config: str, *, waits_parked: bool, concession: str) -> None:
        self._config = config
        self._waits_parked = waits_parked
        self.concession = concession
        self._agent: Agent | None = None

    def begin(self, ground: Ground, work: Work) -> None:
        self._ksm = ground.ksm
        self._agent = Agent(ground.folder / "agent", ground.uri, self._config)
        self._agent.__enter__()

    @property
    def is_ready(self) -> bool:
        if not self._waits_parked or self._agent is None:
            return True
        numbers = self._agent.passes()[-1]["decision"]["numbers"]
        return not read_owed_mib(numbers) and self._ksm.read("pages_to_scan") == 0

    def end(self) -> None:
        if self._agent is not None:
            self._agent.__exit__()

    @property
    def own_cpu_s(self) -> float | None:
        return None if self._agent is None else process_cpu_ns(self._agent.pid) / 1e9

    def decisions(self) -> Sequence[Mapping[str, Any]]:
        return [] if self._agent is None else [_told(line) for line in self._agent.passes()]


class RealKsmtuned(Contender):
    concession = (
        "the script of Debian's package, unchanged, begun 5 s before the first guest; its configuration tells it that "
        "memory is short (KSM_THRES_COEF=100), since its search for guests (pgrep '^qemu-system.*-enable-kvm') finds "
        "none of libvirt's: it boosts at every step, 60 s apart, and never stops"
    )

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, ground: Ground, work: Work) -> None:
        script = find_ksmtuned_file("usr/sbin/ksmtuned")
        if script is None:
            raise PeerMissing("ksmtuned's script is not there: run script/setup")
        etc = ground.folder / "etc"
        etc.mkdir()
        (etc / "ksmtuned.conf").write_text(UNDER_PRESSURE_CONF, encoding="ascii")
        if Path("/etc/alternatives").is_dir():  # where /usr/bin/awk leads to
            shutil.copytree("/etc/alternatives", etc / "alternatives", symlinks=True)
        pid_file = ground.folder / "ksmtuned.pid"
        shell = f"mount --bind {shlex.quote(str(etc))} /etc && exec bash {shlex.quote(str(script))}"
        with (ground.folder / "ksmtuned.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PIDFILE": str(pid_file)},
                start_new_session=True,
            )
        deadline_s = time.monotonic() + 5.0
        while not (pid_file.exists() and pid_file.read_text(encoding="ascii").strip()):
            if time.monotonic() > deadline_s:
                said = (ground.folder / "ksmtuned.log").read_text(encoding="utf-8", errors="replace")
                raise PeerMissing(f"ksmtuned did not begin: {said[-500:]}")
            time.sleep(0.02)

    def end(self) -> None:
        if self._process is None:
            return
        # The group is the script's loop and its sleep; the script itself has ended, unburied, so its id is still its.
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(self._process.pid, number)
        self._process.wait()


CONTENDERS: Mapping[str, Callable[[], Contender]] = {
    "adaptive": lambda: VirtksmAgent(
        ADAPTIVE,
        waits_parked=True,
        concession='virtksm agent, policy "adaptive" at its defaults but for engage = "always"; begun before the '
        "first guest, the clock starts when it has parked and owes nothing",
    ),
    "ksmtuned-law": lambda: VirtksmAgent(
        UNDER_PRESSURE_LAW,
        waits_parked=False,
        concession='virtksm agent, policy "ksmtuned", told that memory is short (thres_coef = 100): each start or stop '
        "of a guest is a step, too",
    ),
    "ksmtuned": RealKsmtuned,
    "advisor-boot": AdvisorBoot,
    "advisor-late": AdvisorLate,
    "default": Default,
    "flat": Flat,
    "clairvoyant": Clairvoyant,
    "off": Off,
}


def _told(line: Mapping[str, Any]) -> dict[str, Any]:
    decision = line["decision"]
    return {
        "unix_s": datetime.fromisoformat(line["timestamp"]).timestamp(),
        "triggers": line["triggers"],
        "rule": decision["rule"],
        "reason": decision["reason"],
        "numbers": decision["numbers"],
        "after": line["after"],
    }
