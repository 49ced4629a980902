"""`script/demo` as its user runs it: what it shows, and that it gives everything back, whatever ended it.

It takes the KSM lock itself, so these tests hold it only to look at KSM before and after.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil
import pytest

from demo.__main__ import MERGED
from tests.lab.fixtures import REPO
from tests.lab.hang import HANG_S
from tests.lab.ksm import KsmState, ksm_lock, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from virtksm.paths import DEFAULT_RUNTIME_DIR, DEFAULT_STATE_DIR

pytestmark = pytest.mark.real

DEMO = [str(REPO / "script" / "demo"), "--guests", "2", "--duration", "20"]
HANDED_BACK = ("run", "pages_to_scan", "sleep_millisecs", "merge_across_nodes", "advisor_mode")


class Demo:
    """A demonstration that runs, in a process group of its own as a terminal would have it."""

    def __init__(self, output: Path, *options: str) -> None:
        self._output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [*DEMO, *options], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def wait_said(self, text: str) -> None:
        """Wait until it has said this; fails at once if it ends before."""

        def is_said() -> bool:
            has_ended = self.process.poll() is not None  # before the look: nothing is said after it
            if text in (output := self._output.read_text(encoding="utf-8")):
                return True
            assert not has_ended, f"it has ended with {self.process.returncode} and not said {text!r}:\n{output}"
            return False

        wait_until(is_said, HANG_S, text)

    def wait_ended(self) -> tuple[int, str]:
        code = self.process.wait(HANG_S)
        return code, self._output.read_text(encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(HANG_S)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Compare KSM's settings, virtksm's and throwaway folders, and its guests' processes after the test with before."""

    def read() -> tuple[dict[str, str], set[tuple[Path, int, int]], set[int]]:
        with ksm_lock():
            values = KsmState.save().values
        kept = [path for folder in (DEFAULT_STATE_DIR, DEFAULT_RUNTIME_DIR) for path in Path(folder).rglob("*")]
        looked = [(path, path.lstat()) for path in (*Path("/tmp").glob("vkd.*"), *kept)]
        folders = {(path, status.st_mtime_ns, status.st_size) for path, status in looked}
        commands = {one.pid: " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])}
        guests = {pid for pid, command in commands.items() if "guest=virtksm-demo-" in command}
        return {name: values[name] for name in HANDED_BACK if name in values}, folders, guests

    before = read()
    yield
    assert read() == before


@pytest.mark.ksm
@pytest.mark.usefixtures("nothing_left")
def test_it_hears_applies_and_merges_and_says_how_much(tmp_path: Path) -> None:
    with Demo(tmp_path / "output") as demo:
        code, output = demo.wait_ended()
    assert code == 0, output
    summary = output.splitlines()[-1]
    assert "events heard" in summary
    assert "settings applied" in summary
    saved_mib = int(summary.rsplit("saved ", 1)[1].removesuffix(" MiB"))
    most_mib = 64 + 2 * (8 + 24)  # of memory in huge pages that is not filled yet, which is zero
    assert int(MERGED * 64) <= saved_mib <= most_mib, "two guests have 64 MiB in common, 8 MiB of zeroes, 24 MiB of own"
    assert "the policy acts although memory is not short" in output


@pytest.mark.ksm
@pytest.mark.usefixtures("nothing_left")
def test_ctrl_c_gives_everything_back_on_another_libvirt_too(tmp_path: Path, libvirtd: PrivateLibvirtd) -> None:
    with Demo(tmp_path / "output", "--connect", libvirtd.uri) as demo:
        demo.wait_said("demo-1 started")
        os.killpg(demo.process.pid, signal.SIGINT)
        code, output = demo.wait_ended()
    assert code == 130, output
    assert f"connected to {libvirtd.uri}" in output
    assert "Traceback" not in output


# The checkout may lie in root's home: with this capability the user reads everything and writes nothing.
MAY_READ = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *MAY_READ]
WITHOUT_KSM = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /sys/kernel/mm && exec "$0" "$@"']


def test_one_line_says_what_is_missing() -> None:
    for command in ("demo", "test", "test boot", "bench latency"):
        for prefix, missing in ((AS_NOBODY, "needs root"), (WITHOUT_KSM, "this kernel has no KSM")):
            script = [*prefix, str(REPO / "script" / command.split()[0]), *command.split()[1:]]
            done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=HANG_S)
            assert (done.returncode == 0, done.stdout) == (False, "")
            (line,) = done.stderr.splitlines()
            assert missing in line
