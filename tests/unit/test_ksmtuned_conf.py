"""The import of ksmtuned's shell file: beside bash where it can be compared, else case by case."""

from __future__ import annotations

import random
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.lab.ksmtuned_package import read_ksmtuned_file
from virtksm.config.ksmtuned_conf import OURS, parse_ksmtuned_conf
from virtksm.config.load import load
from virtksm.config.schema import Config, KsmtunedParams, keys_of
from virtksm.config.toml_text import imported

COMPARED = 300

# Sources each file in a shell of its own and prints the eight variables behind a mark, so that what a file prints
# itself cannot be taken for them. The trap keeps bash from becoming a file's last command instead of starting it.
SOURCE_EACH = r"""
for file; do (
    trap : EXIT
    . "$file" >/dev/null 2>&1
    printf 'MARK'
    for name in $NAMES; do printf '%s\0' "${!name}"; done
) 2>/dev/null; printf '\1'; done
"""


def taken(text: str) -> dict[str, int]:
    """What is taken of a text, by ksmtuned's names without KSM_ in lower case; it must have brought no note."""
    values, notes = parse_ksmtuned_conf(text)
    assert notes == []
    return {name.removeprefix("ksmtuned."): value for name, value in values.items() if isinstance(value, int)}


def source_in_bash(files: list[Path]) -> list[dict[str, str]]:
    run = subprocess.run(
        ["/bin/bash", "--norc", "-c", SOURCE_EACH, "bash", *map(str, files)],
        env={"NAMES": " ".join(OURS), "PATH": "/nonexistent"},
        capture_output=True,
        check=True,
    )
    answers = run.stdout.decode("utf-8", "surrogateescape").split("\1")[:-1]
    return [dict(zip(OURS, one.partition("MARK")[2].split("\0")[:-1], strict=True)) for one in answers]


# Ways to write an assignment, as (before the name, between name and value, around the value, behind it).
PLAIN = (
    ["", "", " ", "\t", "export ", "export\t", ":;", "export X=1 ", "X= ", "Y='#' "],
    ["="],
    ["{0}", "'{0}'", '"{0}"', "{0}''", '""{0}', "{0}\\\n", "\\\n{0}"],
    ["", "", "", " ", " # note", "\t#'", ";", " ;", "; # x", " X=1", " \\\n", " X='a\nb'", ' X="\\""'],
)
ODD = (
    [*PLAIN[0], "export -n ", "true ", "\v", "'", "X=' "],
    ["=", "=", "=", "= ", " =", "'='", "[0]="],
    [*PLAIN[2], "'{0}", '"{0}', "\\{0}", "0{0}", "{0}x", " {0}", "' {0}'", "-{0}"],
    [*PLAIN[3], "#5", " :", "\v", "'", '"', " \\", ";;"],
)


def generated_file(rng: random.Random, notations: tuple[list[str], ...]) -> str:
    """Return a file of harmless shell: assignments, and what a reader may stumble over between them."""
    between = [
        "",
        "",
        "# it's",
        "#KSM_NPAGES_MAX=9",
        "  # \\",
        "LOGFILE='a # b'",
        "DEBUG=1",
        "X='\nKSM_NPAGES_MAX=7\n'",
    ]
    lines = []
    for _ in range(rng.randint(1, 6)):
        name = rng.choice(list(OURS))
        default = keys_of(KsmtunedParams)[OURS[name]].default
        number = rng.choice([default, default, "", 64 if name == "KSM_NPAGES_MIN" else default])
        if notations is ODD:
            number = rng.choice([number, 0, 1, 7, -7, 10**7, "+5", "-0"])
        before, equals, around, behind = (
            rng.choice(rng.choice([plain, plain, plain, odd])) for plain, odd in zip(PLAIN, notations, strict=True)
        )
        lines += [before + name + equals + around.format(number) + behind, rng.choice(between)]
    return "\n".join(lines) + rng.choice(["", "\n"])


