"""`virtksm demo` where it must not or cannot run; the rest is tests/real/test_demo.py's."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtksm.cli.main import main
from virtksm.errors import AlreadyRunning, ExitCode
from virtksm.paths import RuntimePaths
from virtksm.store.files import ensure_runtime, locked


def test_beside_an_agent_there_is_no_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.write_text("1\n", encoding="ascii")
    monkeypatch.setattr("virtksm.cli.demo.KSM_RUN", run)
    paths = RuntimePaths(str(tmp_path / "runtime"), str(tmp_path))
    ensure_runtime(paths)
    folders = ["--runtime-dir", paths.root, "--state-dir", paths.state_dir]
    with locked(paths.agent_lock, AlreadyRunning("second")):
        assert main([*folders, "demo", "--payload", str(run)]) == ExitCode.FAILED
    assert "an agent already tunes this host's KSM: stop it meanwhile" in capsys.readouterr().err


def test_the_demonstration_says_that_it_needs_a_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--payload", "/nonexistent/payload.elf"]) == ExitCode.USAGE
    assert "the demonstration runs from a checkout, by script/demo" in capsys.readouterr().err
