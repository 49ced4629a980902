"""The guard against tests left out, tried on small suites of its own in a pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
REAL = "@pytest.mark.real\ndef test_real(): pass\n\n"
INI = "[pytest]\nmarkers =\n    real: as in the project\n    ksm: as in the project\n"
LEFT_OUT = """
@pytest.mark.skip(reason='slow')
def test_marked(): pass
def test_called(): pytest.skip('no root')
@pytest.mark.xfail
def test_xfail(): assert False
@pytest.mark.xfail
def test_xpass(): pass
"""


def run_guarded(folder: Path, suite: str, *arguments: str) -> tuple[int, str]:
    """Return the exit code and what was said."""
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_small.py").write_text(f"import pytest\n\n{suite}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.everything_ran", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_suite_that_ran_whole_is_accepted_without_a_word_and_two_parts_are_the_whole(tmp_path: Path) -> None:
    suite = "@pytest.fixture\ndef ksm(): pass\n\n@pytest.mark.real\ndef test_ksm(ksm): pass\n\n"
    suite += "@pytest.mark.real\n@pytest.mark.ksm\ndef test_marked(): pass\n\n" + REAL
    for arguments, count in (((), 3), (("--part", "ksm"), 2), (("--part", "beside"), 1)):
        code, said = run_guarded(tmp_path, suite, *arguments)
        assert (code, f"{count} passed" in said.splitlines()[-1]) == (0, True), said
        assert "not everything ran" not in said


def test_a_test_left_out_fails_the_run(tmp_path: Path) -> None:
    code, said = run_guarded(tmp_path, REAL + LEFT_OUT)
    assert code == 1
    for complaint in (
        "skipped: {}marked",
        "skipped: {}called",
        "expected to fail: {}xfail",
        "expected to fail: {}xpass",
    ):
        assert complaint.format("test_small.py::test_") in said
    code, said = run_guarded(tmp_path, "pytest.importorskip('no_such_module')\n")
    assert (code, "skipped: test_small.py" in said) == (1, True)
    code, said = run_guarded(tmp_path, REAL + "def test_other(): pass\n", "-k", "real")
    assert (code, "deselected: test_small.py::test_other" in said) == (1, True)


@pytest.mark.parametrize("suite", ["def test_other(): pass\n", REAL.replace("pass", "assert False"), ""])
def test_a_run_without_a_passed_real_test_fails(tmp_path: Path, suite: str) -> None:
    code, said = run_guarded(tmp_path, suite)
    assert (code, "no test marked `real` passed" in said) == (1, True)
