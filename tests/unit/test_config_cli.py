"""`virtksm config check|show|import` as the command line answers: exit codes, streams, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from virtksm.cli.main import main
from virtksm.config.load import MAX_BYTES
from virtksm.config.schema import Config, all_keys
from virtksm.config.toml_text import value_of

PROJECT = Path(__file__).parents[2]
PROGRAM = Path(sysconfig.get_path("scripts")) / "virtksm"
Captured = pytest.CaptureFixture[str]


def test_check_names_each_file_that_is_right(tmp_path: Path, capsys: Captured) -> None:
    path, wrong = tmp_path / "one.toml", tmp_path / "wrong.toml"
    path.write_text("coalesce_ms = 1\n")
    wrong.write_text("x = 1\n")
    for given, checked in (([], [str(path)]), (["--config", str(path)], []), (["--config", str(wrong)], [str(path)])):
        assert main([*given, "config", "check", *checked]) == 0
        assert capsys.readouterr() == (f"{path}: ok\n", "")


def test_check_prints_every_fault_on_a_line_of_its_own_and_ends_with_2(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "one.toml"
    path.write_text("coalesce = 1\npolicy = 'best'\n")
    assert main(["config", "check", str(path)]) == 2
    assert capsys.readouterr() == (
        "",
        f"virtksm: error: {path}: coalesce: is not a known key; did you mean coalesce_ms?\n"
        f'virtksm: error: {path}: policy: is \'best\'; use one of "adaptive" | "ksmtuned"\n'
        "virtksm: 2 errors in 1 file\n",
    )


def test_an_empty_file_name_is_no_way_to_the_defaults(capsys: Captured) -> None:
    assert main(["config", "check", ""]) == 2
    assert main(["--config", "", "config", "show"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_show_has_each_value_and_its_origin_also_as_json(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "one\x7f\nline\udcff.toml"
    path.write_text("[ksmtuned]\nnpages_max = 99\n")
    assert main(["--config", str(path), "config", "show"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["ksmtuned"]["npages_max"] == 99
    assert main(["--config", str(path), "config", "show", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.removesuffix("\n").isprintable()
    shown = json.loads(out)
    assert shown.pop("ksmtuned.npages_max") == {"value": 99, "origin": str(path)}
    assert shown.pop("private_guests") == {"value": [], "origin": "default"}
    assert shown == {
        name: {"value": value_of(Config(), name), "origin": "default"}
        for name in all_keys()
        if name not in {"ksmtuned.npages_max", "private_guests"}
    }


def test_hostile_file_names_reach_no_stream_raw(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "a\n\x1b[31mb\udcff.toml"
    path.write_text("coalesce_ms = 1\n")
    assert main(["config", "check", str(path)]) == 0
    assert main(["--config", str(path), "config", "show"]) == 0
    path.write_text("DEBUG=1\n")
    assert main(["config", "check", str(path)]) == 2
    assert main(["config", "import", str(path)]) == 0
    assert main(["config", "import", str(path), "-o", str(path)]) == 2
    assert main(["config", "import", str(path / "x")]) == 2
    lines = [line for text in capsys.readouterr() for line in text.split("\n")]
    assert all(line.isprintable() for line in lines)
    assert sum("a\\n\\x1b[31mb\\udcff.toml" in line for line in lines) == 8


def test_import_executes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "ksmtuned.conf"
    canary = tmp_path / "canary"
    attacks = [f"$(touch {canary})", f"`touch {canary}`", f'"$(touch {canary})"', f"$((a[$(touch {canary})]))"]
    lines = [f"KSM_NPAGES_MAX={attack}" for attack in attacks]
    lines += [f"touch {canary}", f"KSM_SLEEP_MSEC=5; touch {canary}", f"DEBUG=1 touch {canary}", f". {canary}.sh"]
    lines += [f"LOGFILE=x >{canary}", f"trap 'touch {canary}' EXIT", f"eval touch {canary}", "KSM_THRES_COEF=7"]
    (tmp_path / "canary.sh").write_text(f"touch {canary}\n")
    source.write_text("\n".join(lines))
    run = subprocess.run(
        [PROGRAM, "config", "import", source], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert not canary.exists()
    assert tomllib.loads(run.stdout) == {"policy": "ksmtuned", "ksmtuned": {"sleep_msec": 5, "thres_coef": 7}}
    assert len(run.stderr.splitlines()) == len(lines) - 1
    subprocess.run(["/bin/bash", source], capture_output=True, check=False)
    assert canary.exists()  # a shell would have


def test_import_writes_a_file_that_passes_check_with_its_notes(tmp_path: Path, capsys: Captured) -> None:
    source, target = tmp_path / "ksmtuned.conf", tmp_path / "new.toml"
    source.write_text("KSM_NPAGES_MAX=2000\nKSM_NPAGES_MIN=3000\nKSM_THRES_COEF=200\nDEBUG=1\nKSM_SLEEP_MSEC='20'\n")
    assert main(["config", "import", str(source), "-o", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    notes = [line.removeprefix(f"virtksm: {source}: ") for line in err.splitlines()]
    assert [note.partition(":")[0] for note in notes] == ["line 3", "line 4", "ksmtuned.npages_min"]
    text = target.read_text()
    assert [line.removeprefix("# Note: ") for line in text.splitlines() if line.startswith("# Note")] == notes
    assert tomllib.loads(text) == {"policy": "ksmtuned", "ksmtuned": {"sleep_msec": 20}}
    assert main(["config", "check", str(target)]) == 0


def test_import_overwrites_nothing_and_follows_no_link(tmp_path: Path, capsys: Captured) -> None:
    source, target, link = tmp_path / "ksmtuned.conf", tmp_path / "old.toml", tmp_path / "link.toml"
    source.write_text("KSM_NPAGES_MAX=2000\n")
    target.write_text("mine\n")
    link.symlink_to(tmp_path / "elsewhere")
    for path in (target, link):
        assert main(["config", "import", str(source), "-o", str(path)]) == 2
        assert f"{path}: cannot be written: File exists\nhint: name a new file" in capsys.readouterr().err
    assert target.read_text() == "mine\n"
    assert not (tmp_path / "elsewhere").exists()
    assert main(["config", "import", str(source), "-o", str(tmp_path / "no" / "folder.toml")]) == 2


def test_import_of_what_is_no_text_says_so_or_notes_it(tmp_path: Path, capsys: Captured) -> None:
    source = tmp_path / "ksmtuned.conf"
    source.write_bytes(b"KSM_NPAGES_MAX=2000\xff\n\x00\x1b[0m\nKSM_THRES_COEF=7\n")
    assert main(["config", "import", str(source)]) == 0
    out, err = capsys.readouterr()
    assert tomllib.loads(out)["ksmtuned"] == {"thres_coef": 7}
    assert len(err.splitlines()) == 2
    assert all(line.isprintable() for line in (*out.splitlines(), *err.splitlines()))
    source.write_bytes(b"#" * (MAX_BYTES + 1))
    assert main(["config", "import", str(source)]) == 2
    assert main(["config", "import", str(tmp_path)]) == 2
    assert main(["config", "import", str(tmp_path / "missing")]) == 2
    assert main(["config", "import", "/dev/zero"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("hint: ")]
    assert [line.rpartition(": ")[2] for line in errors] == [
        f"is larger than {MAX_BYTES} bytes",
        "Is a directory",
        "No such file or directory",
        f"is larger than {MAX_BYTES} bytes",
    ]


def test_the_module_prints_the_committed_files() -> None:
    def printed(*arguments: str) -> str:
        command = [sys.executable, "-m", "virtksm.config", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT).stdout

    assert printed() == (PROJECT / "conf/virtksm.toml").read_text()
    assert printed("markdown") in (PROJECT / "docs/configuration.md").read_text()


@pytest.mark.real
def test_without_an_option_etc_and_its_drop_ins_are_read(tmp_path: Path) -> None:
    """In a mount namespace of its own, whose /etc is a copy of nothing but ours."""
    etc = tmp_path / "virtksm"
    (etc / "conf.d").mkdir(parents=True)
    (etc / "virtksm.toml").write_text("coalesce_ms = 1\nkeepalive_s = 1\n")
    (etc / "conf.d/10.toml").write_text("keepalive_s = 2\n")
    script = 'mount --bind "$1" /etc && exec "$2" config show --json'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(tmp_path), str(PROGRAM)]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout)
    found = {name: one for name, one in shown.items() if one["origin"] != "default"}
    assert found == {
        "coalesce_ms": {"value": 1, "origin": "/etc/virtksm/virtksm.toml"},
        "keepalive_s": {"value": 2, "origin": "/etc/virtksm/conf.d/10.toml"},
    }
