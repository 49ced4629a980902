"""Which host a command means when none is named, and that a broken configuration is a warning where it must be."""

import json
from pathlib import Path

import pytest

from tests.lab.listening import listening
from virtksm.cli.connection import config_or_defaults, requested_uri
from virtksm.config.load import read
from virtksm.config.schema import Config
from virtksm.host.systemd import parse_environment, unit_variable
from virtksm.paths import RuntimePaths
from virtksm.uri import named_uri

NAME = "LIBVIRT_DEFAULT_URI"


def test_what_the_user_names_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_uri(None, {}) is None
    assert named_uri(None, {NAME: ""}) is None
    assert named_uri(None, {NAME: "qemu:///session"}) == "qemu:///session"
    assert named_uri("lab", {NAME: "qemu:///session"}) == "lab"
    monkeypatch.setenv(NAME, "qemu:///session")
    assert requested_uri(None) == "qemu:///session"


EVIL = "qemu+ext:///system?command=/tmp/evil"
WARNING = "virtksm: warning: the agent serves {}; this is about qemu:///system (-c URI names another)\n"


@pytest.mark.parametrize(
    ("answer", "uri", "warning"),
    [
        ({"ok": False, "other_uri": "qemu:///session"}, "qemu:///session", ""),
        ({"ok": False, "other_uri": "qemu:///system"}, "qemu:///system", ""),
        ({"ok": False, "other_uri": EVIL}, "qemu:///system", WARNING.format(EVIL)),
        ({"ok": False, "other_uri": "x:///session"}, "qemu:///system", WARNING.format("x:///session")),
        ({"ok": False, "other_uri": "\x1b[31m"}, "qemu:///system", WARNING.format("\\x1b[31m")),
        ({"ok": False, "other_uri": ["qemu:///session"]}, "qemu:///system", ""),
        ({"ok": True}, "qemu:///system", ""),
        (None, "qemu:///system", ""),
    ],
)
def test_where_none_is_named_it_is_the_agents_unless_that_might_run_a_program(
    paths: RuntimePaths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: dict[str, object] | None,
    uri: str,
    warning: str,
) -> None:
    monkeypatch.delenv(NAME, raising=False)
    if answer is None:
        assert requested_uri(None, paths) == uri
    else:
        with listening(Path(paths.control_socket), json.dumps(answer).encode() + b"\n"):
            assert requested_uri("lab", paths) == "lab"
            assert requested_uri(None, paths) == uri
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("LIBVIRT_DEFAULT_URI=qemu:///session\n", "qemu:///session"),
        ('A=1 "LIBVIRT_DEFAULT_URI=qemu+ssh://root@there/system?socket=/x" B=2\n', "qemu+ssh://root@there/system?socket=/x"),
        ("", None),
        ("LIBVIRT_DEFAULT_URI=\n", None),
        ('"LIBVIRT_DEFAULT_URI=qemu:///system oops"\n', None),
        ('"LIBVIRT_DEFAULT_URI=qemu:///system\n', None),
        ("LIBVIRT_DEFAULT_URI=qemu:///\x1b[31m\n", None),
    ],
)  # fmt: skip
def test_systemds_words_are_taken_apart_and_what_is_no_uri_is_none(text: str, uri: str | None) -> None:
    assert parse_environment(text).get(NAME) == uri


def test_systemd_is_asked_only_where_it_runs_and_the_unit_was_changed(tmp_path: Path) -> None:
    asked: list[str] = []

    def show(*ask: str, **_how: float) -> str:
        asked.append(ask[-1])
        return f"{NAME}=qemu:///session"

    def find(booted: Path) -> str | None:
        return unit_variable("one.service", NAME, unit_dirs=[str(tmp_path)], booted=str(booted), show=show)

    assert find(tmp_path) is None
    (tmp_path / "one.service.d").mkdir()
    assert find(tmp_path / "none") is None
    assert asked == []
    assert find(tmp_path) == "qemu:///session"
    assert asked == ["one.service"]


def test_what_is_faulty_has_its_default_and_the_rest_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.toml"
    file.write_text('on_exit = "leave"\npolicy = "best"\ncall_timeout_s = "long"\n', encoding="utf-8")
    config, has_faults = config_or_defaults(str(file))
    assert (config, has_faults) == (Config(on_exit="leave"), True)
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith(
        f"virtksm: warning: the configuration has faults, the defaults hold in their place: {file}: "
    )
    assert "(and 1 more: virtksm config check)" in line
    file.write_text("call_timeout_s = 7\n", encoding="utf-8")
    assert config_or_defaults(str(file)) == (Config(call_timeout_s=7), False)
    assert capsys.readouterr().err == ""


def test_no_name_service_is_asked_for_a_group(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('status_group = "there-is-no-such-group"\n', encoding="utf-8")
    loaded, findings = read(str(file))
    assert (loaded.config, findings) == (Config(status_group="there-is-no-such-group"), [])
