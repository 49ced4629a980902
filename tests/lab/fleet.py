"""Many hosts on one machine: each a libvirtd of its own, with a name and a KSM of plain files, behind a stand-in of
ssh.

In its mount namespace a daemon sees plain files in the place of /sys/kernel/mm/ksm, and reads and writes those: the
machine's KSM is never touched. Thirty of them are up in 3 s, and take 124 MiB together.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo.embedded import QEMU_CONF
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.libvirtd import CONF, COVERED, REAPER, accepts, daemon_under_test, write_relay

KSM = {"run": 1, "pages_to_scan": 100, "sleep_millisecs": 20, "merge_across_nodes": 1, "full_scans": 1} | dict.fromkeys(
    ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile"), 0
)


class Fleet:
    """Hosts by their names, which `environ` has virtksm reach as by ssh; `pages_sharing` is each one's number."""

    def __init__(self, root: Path, names: Sequence[str], asking: Collection[str] = ()) -> None:
        self._root, self._asking = root, asking
        self._daemon = daemon_under_test()
        self.environ = {**os.environ, "PATH": f"{root}/bin:{os.environ['PATH']}"}
        self._refusing: list[socket.socket] = []
        (root / "bin").mkdir()
        (root / "libvirt.conf").write_text("mech_list: digest-md5\n", encoding="ascii")
        host = 'sys.argv[sys.argv.index("--") + 1]'
        write_relay(root / "bin" / "ssh", f"f'{root}/{{{host}}}/run/libvirt/{self._daemon.socket}'")
        script = "".join(f"{self._prepare(name, number)} &\n" for number, name in enumerate(names, 1))
        reaper = [sys.executable, "-I", "-S", str(REAPER), "sh", "-c", f"{script}wait"]
        with (root / "stderr").open("wb") as stderr:
            self._reaper = subprocess.Popen(
                reaper,
                stdin=subprocess.PIPE,  # closed, also by our death, it ends all daemons
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **self._daemon.environment, "SASL_CONF_PATH": str(root)},
                start_new_session=True,
            )
        wait_until(lambda: all(accepts(self.socket(name)) for name in names), HANG_S, "all hosts to answer")

    def socket(self, name: str) -> Path:
        """Tell where a host's socket is, or would be."""
        path = self._root / name / "run" / "libvirt" / self._daemon.socket
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def ksm(self, name: str) -> Mapping[str, int]:
        """Read a host's KSM."""
        return {file.name: int(file.read_text(encoding="ascii")) for file in (self._root / name / "ksm").iterdir()}

    def stop(self, name: str) -> None:
        """Stop a host's daemon (SIGSTOP)."""
        os.kill(int((self._root / name / "pid").read_text(encoding="ascii")), signal.SIGSTOP)

    def refuse(self, name: str) -> None:
        """Have a host without a daemon refuse connections: nobody listens at its socket."""
        bound = socket.socket(socket.AF_UNIX)
        self._refusing.append(bound)
        bound.bind(str(self.socket(name)))

    def close(self) -> None:
        """End all daemons."""
        for bound in self._refusing:
            bound.close()
        self._reaper.communicate()

    def _prepare(self, name: str, number: int) -> str:
        """Make a host's folders, and return the command that starts its daemon over them."""
        folder, ksm = self._root / name, self._root / name / "ksm"
        for one in (*COVERED, "ksm"):
            (folder / one).mkdir(parents=True)
        for file, value in {**KSM, "pages_sharing": number}.items():
            (ksm / file).write_text(f"{value}\n", encoding="ascii")
        how = CONF.replace('auth_unix_rw = "none"', 'auth_unix_rw = "sasl"') if name in self._asking else CONF
        conf = f'{how}host_uuid = "{uuid.uuid4()}"\n'
        (folder / "etc" / f"{self._daemon.name}.conf").write_text(conf, encoding="ascii")
        (folder / "etc" / "qemu.conf").write_text(QEMU_CONF, encoding="ascii")
        covered = {**{folder / one: place for one, place in COVERED.items()}, ksm: "/sys/kernel/mm/ksm"}
        binds = [f"mkdir -p {place} && mount --bind {source} {place}" for source, place in covered.items()]
        daemon = shlex.join([self._daemon.program, "--pid-file", str(folder / "pid")])
        steps = " && ".join([f"hostname {name}.fleet.invalid", *binds, f"exec {daemon}"])
        return shlex.join(["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", steps])


@contextmanager
def running_fleet(names: Sequence[str], asking: Collection[str] = ()) -> Iterator[Fleet]:
    """Lend a fleet, of which some ask for a password (SASL); at its end nothing of it is left."""
    root = Path(tempfile.mkdtemp(prefix="vk", dir="/tmp"))  # short, as socket paths have at most 108 characters
    fleet = None
    try:
        fleet = Fleet(root, names, asking)
        yield fleet
    finally:
        if fleet is not None:
            fleet.close()
        shutil.rmtree(root, ignore_errors=True)
