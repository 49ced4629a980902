"""A private libvirtd: the real daemon, with folders of its own, beside which the system's own libvirt is never touched.

Where the environment's MODULAR names a folder of modular daemons (`script/test modular` builds one), it is their
virtqemud instead.

It runs in a mount namespace where a short temporary folder's subfolders lie over /etc/libvirt, /run/libvirt and
/var/{lib,log,cache}/libvirt. Those folders are made if they are missing, empty (/run/libvirt is, until the system's
own libvirt has run once since boot); nothing else is created outside the namespace. Its sockets are reachable from
outside under the temporary folder: `uri`. Guests outlive the daemon, as everywhere, and are ended by `close`, or with
the process that has started it. Processes are found by the mounts they see, never by name; reaper.py buries them.
"""

import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self
from xml.etree import ElementTree as ET

from demo.embedded import QEMU_CONF
from tests.lab.hang import HANG_S, SLOWER

# Folder in the temporary folder, and what it covers.
COVERED = {
    "etc": "/etc/libvirt",
    "run/libvirt": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "3:file:/var/log/libvirt/daemon.log"
"""
REAPER = Path(__file__).with_name("reaper.py")


class Daemon(NamedTuple):
    """A daemon of libvirt's that serves QEMU; `scheme` is the one that URIs of it have here."""

    name: str
    program: str
    socket: str
    scheme: str
    environment: Mapping[str, str]


def daemon_under_test() -> Daemon:
    """Return the installed libvirtd, or the virtqemud below the folder that MODULAR names."""
    folder = os.environ.get("MODULAR")
    if folder is None:
        return Daemon("libvirtd", "libvirtd", "libvirt-sock", "qemu", {})
    (drivers,) = Path(folder).resolve().glob("usr/lib/*/libvirt/connection-driver")
    environment = {"LD_LIBRARY_PATH": str(drivers.parents[1]), "LIBVIRT_DRIVER_DIR": str(drivers)}
    program = str(Path(folder, "usr/sbin/virtqemud").resolve())
    return Daemon("virtqemud", program, "virtqemud-sock", "qemu+unix", environment)


class LibvirtdFailed(Exception):
    """The private libvirtd did not start or answer in time; carries its log's end."""


RELAY = """#!/usr/bin/python3 -IS
import os, select, socket, sys
here = socket.socket(socket.AF_UNIX)
try:
    here.connect({path})
except OSError as error:
    sys.exit(error.strerror)
while True:
    ready, _, _ = select.select([0, here], [], [])
    for source in ready:
        piece = os.read(0, 65536) if source == 0 else here.recv(65536)
        if not piece:
            raise SystemExit
        here.sendall(piece) if source == 0 else os.write(1, piece)
"""


def write_relay(file: Path, path: str) -> None:
    """Write a program that leads to the socket whose path this expression is, of what the program's `sys` has."""
    file.write_text(RELAY.format(path=path), encoding="utf-8")
    file.chmod(0o755)


class PrivateLibvirtd:
    """One private libvirtd, off until `start`; use it as a context manager, or `close` it.

    `cache` may name a folder that outlives this object: libvirt keeps what it learned of QEMU there, which saves the
    next first guest about 4 s. Without `huge_pages` the guests' memory is made of small pages alone, so that KSM counts
    every page of theirs: kernels since 6.12 replace the zero pages of a huge page that KSM splits by the shared zero
    page, where no counter of KSM sees them.
    """

    def __init__(self, *, cache: Path | None = None, huge_pages: bool = True) -> None:
        # "vk" and /tmp, because unix socket paths have at most 108 characters.
        self.root = Path(tempfile.mkdtemp(prefix="vk", dir="/tmp"))
        for name in COVERED:
            (self.root / name).mkdir(parents=True)
        self._sources = {name: self.root / name for name in COVERED}
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            self._sources["cache"] = cache.resolve()
        self._daemon = daemon_under_test()
        self.conf = self.root / "etc" / f"{self.name}.conf"
        self.conf.write_text(CONF, encoding="ascii")
        self.hooks_dir = self.root / "etc" / "hooks"
        self.hooks_dir.mkdir()
        (self.root / "etc" / "qemu.conf").write_text(QEMU_CONF, encoding="ascii")
        self._reaper = [sys.executable, "-I", "-S", str(REAPER), *([] if huge_pages else ["--without-huge-pages"])]
        self._reapers: list[subprocess.Popen[bytes]] = []
        self._pid = 0
        self._handle = -1  # the daemon's pidfd; it is no child of ours, and no other process can take its place

    @property
    def name(self) -> str:
        """Tell the daemon's name, as its process has it."""
        return self._daemon.name

    @property
    def socket_path(self) -> Path:
        """Tell where its read-write socket is, seen from outside."""
        return self.root / "run" / "libvirt" / self._daemon.socket

    @property
    def uri(self) -> str:
        """Tell the URI to open it with, from any process of this machine."""
        return f"{self._daemon.scheme}:///system?socket={self.socket_path}"

    @property
    def far_uri(self) -> str:
        """Tell a URI as of another host: by a program that may lead anywhere, and leads here."""
        relay = Path(self.root) / "relay"
        write_relay(relay, repr(str(self.socket_path)))
        return f"qemu+ext:///system?command={relay}"

    @property
    def log(self) -> Path:
        """Tell where the daemon's own messages go."""
        return self.root / "log" / "daemon.log"

    @property
    def pid_file(self) -> Path:
        """Tell where the daemon writes its pid; it removes the file when it ends in order."""
        return self.root / "daemon.pid"

    @property
    def running(self) -> bool:
        """Tell whether the daemon runs (a frozen one does)."""
        return self._handle >= 0 and not _ended(self._handle, 0)

    @property
    def pid(self) -> int:
        """Tell the daemon's pid; raises LibvirtdFailed while it is off."""
        if self._handle < 0:
            raise LibvirtdFailed("the private libvirtd is off")
        return self._pid

    def start(self, timeout_s: float = HANG_S) -> None:
        """Start the daemon and wait until it answers; raises LibvirtdFailed."""
        if self._handle >= 0:
            raise LibvirtdFailed("the private libvirtd runs already")
        binds = [
            f"mkdir -p {covered} && mount --bind {shlex.quote(str(self._sources[name]))} {covered}"
            for name, covered in COVERED.items()
        ]
        # Every step execs the next, so the pid that we know is the daemon's own.
        script = " && ".join([*binds, f"exec {shlex.join(self._command())}"])
        # A dead predecessor's socket would refuse connections; without it, existing means listening soon.
        self.socket_path.unlink(missing_ok=True)
        with (self.root / "stderr").open("ab") as stderr:
            reaper = subprocess.Popen(
                [*self._reaper, "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.PIPE,  # closed, also by our death, it ends the daemon and all guests
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**_environment(), **self._daemon.environment},
                start_new_session=True,
            )
        self._reapers.append(reaper)
        assert reaper.stdout is not None
        with reaper.stdout as pipe:
            self._pid = int(pipe.readline())
        try:
            self._handle = os.pidfd_open(self._pid)
        except ProcessLookupError:
            raise LibvirtdFailed(f"the private libvirtd ended: {self._last_words()}") from None
        self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float = HANG_S) -> None:
        """Wait until the daemon accepts connections; raises LibvirtdFailed when it ends or stays silent."""
        deadline = time.monotonic() + timeout_s
        while not accepts(self.socket_path):
            if not self.running:
                self._forget()
                raise LibvirtdFailed(f"the private libvirtd ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise LibvirtdFailed(f"the private libvirtd is silent after {timeout_s:g} s: {self._last_words()}")
            time.sleep(0.01)

    def stop(self, timeout_s: float = 5.0 * SLOWER) -> None:
        """Stop the daemon (SIGTERM, at last SIGKILL) and leave its guests running; nothing happens while it is off."""
        self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """Kill the daemon (SIGKILL), as a crash does; its guests run on."""
        self._end(signal.SIGKILL, HANG_S)

    def restart(self) -> None:
        """Stop the daemon in order and start it again over the same folders and guests."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the daemon (SIGSTOP): connections stay, answers do not come."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen daemon go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def forget_guests(self) -> None:
        """Remove what the daemon, which is off, has written down of running guests."""
        for status in (self.root / "run" / "libvirt" / "qemu").glob("*.xml"):
            status.unlink()

    def guest_pid(self, name: str) -> int:
        """Tell the pid of the QEMU process of a running guest; raises OSError when it has none."""
        # From libvirt's status file: the name of its pid file holds `&lt;` where the guest's name holds `<`.
        status = ET.parse(self.root / "run" / "libvirt" / "qemu" / f"{name}.xml")  # noqa: S314 - libvirt's own file
        return int(status.getroot().attrib["pid"])

    def processes(self) -> list[int]:
        """Find every process that lives in the daemon's mount namespaces, by pid: itself, guests, helpers."""
        marker = f"/{self.root.name}/".encode()  # the paths there are relative to the file system, not to /
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                seen = (entry / "mountinfo").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if marker in seen:
                found.append(int(entry.name))
        return sorted(found)

    def close(self) -> None:
        """End the daemon and all guests, and remove the folder."""
        if self.running:
            self.resume()  # a frozen one would not hear the SIGTERM
        self.stop()
        for reaper in self._reapers:
            reaper.communicate(timeout=HANG_S)  # closes its standard input
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except LibvirtdFailed:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _command(self) -> list[str]:
        return [self._daemon.program, "--pid-file", str(self.pid_file)]

    def _end(self, number: signal.Signals, timeout_s: float) -> None:
        if self._handle < 0:
            return
        # As systemd does: what ignores its SIGTERM is killed. libvirtd 11.3 does so now and then.
        for sent in (number, signal.SIGKILL):
            if self.running:
                signal.pidfd_send_signal(self._handle, sent)
            if _ended(self._handle, timeout_s):
                break
        self._forget()

    def _forget(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def _last_words(self) -> str:
        texts = [path.read_text(errors="replace")[-2000:] for path in (self.root / "stderr", self.log) if path.exists()]
        return "\n".join(texts)


@contextmanager
def restarted_after_crashes(daemon: PrivateLibvirtd) -> Iterator[None]:
    """Start a daemon that ends by itself again, as systemd does (Restart=on-failure).

    libvirtd 9.0.0 crashes at times when it goes on after it was frozen: a thread that takes away the event callbacks of
    a client that has left meanwhile finds them gone (SIGSEGV in a thread prio-rpc-libvir).
    """
    over = threading.Event()

    def watch() -> None:
        is_over = False
        while not is_over:
            is_over = over.wait(0.02)
            if not daemon.running:
                daemon.kill()
                daemon.start()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _ended(handle: int, timeout_s: float) -> bool:
    ended, _, _ = select.select([handle], [], [], timeout_s)
    return bool(ended)


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0.2)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _environment() -> dict[str, str]:
    # Settings meant for a libvirt inside the test process must not reach the daemon, which has its own; nor must its
    # guests the host's systemd-machined, which takes a name once: the suite's two parts have guests of the same names.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIBVIRT_")}
    return {**kept, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
