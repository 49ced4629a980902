"""The limits that guard against hanging, on a machine that says how much slower it is."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
INI = "[pytest]\ntimeout = 5\n"
SUITE = """
import pytest
from tests.lab.hang import HANG_S
def test_default(request): print("default", request.node.get_closest_marker("timeout").args, HANG_S)
@pytest.mark.timeout(7)
def test_marked(request): print("marked", request.node.get_closest_marker("timeout").args)
"""


@pytest.mark.parametrize(
    ("environ", "said"),
    [({}, ["default (5.0,) 100.0", "marked (7,)"]), ({"SLOWER": "3"}, ["default (15.0,) 300.0", "marked (21,)"])],
)
def test_they_are_multiplied(tmp_path: Path, environ: dict[str, str], said: list[str]) -> None:
    (tmp_path / "pytest.ini").write_text(INI, encoding="utf-8")
    (tmp_path / "test_small.py").write_text(SUITE, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-s",
            "-p",
            "pytest_timeout",
            "-p",
            "tests.lab.fixtures",
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    for line in said:
        assert line in done.stdout