def compared_files(folder: Path, notations: tuple[list[str], ...]) -> list[tuple[str, dict[str, str]]]:
    """Return generated texts, each with what bash makes of it."""
    rng = random.Random(20)
    texts = [generated_file(rng, notations) for _ in range(COMPARED)]
    files = [folder / f"{number}.conf" for number in range(COMPARED)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    return list(zip(texts, source_in_bash(files), strict=True))


def test_what_is_readable_is_taken_as_bash_has_it(tmp_path: Path) -> None:
    foreseen = ("is empty, which means", "has no counterpart", "is not a setting of ksmtuned's", "is no assignment")
    for text, theirs in compared_files(tmp_path, PLAIN):
        values, notes = parse_ksmtuned_conf(text)
        assert [note for note in notes if not any(part in note for part in foreseen)] == [], text
        assert {name: values.get(f"ksmtuned.{key}") for name, key in OURS.items()} == {
            name: int(value) if value else None for name, value in theirs.items()
        }, text


def test_what_is_taken_of_odd_files_is_what_bash_has(tmp_path: Path) -> None:
    """Less may be taken than bash has, with a note; never anything else."""
    taken_in_all = 0
    for text, theirs in compared_files(tmp_path, ODD):
        values, notes = parse_ksmtuned_conf(text)
        if any("so was all that follows" in note for note in notes):
            continue  # an earlier value stands, and only a shell knows which later one counts
        for name, key in OURS.items():
            if f"ksmtuned.{key}" in values:
                assert str(values[f"ksmtuned.{key}"]) == theirs[name].removeprefix("+").replace("-0", "0"), text
                taken_in_all += 1
        missing = {name for name, key in OURS.items() if theirs[name] and f"ksmtuned.{key}" not in values}
        assert not missing or notes, text
    assert taken_in_all > COMPARED / 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  \tKSM_NPAGES_MAX=2000 \t# more\n", {"npages_max": 2000}),
        ("KSM_NPAGES_MAX='2000'\nKSM_NPAGES_MIN=\"100\"", {"npages_max": 2000, "npages_min": 100}),
        ("KSM_NPAGES_MAX=2000;KSM_NPAGES_MIN=100; ", {"npages_max": 2000, "npages_min": 100}),
        ("KSM_NPAGES_MAX=2000\nKSM_NPAGES_MAX=3000", {"npages_max": 3000}),
        ("KSM_NPAGES_BOOST=+1", {"npages_boost": 1}),
        ("# KSM_NPAGES_MAX=1 \\\nKSM_NPAGES_MAX=2000", {"npages_max": 2000}),
        ("# c\rKSM_NPAGES_MAX=2000", {}),
        ("# comment\x0cKSM_NPAGES_MAX=1\x0b\x85\u2028KSM_NPAGES_MAX=1", {}),
    ],
)
def test_plain_assignments_are_taken(text: str, expected: dict[str, int]) -> None:
    assert taken(text) == expected


