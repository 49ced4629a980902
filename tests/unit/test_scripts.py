"""What the scripts have in common gives KSM's settings back, whatever ended them; tried on a folder in KSM's place."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.hang import HANG_S

COMMON = Path(__file__).parents[2] / "script" / "common.sh"
SETTINGS = {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20", "advisor_mode": "none [scan-time]"}
SCRIPT = """\
source "$1"
ksm=$2
clean_up() { echo cleaned; false; }
save_ksm
give_back_on_exit 10
put advisor_mode none
put run 1
run_program sh -c 'echo 7 >"$1/pages_to_scan"; eval "$2"' sh "$ksm" "$3"
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    for name, value in SETTINGS.items():
        (tmp_path / name).write_text(f"{value}\n", encoding="ascii")
    counter = tmp_path / "full_scans"
    counter.write_text("5\n", encoding="ascii")
    counter.chmod(0o444)
    return tmp_path


def start(kernel: Path, program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["env", "--default-signal", "bash", "-c", SCRIPT, "script", COMMON, kernel, program],  # nohup ignores SIGHUP
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def has_given_back(kernel: Path) -> bool:
    values = {name: (kernel / name).read_text(encoding="ascii").strip() for name in (*SETTINGS, "full_scans")}
    return values == {**SETTINGS, "advisor_mode": "scan-time", "full_scans": "5"}  # a file lists no other choices


@pytest.mark.parametrize(("program", "code"), [("true", 0), ("exit 3", 3), ("kill -KILL $$", 137)])
def test_settings_are_given_back_when_the_program_ends(kernel: Path, program: str, code: int) -> None:
    process = start(kernel, f'echo 2 >"$1/sleep_millisecs"; {program}')
    said = process.communicate(timeout=HANG_S)
    assert (process.returncode, said[0]) == (code, "cleaned\n"), said
    assert has_given_back(kernel)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_settings_are_given_back_after_a_signal_and_the_program_is_ended_first(
    kernel: Path, number: signal.Signals, code: int
) -> None:
    process = start(kernel, """trap 'echo ended; exit' TERM; : >"$1/ready"; while :; do sleep 0.05; done""")
    deadline = time.monotonic() + HANG_S
    while not (kernel / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=HANG_S)
    assert (process.returncode, said[0]) == (code, "ended\ncleaned\n"), said
    assert has_given_back(kernel)


def test_a_setting_that_cannot_be_given_back_is_named_and_keeps_no_other_from_it(kernel: Path) -> None:
    process = start(kernel, 'rm "$1/sleep_millisecs"; mkdir "$1/sleep_millisecs"')
    said = process.communicate(timeout=HANG_S)[1]
    assert "sleep_millisecs could not be set to 20" in said
    (kernel / "sleep_millisecs").rmdir()
    (kernel / "sleep_millisecs").write_text("20\n", encoding="ascii")
    assert has_given_back(kernel)
