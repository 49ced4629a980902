"""Runs generated sequences through the real ksmtuned's own functions, and reads what stood after each step.

The script's text is taken up to its main loop; its paths in /proc, /sys and /etc lead to a folder in memory, and the
guests' memory is fed. Its free_memory is called by the driver whenever the memory has changed, and its answer kept
while it has not, which halves the time. The rest is run by bash as it stands, in one bash for each core, all of them
with ksmtuned_driver.bash.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.ksmtuned_package import read_ksmtuned_file
from tests.lab.ksmtuned_sequences import Sequence

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What stands after a step: the kernel's three files, and the law's npages and threshold (KiB)."""

    run: int
    pages_to_scan: int
    sleep_millisecs: int
    npages: int
    thres_kib: int


FIRST = State(run=0, pages_to_scan=100, sleep_millisecs=20, npages=0, thres_kib=0)
"""The kernel's defaults, which the driver also puts in place at the beginning of a sequence."""


def run_script(sequences: list[Sequence]) -> list[list[State]]:
    """Run the sequences through the real script, each core its share in one bash; return each one's states."""
    text = read_ksmtuned_file("usr/sbin/ksmtuned")
    workers = len(os.sched_getaffinity(0))
    shares = [sequences[worker::workers] for worker in range(workers)]
    memory = Path("/dev/shm")  # a step reads and writes five files
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        answers = run_shares(text, shares, Path(folder))
    return [answers[index % workers][index // workers] for index in range(len(sequences))]


def run_shares(text: str, shares: list[list[Sequence]], folder: Path) -> list[list[list[State]]]:
    started = []
    try:
        for number, share in enumerate(shares):
            place = folder / str(number)
            (place / "ksm").mkdir(parents=True)
            (place / "script").write_text(redirected(text, place))
            (place / "sequences").write_text("".join(f"{line}\n" for sequence in share for line in sequence.lines()))
            driver = [HERE / "ksmtuned_driver.bash", place / "script", place, place / "sequences", place / "states"]
            with (place / "errors").open("w") as errors:
                command = ["bash", "--norc", "--noprofile", *map(str, driver)]
                environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
                started.append(subprocess.Popen(command, env=environment, stdout=errors, stderr=errors))
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    for number, code in enumerate(codes):
        said = (folder / str(number) / "errors").read_text()
        assert (code, said) == (0, ""), f"the script complained: {said[:2000]}"
    return [list(parse_states(share, folder / str(number) / "states")) for number, share in enumerate(shares)]


def redirected(text: str, place: Path) -> str:
    """Return the script's text without its main loop, with its paths under `place` and the guests' memory fed."""
    functions, loop, _ = text.partition("\nPIDFILE=")
    assert loop, "the script's end has changed"
    for old, new in [
        ("/etc/ksmtuned.conf", f"{place}/ksmtuned.conf"),
        ("/proc/meminfo", f"{place}/meminfo"),
        ("/sys/kernel/mm/ksm/", f"{place}/ksm/"),
        ("committed=`committed_memory`", "committed=$fed_committed"),
        ("free=`free_memory`", "free=$found_free"),  # the driver calls free_memory, once for each change
    ]:
        assert old in functions, f"the script no longer has {old}"
        functions = functions.replace(old, new)
    for real in ("/proc/", "/sys/", "/etc/"):
        assert real not in functions, f"the script would touch the real {real}"
    return functions + "\n"


def parse_states(share: list[Sequence], path: Path) -> Iterator[list[State]]:
    lines = iter(path.read_text().splitlines())
    for sequence in share:
        states = []
        for _ in sequence.steps:
            status, run, pages, sleep_ms, npages, thres_kib = map(int, next(lines).split())
            assert status == 1 - run  # adjust's own answer
            states.append(
                State(run=run, pages_to_scan=pages, sleep_millisecs=sleep_ms, npages=npages, thres_kib=thres_kib)
            )
        yield states
    assert next(lines, None) is None
