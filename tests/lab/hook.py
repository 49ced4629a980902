"""The libvirt hook for tests: a copy with constants of the test's own, listeners on its FIFO, a `virtksm` that records.

Out: what the hook wrote into the FIFO (`Listener.read_pokes`) and how it started its one-shot (`read_records`). Nothing
here touches the FIFO or the program of an installed virtksm.
"""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab.hang import HANG_S

HOOK = Path(__file__).resolve().parents[2] / "hooks" / "virtksm"
NOWHERE = Path("/nonexistent")
READ_AT_MOST = 1 << 20

_RECORDER = """\
#!/usr/bin/python3 -IS
import json, os, sys, time
record, hold = {record!r}, {hold!r}
descriptors = {{}}
for name in os.listdir("/proc/self/fd"):
    try:
        descriptors[name] = os.readlink("/proc/self/fd/" + name)
    except OSError:  # the listing's own
        pass
line = json.dumps(dict(arguments=sys.argv[1:], environment=dict(os.environ), pid=os.getpid(), session=os.getsid(0),
                       descriptors=descriptors)) + "\\n"
out = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(out, line.encode())
os.close(out)
print("words on stdout", flush=True)
print("words on stderr", file=sys.stderr, flush=True)
deadline = time.monotonic() + {hang_s}  # a test that fails leaves nothing behind for long
while os.path.exists(hold) and time.monotonic() < deadline:
    time.sleep(0.01)
sys.exit(3)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One start of the recording `virtksm`: how it was called, and what it had inherited (descriptor to its target)."""

    arguments: list[str]
    environment: Mapping[str, str]
    pid: int
    session: int
    descriptors: Mapping[int, str]


def install_hook(
    target: Path, *, fifo: Path, virtksm: Path, search: str | None = None, systemd: Path | None = None
) -> None:
    """Copy the hook to `target` with other constants; raises ValueError if one is gone.

    `search` replaces its PATH; `systemd` is the folder that tells it that systemd runs, by default a missing one.
    """
    wanted = {"FIFO": str(fifo), "VIRTKSM": str(virtksm), "SYSTEMD": str(systemd or NOWHERE)}
    if search is not None:
        wanted["PATH"] = search
    lines = HOOK.read_text(encoding="utf-8").splitlines()
    for name, value in wanted.items():
        (at,) = [at for at, line in enumerate(lines) if line.startswith(f"{name}=")]
        lines[at] = f"{name}={shlex.quote(value)}"
    text = "\n".join([*lines, ""])
    target.write_text(text, encoding="utf-8")
    target.chmod(0o755)


def install_recorder(virtksm: Path, *, record: Path, hold: Path) -> None:
    """Put a program at `virtksm` that appends a line to `record`, runs while `hold` exists and then fails noisily."""
    text = _RECORDER.format(record=str(record), hold=str(hold), hang_s=HANG_S)
    virtksm.write_text(text, encoding="utf-8")
    virtksm.chmod(0o755)


def read_records(record: Path) -> list[Record]:
    """Read what the recording `virtksm` wrote, oldest first; empty if it never ran."""
    if not record.exists():
        return []
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return [
        Record(**{**line, "descriptors": {int(number): to for number, to in line["descriptors"].items()}})
        for line in lines
    ]


class Listener:
    """The reading end of a FIFO, made if it is missing: the agent, as far as the hook can tell. A context manager.

    It reads when told: until then it is as good as stopped.
    """

    def __init__(self, fifo: Path) -> None:
        if not fifo.exists():
            os.mkfifo(fifo, 0o600)
        self._descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def read_pokes(self) -> list[str]:
        """Read what is there, a poke a line; empty if there is none."""
        try:
            text = os.read(self._descriptor, READ_AT_MOST).decode()
        except BlockingIOError:
            return []
        assert text.endswith("\n"), f"a poke without an end: {text[-80:]!r}"
        return text.splitlines()

    def fill(self) -> int:
        """Fill the FIFO until nothing more goes in; returns the bytes."""
        written = 0
        try:
            while True:
                written += os.write(self._descriptor, b"x" * 4096)
        except BlockingIOError:
            return written

    def empty(self) -> int:
        """Throw away what is there; returns the bytes."""
        try:
            return len(os.read(self._descriptor, READ_AT_MOST))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Stop listening; the FIFO stays."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
