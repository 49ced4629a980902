"""The guard against tests left out, tried on small suites of its own in a pytest of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
REAL = "@pytest.mark.real\ndef test_real(): pass\n\n"
INI = "[pytest]\nmarkers =\n    real: as in the project\n    ksm: as in the project\n    needs: as in the project\n"
NEEDING = """
@pytest.mark.real
@pytest.mark.needs("advisor_mode")
def test_advisor(): assert False
@pytest.mark.real
@pytest.mark.needs("advisor_mode", "ksm_stat:ksm_process_profit", "vmstat:cow_ksm")
def test_both(): assert False
@pytest.mark.real
@pytest.mark.needs("run", "vmstat:cow_ksm", "ksm_stat:ksm_rmap_items")
def test_neither(): pass
@pytest.mark.needs("advisor_mode")
def test_fake(): pass
"""
KNOWN = '"6.1" = ["advisor_mode", "ksm_stat:ksm_process_profit"]'
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
    for arguments, count in (((), 3), (("--part", "kubernetes"), 3), (("--part", "ksm"), 2), (("--part", "beside"), 1)):
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


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Lend the root of a Linux 6.1, without an advisor and with the table of it."""
    for name, text in {
        "sys/kernel/mm/ksm/run": "1\n",
        "proc/self/ksm_stat": "ksm_rmap_items 0\n",
        "proc/vmstat": "nr_free_pages 1\ncow_ksm 0\n",
        "proc/sys/kernel/osrelease": "6.1.0-57-amd64\n",
        "tests/not_applicable.toml": KNOWN,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_needs_what_the_kernel_lacks_is_listed_and_must_be_what_the_table_says(kernel: Path) -> None:
    told = "not applicable on Linux {}: 2 tests: advisor_mode 2, ksm_stat:ksm_process_profit 1"
    here = ("--kernel-root", str(kernel))
    code, said = run_guarded(kernel, NEEDING, *here)
    assert (code, told.format("6.1") in said, "2 passed, 2 deselected" in said) == (0, True, True), said

    release = kernel / "proc/sys/kernel/osrelease"
    release.write_text("5.10.0-3\n")
    code, said = run_guarded(kernel, NEEDING, *here)
    assert (code, told.format("5.10") in said) == (0, True), "a kernel that is not in the table"

    release.write_text("6.1.0\n")
    (kernel / "tests/not_applicable.toml").write_text(KNOWN.replace('"advisor_mode", ', ""))
    code, said = run_guarded(kernel, NEEDING, *here)
    assert (code, "Linux 6.1 lacks ['ksm_stat:ksm_process_profit'], and here ['advisor_mode'" in said) == (1, True), (
        said
    )
