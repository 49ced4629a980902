"""The command line itself: options, exit codes, and that one clear line is all an error costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.agent_process import VIRTKSM
from virtksm import __version__
from virtksm.cli.main import ACTIONS, COMMANDS, main
from virtksm.errors import ExitCode
from virtksm.text import format_kib


def exit_code(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert exit_code(command, "--help") == 0
    assert f"usage: virtksm {command}" in capsys.readouterr().out


def test_the_help_lists_every_command_and_exit_code_and_the_version_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("--help") == 0
    told = capsys.readouterr().out
    assert all(command in told for command in COMMANDS)
    assert all(f"{int(code)} " in told for code in ExitCode)
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"virtksm {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["retune", "--dry"],
        ["--runtime-dir"],
        ["agent", "--log-level", "loud"],
        ["off", "--fits", "--verify"],
        ["on", "--force"],
        ["trace", "record", "file", "--for", "soon"],
        ["trace", "replay", "file", "--policy", "none"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert "usage: virtksm" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["trace"], ["trace", "nonsense"], ["trace", "record"]])
def test_wrong_usage_of_trace_shows_how_that_is_used(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    words = " ".join(arguments).removesuffix(" nonsense")
    assert capsys.readouterr().err.startswith(f"usage: virtksm {words} [-h] ")


@pytest.mark.parametrize("arguments", [["--", "config", "check"], ["trace", "--", "replay", "/nonexistent"]])
def test_two_dashes_before_a_command_are_understood_or_refused(tmp_path: Path, arguments: list[str]) -> None:
    config = tmp_path / "virtksm.toml"
    config.write_text("", encoding="utf-8")
    code: int | str | None
    try:
        code = main(["--config", str(config), *arguments])
    except SystemExit as refused:
        code = refused.code
    assert code in {ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE}


@pytest.mark.parametrize("action", ACTIONS["trace"])
def test_every_action_of_trace_has_its_help_and_imports_no_other(action: str) -> None:
    program = f"import sys; from virtksm.cli.main import main; main(['trace', {action!r}, '--help'])"
    asked = "import atexit, sys; atexit.register(lambda: print([one for one in sys.modules if '.cli.trace.' in one]))"
    done = subprocess.run([sys.executable, "-c", f"{asked}; {program}"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: virtksm trace {action} ")
    assert done.stdout.endswith(f"\n['virtksm.cli.trace.{action}']\n")


def test_global_options_come_before_the_command_also_with_a_commands_name_as_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("retune").write_text("coalesce_ms = 300\n", encoding="utf-8")
    assert main(["--config", "retune", "--runtime-dir", "agent", "config", "show"]) == 0
    assert "coalesce_ms = 300" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["retune", "agent", "guests", "headroom", "config show", "config check"])
def test_where_the_configuration_decides_one_that_is_missing_is_exit_code_2_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = tmp_path / "none.toml"
    arguments = ["--config", str(file), "--runtime-dir", str(tmp_path / "run"), *command.split()]
    assert main(arguments) == ExitCode.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"virtksm: {file}: cannot be read: No such file or directory; see its path, owner and mode"
    ]


def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    config = tmp_path / "virtksm.toml"
    config.touch()
    command = [str(VIRTKSM), "--config", str(config), "config", "show"]
    done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, env=environ)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("kib", "text"),
    [(None, "unknown"), (1536, "1.5 MiB"), (1024 * 1024, "1.0 GiB")],
)
def test_memory_is_told_in_the_unit_that_fits(kib: int | None, text: str) -> None:
    assert format_kib(kib) == text
