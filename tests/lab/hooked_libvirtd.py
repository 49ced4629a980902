"""A private libvirtd with the hook installed, and a spy hook behind it that tells what libvirt ran.

Out: the operations that libvirt called hooks for (`read_operations`), which is what the hook's own pokes and one-shots
are compared with. The spy comes last in the alphabet, so it also shows that the hooks after ours still run.
"""

from __future__ import annotations

import shlex
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.fixtures import QEMU_CACHE
from tests.lab.hook import install_hook, install_recorder
from tests.lab.libvirtd import PrivateLibvirtd

HANG_S = 90.0


class HookedLibvirtd:
    """A private libvirtd whose `qemu.d` holds the hook and the spy; what the hook finds around it is up to the test."""

    def __init__(self, daemon: PrivateLibvirtd) -> None:
        self.daemon = daemon
        self._hooks = daemon.hooks_dir / "qemu.d"
        self._hooks.mkdir()
        self._operations = daemon.root / "operations"
        self._seen = 0
        spy = self._hooks / "zz-spy"
        spy.write_text(f'#!/bin/sh\nprintf "%s %s\\n" "$2" "$3" >>{shlex.quote(str(self._operations))}\n')
        spy.chmod(0o755)

    def install(self, *, fifo: Path, virtksm: Path) -> None:
        """Install the hook with these constants, or replace it; libvirt looks for what to run at each call."""
        install_hook(self._hooks / "virtksm", fifo=fifo, virtksm=virtksm)

    def read_operations(self) -> list[str]:
        """Read the operations that hooks were called for since the last reading, "OPERATION SUBOPERATION" each."""
        if not self._operations.exists():
            return []
        operations = self._operations.read_text(encoding="utf-8").splitlines()
        new, self._seen = operations[self._seen :], len(operations)
        return new


class HookPlace:
    """What one test has around the hook: the FIFO's place, a one-shot's place, and what the recording one writes."""

    def __init__(self, hooked: HookedLibvirtd, folder: Path) -> None:
        self.hooked = hooked
        self.daemon = hooked.daemon
        self.runtime = folder / "run"
        self.fifo = self.runtime / "poke"
        self.virtksm = folder / "virtksm"
        self.record = folder / "record"
        self.hold = folder / "hold"
        self.runtime.mkdir()
        hooked.read_operations()
        hooked.install(fifo=self.fifo, virtksm=self.virtksm)

    def record_one_shots(self, *, hold: bool = False) -> None:
        """Put the recording one-shot where the hook looks for virtksm; with `hold` it runs until `let_go`."""
        if hold:
            self.hold.touch()
        install_recorder(self.virtksm, record=self.record, hold=self.hold)

    def let_go(self) -> None:
        """Let a held one-shot end."""
        self.hold.unlink(missing_ok=True)


class OtherHost(PrivateLibvirtd):
    """A private libvirtd that takes itself for another host (name and UUID), so that guests can be migrated to it."""

    def __init__(self) -> None:
        super().__init__(cache=QEMU_CACHE)
        with (self.root / "etc" / "libvirtd.conf").open("a", encoding="ascii") as conf:
            conf.write(f'host_uuid = "{uuid.uuid4()}"\n')
        self._reaper += ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', "elsewhere"]


@contextmanager
def hooked_libvirtd(daemon: PrivateLibvirtd | None = None) -> Iterator[HookedLibvirtd]:
    """Run a private libvirtd, `daemon` if it is given, with the hook in it."""
    daemon = daemon or PrivateLibvirtd(cache=QEMU_CACHE)
    try:
        hooked = HookedLibvirtd(daemon)
        nowhere = daemon.root / "nowhere"
        hooked.install(fifo=nowhere, virtksm=nowhere)  # before the start: only then does libvirt look for hooks
        daemon.start()
        yield hooked
    finally:
        daemon.close()


@contextmanager
def killed_when_hanging(daemon: PrivateLibvirtd) -> Iterator[None]:
    """Kill the daemon when a hook hangs it: libvirt's calls would never return, and cannot be interrupted."""
    guard = threading.Timer(HANG_S, daemon.kill)
    guard.start()
    try:
        yield
    finally:
        guard.cancel()
        guard.join()
