"""The command line itself: options, exit codes, and that one clear line is all an error costs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from tomllib import loads as parse_toml

import pytest

from tests.real.agent_process import VIRTKSM
from virtksm import __version__
from virtksm.cli.help import examples_of
from virtksm.cli.main import ACTIONS, COMMANDS, READER_GONE, WITHOUT_JSON, main, parse
from virtksm.errors import ExitCode
from virtksm.text import format_kib

NOWHERE = "qemu:///system?socket=/nonexistent/socket"
LEAVES = [
    words
    for name in COMMANDS
    for words in ([(name, action) for action in ACTIONS[name]] if name in ACTIONS else [(name,)])
]
"""Every command that can be run."""


def helped(*arguments: str) -> None:
    """Run a command line that ends with the help."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 64])
def test_every_command_has_its_help_with_examples_that_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    helped(*words, "--help")
    told = capsys.readouterr().out
    helped("help", *words)
    assert capsys.readouterr().out == told
    assert told.startswith(f"usage: virtksm {' '.join(words)} ")
    text, _, examples = told.partition("\nexamples:\n")
    assert [line for line in text.splitlines() if len(line) > columns] == []
    assert [line for line in told.splitlines() if len(line) > 80] == []
    assert f"virtksm {' '.join(words)}" in examples


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_example_is_understood(words: tuple[str, ...]) -> None:
    for example, meaning in examples_of(words):
        given = shlex.split(example.removeprefix("sudo ").removeprefix("virtksm "))
        assert callable(parse(given).run), meaning


def test_the_help_lists_every_command_by_purpose_and_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    helped("--help")
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {command} ", told, re.MULTILINE) for command in COMMANDS)
    assert [line for line in told.splitlines() if len(line) > 80] == []
    assert re.findall(r"^(\w[\w ]*):$", told, re.MULTILINE)[:4] == ["Look", "Act", "Set up", "Tools"]
    assert all(f"{int(code)} " in told for code in ExitCode)
    helped("help")
    assert capsys.readouterr().out == told, "without a command it is the program's"
    helped("help", "trace")
    told = capsys.readouterr().out
    assert all(re.search(rf"^  {action} ", told, re.MULTILINE) for action in ACTIONS["trace"])


