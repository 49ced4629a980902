"""The guard against tests left out, tried on small suites of its own in a pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
HEAD = "import pytest\n\n"
REAL = "@pytest.mark.real\ndef test_real(): pass\n\n"
INI = "[pytest]\nmarkers =\n    real: as in the project\n    ksm: as in the project\n"


def run_guarded(folder: Path, suite: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_small.py").write_text(HEAD + suite)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.everything_ran", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_suite_that_ran_whole_is_accepted_without_a_word(tmp_path: Path) -> None:
    run = run_guarded(tmp_path, REAL + "def test_other(): pass\n")

    assert run.returncode == 0, run.stdout
    assert "not everything ran" not in run.stdout
    assert "2 passed" in run.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("suite", "complaint"),
    [
        ("@pytest.mark.skip(reason='slow')\ndef test_it(): pass\n", "skipped: test_small.py::test_it"),
        ("def test_it(): pytest.skip('no root')\n", "skipped: test_small.py::test_it"),
        ("pytest.importorskip('no_such_module')\n", "skipped: test_small.py"),
        ("@pytest.mark.xfail\ndef test_it(): assert False\n", "expected to fail: test_small.py::test_it"),
        ("@pytest.mark.xfail\ndef test_it(): pass\n", "expected to fail: test_small.py::test_it"),
    ],
    ids=["skip mark", "skip call", "skipped module", "xfail", "xpass"],
)
def test_a_test_left_out_fails_the_run(tmp_path: Path, suite: str, complaint: str) -> None:
    run = run_guarded(tmp_path, REAL + suite)

    assert run.returncode == 1
    assert complaint in run.stdout


def test_a_deselected_test_fails_the_run(tmp_path: Path) -> None:
    run = run_guarded(tmp_path, REAL + "def test_other(): pass\n", "-k", "real")

    assert run.returncode == 1
    assert "deselected: test_small.py::test_other" in run.stdout


@pytest.mark.parametrize(
    "suite",
    [
        "def test_other(): pass\n",
        "@pytest.mark.real\ndef test_real(): assert False\n",
        "",
    ],
    ids=["none marked", "marked but failed", "no tests at all"],
)
def test_a_run_without_a_passed_real_test_fails(tmp_path: Path, suite: str) -> None:
    run = run_guarded(tmp_path, suite)

    assert run.returncode == 1
    assert "no test marked `real` passed" in run.stdout


def test_two_parts_are_the_whole(tmp_path: Path) -> None:
    suite = "@pytest.fixture\ndef ksm(): pass\n\n@pytest.mark.real\ndef test_ksm(ksm): pass\n\n"
    suite += "@pytest.mark.real\n@pytest.mark.ksm\ndef test_marked(): pass\n\n" + REAL
    assert "2 passed" in run_guarded(tmp_path, suite, "--part", "ksm").stdout.splitlines()[-1]
    assert "1 passed" in run_guarded(tmp_path, suite, "--part", "beside").stdout.splitlines()[-1]
