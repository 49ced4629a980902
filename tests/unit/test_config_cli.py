"""`virtksm config check|show|path|import` as the command line answers: exit codes, streams, files."""

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
from virtksm.config.schema import Config, all_keys, value_of

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
        f'virtksm: error: {path}: policy: is \'best\'; use one of "adaptive" | "ksmtuned" | "observe"\n'
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
    taken = {name: (one["value"], one["origin"]) for name, one in shown.items()}
    assert taken.pop("ksmtuned.npages_max") == (99, str(path))
    assert taken.pop("private_guests") == ([], "default")
    assert taken == {name: (value_of(Config(), name), "default") for name in all_keys() if name in taken}
    assert shown["policy"]["choices"] == ["adaptive", "ksmtuned", "observe"]
    assert shown["policy"]["meaning"] == all_keys()["policy"].meaning


def test_path_lists_the_named_file_alone(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "a\nb.toml"
    path.touch()
    assert main(["--config", str(path), "config", "path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a\\nb.toml  read\n"
    assert main(["--config", str(path), "config", "path", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [{"path": str(path), "state": "read"}]}


def test_hostile_file_names_reach_no_stream_raw(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "a\n\x1b[31mb\udcff.toml"
    path.write_text("coalesce_ms = 1\n")
    assert main(["config", "check", str(path)]) == 0
    assert main(["--config", str(path), "config", "show"]) == 0
    path.write_text("DEBUG=1\n")
    assert main(["config", "check", str(path)]) == 2
    assert main(["config", "import", "--policy", "ksmtuned", str(path)]) == 1
    assert main(["config", "import", "--policy", "ksmtuned", str(path), "-o", str(path)]) == 2
    assert main(["config", "import", str(path / "x")]) == 2
    lines = [line for text in capsys.readouterr() for line in text.split("\n")]
    assert all(line.isprintable() for line in lines)
    assert sum("a\\n\\x1b[31mb\\udcff.toml" in line for line in lines) == 8


@pytest.mark.parametrize("policy", ["adaptive", "ksmtuned"])
def test_import_executes_nothing(
    tmp_path: Path, policy: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "canary.sh").write_text(f"touch {canary}\n")
    source = tmp_path / "ksmtuned.conf"
    attacks = [f"$(touch {canary})", f"`touch {canary}`", f'"$(touch {canary})"', f"$((a[$(touch {canary})]))"]
    lines = [f"KSM_NPAGES_MAX={attack}" for attack in attacks]
    lines += [f"touch {canary}", f"KSM_SLEEP_MSEC=5; touch {canary}", f"DEBUG=1 touch {canary}", f". {canary}.sh"]
    lines += [f"LOGFILE=x >{canary}", f"trap 'touch {canary}' EXIT", f"eval touch {canary}"]
    for line in lines:
        source.write_text(f"KSM_THRES_COEF=7\n{line}\nKSM_THRES_COEF=8\n")
        code, printed = main(["config", "import", "--policy", policy, str(source)]), capsys.readouterr()
        assert not canary.exists()
        assert (code, len(printed.err.splitlines())) == (1, 1)
        assert "7" in printed.out
    subprocess.run(["/bin/bash", source], capture_output=True, check=False)
    assert canary.exists()  # a shell would have


NO_DROP_INS = ("/usr/lib/virtksm/conf.d/*.toml", "/etc/virtksm/conf.d/*.toml")
TUNED = "KSM_NPAGES_MAX=2000\nKSM_NPAGES_MIN=3000\nKSM_THRES_COEF=30\nDEBUG=1\nKSM_SLEEP_MSEC='20'\n"


@pytest.mark.parametrize(
    ("policy", "taken", "left_out"),
    [
        ("ksmtuned", {"policy": "ksmtuned", "ksmtuned": {"thres_coef": 30, "sleep_msec": 20}}, []),
        ("adaptive", {"adaptive": {"reserve_percent": 30}}, ["ksmtuned.sleep_msec = 20 has no counterpart"]),
    ],
)
def test_import_writes_a_valid_file_and_ends_with_1_where_something_is_left_out(
    tmp_path: Path, capsys: Captured, policy: str, taken: dict[str, object], left_out: list[str]
) -> None:
    source, target = tmp_path / "ksmtuned.conf", tmp_path / "new.toml"
    source.write_text(TUNED)
    assert main(["config", "import", "--policy", policy, str(source), "-o", str(target)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{target}: written: ")
    notes = [line.removeprefix(f"virtksm: warning: {source}: left out: ") for line in err.splitlines()]
    assert [note.partition(":")[0] for note in notes] == ["line 4", "ksmtuned.npages_min", *left_out]
    text = target.read_text()
    assert [line.removeprefix("# Note: ") for line in text.splitlines() if line.startswith("# Note")] == notes
    assert tomllib.loads(text) == taken
    assert main(["config", "check", str(target)]) == 0


def test_import_is_for_adaptive_unless_told_otherwise_and_says_so(tmp_path: Path, capsys: Captured) -> None:
    source, target = tmp_path / "ksmtuned.conf", tmp_path / "new.toml"
    source.write_text("KSM_THRES_COEF=30\n")
    assert main(["config", "import", str(source)]) == 0
    out, err = capsys.readouterr()
    assert tomllib.loads(out) == {"adaptive": {"reserve_percent": 30}}
    assert "adaptive, which is recommended" in err
    assert "--policy ksmtuned" in err
    source.write_text("KSM_THRES_COEF=20\n")
    assert main(["config", "import", "--policy", "adaptive", str(source), "-o", str(target)]) == 0
    assert capsys.readouterr() == (f"{source}: nothing to write: it has no threshold of its own\n", "")
    assert not target.exists()


def test_what_root_imports_the_agents_user_can_read_whatever_the_umask(tmp_path: Path) -> None:
    source, target = tmp_path / "ksmtuned.conf", tmp_path / "new.toml"
    source.write_text("KSM_THRES_COEF=30\n")
    umask = os.umask(0o077)
    try:
        assert main(["config", "import", str(source), "-o", str(target)]) == 0
    finally:
        os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o644


def test_import_overwrites_nothing_and_follows_no_link(tmp_path: Path, capsys: Captured) -> None:
    source, target, link = tmp_path / "ksmtuned.conf", tmp_path / "old.toml", tmp_path / "link.toml"
    source.write_text("KSM_THRES_COEF=30\n")
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
    source.write_bytes(b"KSM_THRES_COEF=7\nKSM_NPAGES_MAX=2000\xff\n\x00\x1b[0m\n")
    assert main(["config", "import", "--policy", "ksmtuned", str(source)]) == 1
    out, err = capsys.readouterr()
    assert tomllib.loads(out)["ksmtuned"] == {"thres_coef": 7}
    assert len(err.splitlines()) == 2
    assert all(line.isprintable() for line in (*out.splitlines(), *err.splitlines()))
    source.write_bytes(b"#" * (MAX_BYTES + 1))
    for file, problem in (
        (str(source), f"is larger than {MAX_BYTES} bytes"),
        (str(tmp_path), "Is a directory"),
        (str(tmp_path / "missing"), "No such file or directory"),
        ("/dev/zero", f"is larger than {MAX_BYTES} bytes"),
    ):
        assert main(["config", "import", file]) == 2
        assert problem in capsys.readouterr().err


def test_the_module_prints_the_committed_file() -> None:
    command = [sys.executable, "-m", "virtksm.config"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert run.stdout == (PROJECT / "conf/virtksm.toml").read_text()


@pytest.mark.real
def test_without_an_option_etc_and_its_drop_ins_are_read(tmp_path: Path) -> None:
    """In a mount namespace of its own, whose /etc is a copy of nothing but ours."""
    etc = tmp_path / "virtksm"
    (etc / "conf.d").mkdir(parents=True)
    (etc / "virtksm.toml").write_text("coalesce_ms = 1\nkeepalive_s = 1\n")
    (etc / "conf.d/10.toml").write_text("keepalive_s = 2\n")
    script = """
    mount --bind "$1" /etc && "$2" config show --json && "$2" config path
    rm -r /etc/virtksm && "$2" config check && mkdir /etc/virtksm && touch /etc/virtksm/conf.d
    "$2" config path 2>/etc/fault || { echo "ended with $?" && cat /etc/fault; }
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(tmp_path), str(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    shown, *lines = done.stdout.splitlines()
    found = {name: (one["value"], one["origin"]) for name, one in json.loads(shown).items()}
    assert {name: one for name, one in found.items() if one[1] != "default"} == {
        "coalesce_ms": (1, "/etc/virtksm/virtksm.toml"),
        "keepalive_s": (2, "/etc/virtksm/conf.d/10.toml"),
    }
    missing = ("/usr/lib/virtksm/virtksm.toml", "/etc/virtksm/virtksm.toml", *NO_DROP_INS)
    listed, (code, fault, *_) = lines[:9], lines[9:]
    assert [" ".join(line.split()) for line in listed] == [
        "/usr/lib/virtksm/virtksm.toml missing",
        "/etc/virtksm/virtksm.toml read",
        "/usr/lib/virtksm/conf.d/*.toml missing",
        "/etc/virtksm/conf.d/10.toml read",
        "no configuration file: the defaults are in force",
        *(f"{file} missing" for file in missing),
    ]
    assert "/etc/virtksm/conf.d: cannot be read: Not a directory" in fault
    assert code == "ended with 2"
