"""A throwaway libvirt: the folder of an embedded QEMU driver, and the cleaning up after it.

In: nothing. Out: a URI `qemu:///embed?root=DIR` with DIR short, fresh and configured, and at the end no guest, process
or file left of it. libvirt allows one embedded root a process, and wants an event loop running before it is opened:
both are the caller's affair, as this module opens no connection and does not import libvirt. `qemu_processes` and
`end_all` also serve a parent that cleans up after a killed demonstration.
"""

import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Sockets below the root have at most 108 characters, so the prefix is short.
ROOT_PREFIX = "vk"
# Root throughout: with another user libvirt believes that KVM's availability changed and examines QEMU again at every
# start (44 s instead of 0.5). Files instead of virtlogd, no namespaces and no cgroups: nothing is needed of the host.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
"""
_TERM_GRACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRoot:
    """The folder of one embedded libvirt driver."""

    path: Path

    @property
    def uri(self) -> str:
        """Return the libvirt URI that opens it."""
        return f"qemu:///embed?root={self.path}"


@contextmanager
def embedded_libvirt(parent: Path) -> Iterator[EmbeddedRoot]:
    """Lend an embedded libvirt's root, fresh and configured, and leave nothing of it behind; raises OSError.

    Enter it before libvirt is imported, which then reads that its messages go to a file of the root; close connections
    before leaving it.
    """
    path = Path(tempfile.mkdtemp(prefix=ROOT_PREFIX, dir=parent))
    try:
        (path / "etc").mkdir()
        (path / "etc" / "qemu.conf").write_text(QEMU_CONF, encoding="ascii")
        os.environ |= {"LIBVIRT_LOG_OUTPUTS": f"3:file:{path}/libvirt.log", "LIBVIRT_LOG_FILTERS": "3:*"}
        yield EmbeddedRoot(path=path)
    finally:
        end_all(qemu_processes(path))
        shutil.rmtree(path, ignore_errors=True)


def qemu_processes(root: Path) -> list[int]:
    """Find the QEMU processes whose command line names a path below `root`, by pid."""
    below = f"{root}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        is_qemu = b"qemu" in arguments[0].rsplit(b"/", 1)[-1]
        if is_qemu and any(below in argument for argument in arguments[1:]):
            found.append(int(entry.name))
    return sorted(found)


def end_all(pids: Iterable[int]) -> None:
    """End these processes: SIGTERM first, SIGKILL for those still there 2 s later, and wait until they are gone.

    They are held by pidfd from the start, so that a pid used again by another process is never hit.
    """
    handles = []
    for pid in pids:
        try:
            handles.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    try:
        remaining = handles
        for number in (signal.SIGTERM, signal.SIGKILL):
            for handle in remaining:
                _send(handle, number)
            remaining = _still_running(remaining, deadline=time.monotonic() + _TERM_GRACE_S)
    finally:
        for handle in handles:
            os.close(handle)


def _send(handle: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return


def _still_running(handles: list[int], deadline: float) -> list[int]:
    remaining = list(handles)
    while remaining and (left := deadline - time.monotonic()) > 0:
        ended, _, _ = select.select(remaining, [], [], left)
        remaining = [handle for handle in remaining if handle not in ended]
        if not ended:
            break
    return remaining
