"""A /proc in a folder: processes as files, some of which hang whoever reads them."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest

from tests.lab.hang import HANG_S

PAGES_OF_A_MIB = 256


class FakeProc:
    """Processes by their numbers. Use `release` at the end, should a file hang."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._hanging: list[Path] = []
        self._held: list[int] = []
        self._ticks = count(100)
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder))
        self.process(1, "init")

    def process(
        self,
        pid: int,
        comm: str,
        *,
        group: str = "0::/\n",
        users: tuple[int, int, int, int] = (0, 0, 0, 0),
        arguments: tuple[str, ...] = (),
        mib: int = 10,
        shared_mib: int = 0,
    ) -> None:
        """Start a process, in place of one that had this number."""
        self.end(pid)
        (self.folder / str(pid)).mkdir()
        self.write(pid, "comm", f"{comm}\n")
        self.write(pid, "cgroup", group)
        self.write(pid, "cmdline", "".join(f"{one}\0" for one in arguments))
        self.write(pid, "status", "Name:\tx\nUid:\t{}\t{}\t{}\t{}\nGid:\t7\t7\t7\t7\n".format(*users))
        self.write(pid, "statm", f"999999 {mib * PAGES_OF_A_MIB} {shared_mib * PAGES_OF_A_MIB} 1 0 1 0\n")
        self.write(pid, "stat", stat(started=next(self._ticks)))

    def qemu(self, pid: int, uuid: str, **given: object) -> None:
        self.process(pid, "qemu-system-x86", arguments=("qemu-system-x86_64", "-uuid", uuid), **given)  # type: ignore[arg-type]

    def end(self, pid: int) -> None:
        if (statm := self.folder / str(pid) / "statm").exists():
            statm.write_bytes(b"")  # for those who have it open
        shutil.rmtree(self.folder / str(pid), ignore_errors=True)
        self._hanging = [path for path in self._hanging if path.parent.name != str(pid)]

    def write(self, pid: int, name: str, text: str) -> None:
        (self.folder / str(pid) / name).write_text(text, encoding="utf-8")

    def hang(self, pid: int, name: str) -> None:
        """Let reading this file wait, as where somebody holds the lock on the process's memory."""
        path = self.folder / str(pid) / name
        self._put_fifo(path)
        self._hanging.append(path)

    def wait(self, is_over: threading.Event, _limit_s: float) -> bool:
        """Wait for an event, or until somebody waits at a file that hangs, whatever the limit; tell whether it came."""
        ends_s = time.monotonic() + HANG_S
        while not is_over.wait(0.001):
            assert time.monotonic() < ends_s
            if any(map(self._hold_reader, self._hanging)):
                return False
        return True

    def release(self) -> None:
        """Let everybody go on who waits: they find the files empty."""
        for path in self._hanging:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        while self._held:
            os.close(self._held.pop())

    def _put_fifo(self, path: Path) -> None:
        os.mkfifo(made := self.folder / "fifo")
        made.replace(path)

    def _hold_reader(self, path: Path) -> bool:
        """Tell whether somebody waits at this file; they go on waiting, and a new one is there for the next."""
        try:
            self._held.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody has opened it
            return False
        self._put_fifo(path)
        return True


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProc]:
    """Lend an empty /proc to what this process reads."""
    made = FakeProc(tmp_path / "proc", monkeypatch)
    yield made
    made.release()


def stat(*, flags: int = 0, user: int = 0, system: int = 0, started: int = 0) -> str:
    """Return a /proc/PID/stat, of a name that would deceive who looks for the first bracket."""
    return f"37 (a) b (c)) S 2 0 0 0 -1 {flags} 0 0 0 0 {user} {system} 0 0 20 0 1 0 {started} {'0 ' * 30}\n"