@pytest.mark.parametrize(
    ("text", "expected", "noted"),
    [
        ("KSM_NPAGES_MAX=$(echo 5)", {}, "a shell would compute"),
        ('KSM_NPAGES_MAX="${OTHER:-2000}"', {}, "a shell would compute"),
        ("KSM_NPAGES_MAX=$'2000'", {}, "a shell would compute"),
        ("KSM_NPAGES_MAX=2000 &", {}, "a shell would compute"),
        ("KSM_NPAGES_MAX=2000 > file", {}, "a shell would compute"),
        ("[ -e /x ] && KSM_NPAGES_MAX=2000", {}, "a shell would compute"),
        ("KSM_NPAGES_MAX=3000\nKSM_NPAGES_MAX=$X\nKSM_THRES_COEF=9", {"thres_coef": 9}, "a shell would compute"),
        ("KSM_NPAGES_MAX=3000; KSM_NPAGES_MIN=$X", {"npages_max": 3000}, "a shell would compute"),
        ("KSM_NPAGES_MAX+=0", {}, "is no assignment"),
        ("KSM_NPAGES_MAX=2000 true", {}, "is no assignment"),
        ("'KSM_NPAGES_MAX=2000'", {}, "is no assignment"),
        ("export -n KSM_NPAGES_MAX=2000", {}, "is no assignment"),
        (". /etc/other.conf\nKSM_NPAGES_MAX=2000", {"npages_max": 2000}, "is no assignment"),
        ("KSM_NPAGES_MAX=2000\nKSM_NPAGES_MAX=''", {}, "is empty, which means ksmtuned's default"),
        ("KSM_NPAGES_MAX=02000", {}, "'02000' is no plain decimal number"),
        ("KSM_NPAGES_MAX=2000#x", {}, "'2000#x' is no plain decimal number"),
        ("KSM_NPAGES_MAX=٢٠٠٠", {}, "is no plain decimal number"),
        (f"KSM_NPAGES_MAX={'9' * 9000}", {}, "is no plain decimal number"),
        ("KSM_NPAGES_MAX=0", {}, "is 0, out of range for virtksm"),
        ("KSM_THRES_COEF=101", {}, "use 0..100 percent"),
        ("KSM_NPAGES_MIN=2000", {}, "2000 is more than ksmtuned.npages_max, 1250; left out: ksmtuned.npages_min"),
        ("DEBUG=1", {}, 'line 1: DEBUG: has no counterpart: use log_level = "debug"'),
        ("\n\nLOGFILE=/var/log/ksmtuned", {}, "line 3: LOGFILE: has no counterpart: virtksm logs to standard error"),
        ("KSM_UNKNOWN=1", {}, "KSM_UNKNOWN: is not a setting of ksmtuned's"),
    ],
)
def test_what_cannot_be_taken_has_one_note(text: str, expected: dict[str, int], noted: str) -> None:
    values, (note,) = parse_ksmtuned_conf(text)
    assert values == {f"ksmtuned.{name}": value for name, value in expected.items()}
    assert noted in note
    assert note.isprintable()
    assert len(note) < 250


@pytest.mark.parametrize(
    "opening",
    ["if false; then", "case x in", "{", "function f {", "f() {", "(", "X=$(", "X=`", "X='", 'X="$Y', "cat <<END",
     "false &&", "true |", "return", "exit 0", ";;", "X=5)", "[[ a ==", "$X \\"],
)  # fmt: skip
def test_nothing_is_taken_where_only_a_shell_can_tell_what_is_assigned(opening: str) -> None:
    values, notes = parse_ksmtuned_conf(f"KSM_THRES_COEF=9\n{opening}\nKSM_NPAGES_MAX=2000\nKSM_SLEEP_MSEC=20\n")
    assert values == {"ksmtuned.thres_coef": 9}
    assert "nothing was taken from here on" in notes[-1] or "so was all that follows" in notes[-1]


def test_windows_line_ends_are_left_away_with_one_note() -> None:
    values, notes = parse_ksmtuned_conf("# c\r\n\r\nKSM_NPAGES_MAX=2000\r\nKSM_THRES_COEF='9' # x\r\n")
    assert values == {"ksmtuned.npages_max": 2000, "ksmtuned.thres_coef": 9}
    assert notes == ["has Windows line ends, which ksmtuned takes for a part of each value; they were left out"]


def test_debians_file_means_the_defaults_as_installed_and_with_every_line_uncommented(tmp_path: Path) -> None:
    text = read_ksmtuned_file("etc/ksmtuned.conf")
    assert taken(text) == {}
    lines = [line.removeprefix("# ") if "=" in line else line for line in text.splitlines()]
    values, notes = parse_ksmtuned_conf("\n".join(lines))
    assert set(values) == {f"ksmtuned.{name}" for name in keys_of(KsmtunedParams)}
    assert [note.split(": ")[1] for note in notes] == ["LOGFILE", "DEBUG"]
    path = tmp_path / "imported.toml"
    path.write_text(imported(values, notes, "/etc/ksmtuned.conf"))
    loaded = load(str(path))
    assert loaded.config == Config(policy="ksmtuned")
    assert {name for name, origin in loaded.origins.items() if origin == str(path)} == {"policy", *values}


def test_a_hostile_source_name_stays_a_comment() -> None:
    text = imported({"ksmtuned.npages_max": 2000}, ["line 1: 'x'"], "a\n[ksmtuned]\nnpages_max = 1\n")
    assert tomllib.loads(text) == {"policy": "ksmtuned", "ksmtuned": {"npages_max": 2000}}