@pytest.mark.parametrize("arguments", [["--version"], ["version"], ["version", "-c", "any"]])
def test_the_version_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.DONE
    assert capsys.readouterr().out == f"virtksm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ([], "no command given", "virtksm help"),
        (["-c", "qemu:///system"], "no command given", "virtksm help"),
        (["nonsense"], "'nonsense' is no command", "virtksm help"),
        (["stauts"], "'stauts' is no command", "did you mean virtksm status?"),
        (["help", "gests"], "'gests' is no command", "did you mean virtksm guests?"),
        (["trace"], "no action given", "virtksm help trace"),
        (["trace", "recrod"], "'recrod' is no action", "did you mean virtksm trace record?"),
        (["trace", "record"], "the following arguments are required: FILE", "virtksm help trace record"),
        (["trace", "record", "file", "--for", "soon"], "argument --for: ", "virtksm help trace record"),
        (["trace", "replay", "file", "--policy", "none"], "argument --policy: ", "virtksm help trace replay"),
        (["config", "show", "--bogus"], "unrecognized arguments: --bogus", "virtksm help config show"),
        (["retune", "--dry"], "unrecognized arguments: --dry", "virtksm help retune"),
        (["status", "-c"], "argument -c/--connect: expected one argument", "virtksm help status"),
        (["--runtime-dir"], "argument --runtime-dir: expected one argument", "virtksm help"),
        (["agent", "--log-level", "loud"], "argument --log-level: ", "virtksm help agent"),
        (["agent", "--json"], "unrecognized arguments: --json", "virtksm help agent"),
        (["unmerge", "--check", "--force"], "argument --force: not allowed ", "virtksm help unmerge"),
        (["pause", "--fits"], "unrecognized arguments: --fits", "virtksm help pause"),
    ],
)
def test_wrong_usage_shows_the_commands_own_usage_and_what_to_type(
    arguments: list[str], error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ExitCode.USAGE
    told = capsys.readouterr()
    assert told.out == ""
    *usage, first, second = told.err.splitlines()
    _, _, named = hint.partition("virtksm help ")
    assert usage[0].startswith("usage: virtksm " + (f"{named} " if named else ""))
    assert first.startswith(f"virtksm: error: {error}")
    assert second == f"hint: {hint}"


@pytest.mark.parametrize("arguments", [["--", "config", "check"], ["trace", "--", "replay", "/nonexistent"]])
def test_two_dashes_before_a_command_are_understood_or_refused(tmp_path: Path, arguments: list[str]) -> None:
    config = tmp_path / "virtksm.toml"
    config.write_text("", encoding="utf-8")
    assert main(["--config", str(config), *arguments]) in {ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE}


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_common_options_stand_before_and_after_the_command_and_its_action(words: tuple[str, ...]) -> None:
    first, *rest = words
    own: dict[tuple[str, ...], list[str]] = {("trace", "plot"): ["-o", "x.svg"]}
    arguments = own.get(words, ["x"] if words[0] == "guest" or words[-1] in {"import", "record", "replay"} else [])
    common = ["--connect", "retune", "--config", "file", "--runtime-dir", "run", "--state-dir", "lib"]
    if words not in WITHOUT_JSON:
        common.append("--json")
    lines = ([*common, *words, *arguments], [first, *common, *rest, *arguments], [*words, *arguments, *common])
    options = [parse(line) for line in lines]
    assert {vars(one).pop("paths").agent_lock for one in options} == {"run/agent/agent.lock"}
    assert options[0] == options[1] == options[2]
    found = options[0]
    connect = ["retune"] if words[0] == "fleet" else "retune"
    assert (found.connect, found.config, found.runtime_dir, found.state_dir) == (connect, "file", "run", "lib")


@pytest.mark.parametrize("action", ACTIONS["trace"])
def test_every_action_of_trace_has_its_help_and_imports_no_other(action: str) -> None:
    program = f"import sys; from virtksm.cli.main import main; main(['trace', {action!r}, '--help'])"
    asked = "import atexit, sys; atexit.register(lambda: print([one for one in sys.modules if '.cli.trace.' in one]))"
    done = subprocess.run([sys.executable, "-c", f"{asked}; {program}"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: virtksm trace {action} ")
    assert done.stdout.endswith(f"\n['virtksm.cli.trace.{action}']\n")


def test_the_agent_has_no_module_in_memory_that_others_import_and_it_has_no_use_for(tmp_path: Path) -> None:
    config = tmp_path / "virtksm.toml"
    config.touch()
    program = f"""
import sys
before = {{*sys.modules}}
import virtksm.store.history
from virtksm.cli.main import main
main(["--config", {str(config)!r}, "--runtime-dir", {str(config)!r}, "agent"])  # ends: that is no folder
found = {{*sys.modules}} - before
print(*sorted(found & {{"pathlib", "rich", "secrets", "ssl", "tempfile", "virtksm.agent.main"}}))
import ssl
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "virtksm.agent.main\n"


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
        f"virtksm: error: {file}: cannot be read: No such file or directory",
        f"hint: ls -ld {file}",
    ]


@pytest.mark.parametrize("command", ["config show", "config check", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_told_apart_from_one_that_has_read_all(
    tmp_path: Path, command: str, unbuffered: str
) -> None:
    """As of virsh, which SIGPIPE ends: `virtksm verify-off | true` under pipefail proves nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    config = tmp_path / "virtksm.toml"
    config.touch()
    arguments = [str(VIRTKSM), "--config", str(config), *command.split()]
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(arguments, check=False, stdout=writing, stderr=subprocess.PIPE, env=environ)
    os.close(writing)
    assert (done.returncode, done.stderr) == (READER_GONE, b"")


def test_names_that_the_locale_cannot_write_are_escaped(tmp_path: Path) -> None:
    config = tmp_path / "gäste€.toml"
    config.touch()
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    arguments = [str(VIRTKSM), "config", "check", str(config)]
    done = subprocess.run(arguments, check=True, capture_output=True, env=environ)
    assert done.stdout.decode("latin-1") == f"{tmp_path}/gäste\\u20ac.toml: ok\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_output_is_no_failure_and_no_files_number(tmp_path: Path, closed: str) -> None:
    ksmtuned, written = tmp_path / "ksmtuned.conf", tmp_path / "virtksm.toml"
    ksmtuned.write_text("KSM_THRES_COEF=30\n", encoding="utf-8")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        script = f"exec {VIRTKSM} {command} {closed}"
        return subprocess.run(["sh", "-c", script], check=False, capture_output=True, text=True)

    done = run(f"config import {ksmtuned} -o {written}")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert parse_toml(written.read_text("utf-8")) == {"adaptive": {"reserve_percent": 30}}
    assert run("nonsense").returncode == ExitCode.USAGE


def test_what_cannot_be_said_keeps_no_command_from_its_act_and_changes_no_exit_code(tmp_path: Path) -> None:
    (tmp_path / "virtksm.toml").write_text("nonsense = 1\n", encoding="utf-8")
    state = tmp_path / "state"
    paths = ["--config", f"{tmp_path}/virtksm.toml", "--runtime-dir", f"{tmp_path}/run", "--state-dir", str(state)]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [str(VIRTKSM), "pause", "--direct", "--connect", NOWHERE, *paths]
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=full)
        assert done.returncode == ExitCode.UNREACHABLE
        assert [path.suffix for path in state.iterdir()] == [".off"], "paused, although the faults could not be told"


@pytest.mark.parametrize(("kib", "text"), [(None, "unknown"), (1536, "1.5 MiB"), (1024 * 1024, "1.0 GiB")])
def test_memory_is_told_in_the_unit_that_fits(kib: int | None, text: str) -> None:
    assert format_kib(kib) == text
