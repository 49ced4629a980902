"""A run of tests that is ended by signals."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.hang import HANG_S

PROJECT = Path(__file__).parents[2]
SUITE = """
import os, pytest, signal, sys
from tests.lab.signals import end_in_order
end_in_order()

@pytest.fixture
def lent():
    yield
    os.kill(os.getpid(), signal.SIGTERM)
    print("given back", flush=True)

def test_one(lent):
    print("begun", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_lent_is_given_back_also_at_a_second_signal(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "test_small.py").write_text(SUITE, encoding="utf-8")
    command = ["env", "--default-signal", sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider"]
    environ = {"PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while "begun" not in run.stdout.readline():
            assert run.poll() is None
        run.send_signal(number)
        said, _ = run.communicate(timeout=HANG_S)
    assert "given back" in said
    assert run.returncode == pytest.ExitCode.INTERRUPTED
