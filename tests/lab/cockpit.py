"""A real Cockpit on loopback, for a host whose virtksm is a test's own: cockpit-ws, its bridge, the page of this tree.

Everything lives in one mount namespace, in which /etc/virtksm, /run/virtksm and /var/lib/virtksm are a temporary
folder's and so nobody else's, and libvirt's sockets those of the private libvirtd: the page, the command that it runs
and the agent all use their ordinary paths, and `qemu:///system`. There is no login:
`cockpit-ws --local-session` serves one session, root's or that of a user without rights, to whoever connects.
The system's bus is one of its own, with nobody on it: without any, Cockpit's bridge ends when it is asked a second time
(337, Debian 13). Processes are ended by their handles, and end with the process that started them.
"""

import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO, Self

from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.ports import free_port
from tests.real.agent_process import AgentHome

PROJECT = Path(__file__).parents[2]
NOBODY = 65534
COCKPIT_WS = "/usr/lib/cockpit/cockpit-ws"
URI = "qemu:///system"
PAGE = "/cockpit/@localhost/virtksm/index.html"
LOCK_PATH = Path("/run/lock/virtksm-cockpit.lock")
BUS = """\
<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
"""
# Folder in the temporary folder, and what it covers.
_COVERED = {"etc": "/etc/virtksm", "run": "/run/virtksm", "lib": "/var/lib/virtksm"}


class CockpitFailed(Exception):
    """Cockpit did not start; carries what it said."""


class CockpitHome(AgentHome):
    """The ordinary places of virtksm, as they are seen in the namespace."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config = folder / "etc" / "virtksm.toml"
        self.drop_in = folder / "etc" / "conf.d" / "80-cockpit.toml"

    def command(self, *arguments: str) -> list[str]:
        return [str(self.folder / "bin" / "virtksm"), *arguments]


class CockpitHost:
    """The namespace and what runs in it; use it as a context manager."""

    def __init__(self, libvirtd: PrivateLibvirtd) -> None:
        self._sockets = libvirtd.socket_path.parent
        self._folder = Path(tempfile.mkdtemp(prefix="vc", dir="/tmp"))  # a socket's path has at most 108 characters
        self._folder.chmod(0o755)
        self.home = CockpitHome(self._folder)
        # One at a time: whoever removes a folder of the machine that another covers uncovers it.
        self._lock = LOCK_PATH.open("ab")
        self._made: list[Path] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def prefix(self) -> list[str]:
        """Tell what to put before a command that is to run in the namespace."""
        return ["nsenter", f"--mount=/proc/{self._processes[0].pid}/ns/mnt", "--"]

    @property
    def _bus(self) -> str:
        return f"unix:path={self._folder / 'bus'}"

    def serve(self, *, as_nobody: tuple[int, ...] | None = None) -> str:
        """Start a Cockpit with one session and return its address.

        The session is root's, or with `as_nobody` that of nobody, who is in these groups.
        """
        bridge = self._folder / "bin" / ("bridge" if as_nobody is None else "bridge-as-nobody")
        become = "" if as_nobody is None else f"setpriv --reuid={NOBODY} --regid={NOBODY} {_groups(as_nobody)} "
        _write_program(bridge, f"exec {become}cockpit-bridge")
        port = free_port()
        command = [COCKPIT_WS, "--no-tls", "-a", "127.0.0.1", "-p", str(port), f"--local-session={bridge}"]
        log = self._folder / f"cockpit-{port}.log"
        with log.open("wb") as said:
            server = self._start([*self.prefix, *command], said)

        def answers() -> bool:
            if server.poll() is not None:
                raise CockpitFailed(log.read_text(errors="replace")[-2000:])
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, HANG_S, "cockpit-ws to listen")
        return f"http://127.0.0.1:{port}"

    def close(self) -> None:
        """End all that runs here and remove the folder."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(HANG_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(HANG_S)
        for place in self._made:
            place.rmdir()
        shutil.rmtree(self._folder)
        self._lock.close()

    def __enter__(self) -> Self:
        self._lay_out()
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for place in map(Path, _COVERED.values()):
            if not place.exists():
                place.mkdir()
                self._made.append(place)
        folder = shlex.quote(str(self._folder))
        binds = [f"mount --bind {folder}/{name} {covered}" for name, covered in _COVERED.items()]
        binds.append(f"mount --bind {shlex.quote(str(Path(sys.prefix).resolve()))} {folder}/venv")
        binds.append(f"mount --bind {shlex.quote(str(self._sockets))} /run/libvirt")
        script = " && ".join([*binds, "echo ready", "exec sleep infinity"])
        holder = self._start(["unshare", "--mount", "--propagation", "private", "sh", "-c", script], subprocess.PIPE)
        assert holder.stdout is not None
        with holder.stdout as pipe:
            if pipe.readline() != b"ready\n":
                raise CockpitFailed("the mount namespace could not be made")
        bus = self._folder / "bus.conf"
        bus.write_text(BUS.format(address=self._bus), encoding="ascii")
        self._start(["dbus-daemon", f"--config-file={bus}", "--nofork", "--nopidfile"], subprocess.DEVNULL)
        wait_until((self._folder / "bus").exists, HANG_S, "the bus to listen")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lay_out(self) -> None:
        """Make the folders, the command, and the page as docs/guide.md installs it."""
        for name in (*_COVERED, "etc/conf.d", "tree", "venv", "bin", "share"):
            (self._folder / name).mkdir()
        # Not the tree's own, where nobody else may read.
        python, tree = self._folder / "venv" / "bin" / "python", self._folder / "tree"
        (tree / "tests").mkdir()
        for name in ("cockpit", "tests/lab", "virtksm"):
            places = (str(PROJECT / name), str(tree / name))
            subprocess.run(["cp", "-r", "--no-preserve=mode", "--preserve=timestamps", *places], check=True)
        _write_program(self._folder / "bin" / "virtksm", f'PYTHONPATH={tree} exec {python} -m virtksm "$@"')
        page = self._folder / "share" / "cockpit"
        page.mkdir()
        (page / "virtksm").symlink_to(tree / "cockpit")

    def _start(self, command: list[str], output: BinaryIO | int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=self._environment(),
        )
        self._processes.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("LIBVIRT_", "XDG_", "COCKPIT_"))
            },
            "PATH": f"{self._folder / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._folder),
            "DBUS_SYSTEM_BUS_ADDRESS": self._bus,
            "XDG_DATA_HOME": str(self._folder / "share"),
        }


def _groups(gids: tuple[int, ...]) -> str:
    return f"--groups={','.join(map(str, gids))}" if gids else "--clear-groups"


def _write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
