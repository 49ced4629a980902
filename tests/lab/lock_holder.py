"""A process that makes whoever reads its /proc/PID/cmdline wait: lock_holder.c, built and run; needs root.

`ps` waits for it, too, so keep it for seconds; it ends by itself after HELD_S. It is called like a guest's QEMU.
"""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import wait_until
from tests.lab.nobody import NOBODY

HELD_S = 25 * SLOWER
FUSE = os.makedev(10, 229)
SOURCE = Path(__file__).with_suffix(".c")

HoldLock = Callable[..., int]


@pytest.fixture
def hold_lock() -> Iterator[HoldLock]:
    """Lend a function that starts such a process of a user for a guest's UUID, and returns its pid."""
    with lock_holders() as hold:
        yield hold


@contextmanager
def lock_holders() -> Iterator[HoldLock]:
    """Give that function; what it has started ends with this."""
    with TemporaryDirectory(prefix="vl", dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # any user may go there
        program, node = folder / "lock_holder", folder / "fuse"
        subprocess.run(["gcc", "-O2", "-o", program, SOURCE, "-lpthread"], check=True)
        # The system's own node may be for root alone; a user gets at FUSE through fusermount3 or a user namespace.
        os.mknod(node, stat.S_IFCHR | 0o600, FUSE)
        yield lambda uuid, user=NOBODY: stack.enter_context(_held(program, node, uuid, user))


@contextmanager
def _held(program: Path, node: Path, uuid: str, user: int) -> Iterator[int]:
    mount_point = node.with_name(f"mounted-{user}")
    mount_point.mkdir()
    command = [str(program), str(node), str(mount_point), str(user), str(HELD_S), "-uuid", uuid]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            wait_until(lambda: _waits(pid), HANG_S, "the lock to be waited for")
            yield pid
        finally:
            process.kill()


def _waits(pid: int) -> bool:
    """Tell whether a thread of it waits for the lock: that of mmap(), behind which every reader queues."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return "D" in states
