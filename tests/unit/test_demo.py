"""`python -m demo` where it must not or cannot run; the rest is tests/real/test_demo.py's."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from demo.__main__ import main
from demo.view import LiveView
from virtksm.errors import AlreadyRunning, ExitCode
from virtksm.paths import RuntimePaths
from virtksm.store.files import ensure_runtime, locked
from virtksm.store.switch import SwitchFile

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def host(tmp_path: Path) -> RuntimePaths:
    paths = RuntimePaths(str(tmp_path / "runtime"), str(tmp_path))
    ensure_runtime(paths)
    return paths


@pytest.fixture
def switched_on(tmp_path: Path) -> Path:
    """Stand for KSM's switch and, as any file will do, for the guests' kernel."""
    file = tmp_path / "run"
    file.write_text("1\n", encoding="ascii")
    return file


def test_beside_an_agent_there_is_no_demonstration(
    host: RuntimePaths, switched_on: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(host.agent_lock, AlreadyRunning("second")):
        assert main(["--payload", str(switched_on)], host=host, ksm_run=switched_on) == ExitCode.FAILED
    assert "an agent already tunes this host's KSM\nhint: stop it meanwhile" in capsys.readouterr().err


def test_a_host_that_is_paused_shows_no_demonstration(
    host: RuntimePaths, switched_on: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SwitchFile(host.host_switch("local")).turn_off()
    assert main(["--payload", str(switched_on)], host=host, ksm_run=switched_on) == ExitCode.FAILED
    assert capsys.readouterr().err == ("script/demo: error: virtksm is paused on this host\nhint: virtksm resume\n")


@pytest.mark.parametrize("value", ["0\n", "2\n"])
def test_without_ksm_there_is_no_demonstration(
    host: RuntimePaths, switched_on: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    switched_on.write_text(value, encoding="ascii")
    assert main(["--payload", str(switched_on)], host=host, ksm_run=switched_on) == ExitCode.FAILED
    assert capsys.readouterr().err.startswith("script/demo: error: KSM is off or missing here\nhint: ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--payload", "/nonexistent/payload.elf"], "/nonexistent/payload.elf is missing: script/demo builds it"),
        (["--guests", "many"], "argument --guests: invalid int value: 'many'"),
        (["--guests", "1"], "--guests takes 2..64"),
        (["--duration", "19"], "argument --duration: '19' is no time from 20 s to 1 h"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"script/demo: error: {error}" in capsys.readouterr().err


def test_libvirt_is_not_imported_before_its_messages_have_a_file_to_go_to() -> None:
    told = "import sys, demo.__main__; print('libvirt' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True, cwd=REPO)
    assert done.stdout == "False\n"


def test_pages_of_guests_that_ended_are_no_saving_before_or_after_ksmd_forgets_them() -> None:
    view = LiveView(stream=io.StringIO(), page_bytes=4096)
    saved = []
    for pages_sharing in (700, 700, 0, 300, 900, 100):
        view.saw(pages_sharing)
        saved.append(view.saved_bytes // 4096)
    assert saved == [0, 0, 0, 300, 900, 100]
    assert view.max_saved_bytes == 900 * 4096


def test_the_script_tells_its_options_without_rights_or_ksm() -> None:
    told = subprocess.run([REPO / "script" / "demo", "--help"], check=True, capture_output=True, text=True)
    assert "--duration" in told.stdout
    assert told.stderr == ""
