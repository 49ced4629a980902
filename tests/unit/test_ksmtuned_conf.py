"""The import of ksmtuned's shell file: beside bash where it can be compared, else case by case."""

import random
import subprocess
from pathlib import Path

import pytest

from tests.lab.ksmtuned_package import read_ksmtuned_file
from virtksm.config.ksmtuned_conf import OURS, as_adaptive, parse_ksmtuned_conf
from virtksm.config.load import load
from virtksm.config.schema import AdaptiveParams, Config, KsmtunedParams, keys_of
from virtksm.config.toml_text import imported
from virtksm.policy.adaptive.engage import reserve_of_kib
from virtksm.policy.ksmtuned import threshold_kib

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
    ["", "", " ", "\t", "export ", "export\t "],
    ["="],
    ["{0}", "'{0}'", '"{0}"'],
    ["", "", "", " ", " # note", "\t#'"],
)
ODD = (
    [*PLAIN[0], "export -n ", "true ", "\v", "'", "X=' ", ":;", "X= ", "export X=1 "],
    ["=", "=", "=", "= ", " =", "'='", "[0]=", "+="],
    [*PLAIN[2], "'{0}", '"{0}', "\\{0}", "0{0}", "{0}x", " {0}", "' {0}'", "-{0}", "{0}''", "'\"{0}\"'", "{0}\\\n"],
    [*PLAIN[3], "#5", " :", "\v", "'", '"', " \\", ";;", ";", " X='a\nb'"],
)


def generated_file(rng: random.Random, notations: tuple[list[str], ...]) -> str:
    """Return a file of harmless shell: assignments, and what a reader may stumble over between them."""
    between = ["", "", "# it's", "#KSM_NPAGES_MAX=9", "  # \\", "LOGFILE='a # b'", "DEBUG=1", 'X="it\'s"']
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
    foreseen = ("has no counterpart", "is no setting of ksmtuned")
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
        missing = {name for name, key in OURS.items() if theirs[name] and f"ksmtuned.{key}" not in values}
        assert not missing or notes, text
        if any("nothing was taken from here on" in note for note in notes):
            continue  # an earlier value stands, and only a shell knows which later one counts
        for name, key in OURS.items():
            if f"ksmtuned.{key}" in values:
                assert str(values[f"ksmtuned.{key}"]) == theirs[name].removeprefix("+").replace("-0", "0"), text
                taken_in_all += 1
    assert taken_in_all > COMPARED / 10


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("KSM_NPAGES_MAX=02000", "KSM_NPAGES_MAX is '02000', no plain decimal number"),
        ("KSM_NPAGES_MAX='\"2000\"'", "no plain decimal number"),
        ("KSM_NPAGES_MAX=٢٠٠٠", "no plain decimal number"),
        (f"KSM_NPAGES_MAX={'9' * 9000}", "no plain decimal number"),
        ("KSM_NPAGES_MAX=0", "is 0, out of range for virtksm"),
        ("KSM_THRES_COEF=101", "use 0..100 percent"),
        ("KSM_NPAGES_MIN=2000", "2000 is more than ksmtuned.npages_max, 1250; left out: ksmtuned.npages_min"),
        ("DEBUG=1", 'line 1: DEBUG has no counterpart: use log_level = "debug"'),
        ("\n\nLOGFILE=/var/log/ksmtuned", "line 3: LOGFILE has no counterpart: virtksm logs to standard error"),
        ("KSM_UNKNOWN=1", "KSM_UNKNOWN is no setting of ksmtuned"),
    ],
)
def test_a_value_that_cannot_be_taken_has_one_note(text: str, noted: str) -> None:
    values, (note,) = parse_ksmtuned_conf(text)
    assert values == {}
    assert noted in note
    assert note.isprintable()
    assert len(note) < 250


@pytest.mark.parametrize(
    "line",
    ["KSM_NPAGES_MAX=$(echo 5)", 'KSM_NPAGES_MAX="${OTHER:-2000}"', "KSM_NPAGES_MAX=20\\", "KSM_NPAGES_MAX=5 > file",
     "[ -e /x ] && KSM_NPAGES_MAX=5", "KSM_NPAGES_MAX=5;", "KSM_NPAGES_MAX=5 true", "KSM_NPAGES_MAX=5#x", "unset X",
     "'KSM_NPAGES_MAX=5'", "KSM_NPAGES_MAX+=0", "export -n X=1", ". /etc/other.conf", "X='", "if false; then",
     "cat <<END", "f() {", "exit 0", "KSM_NPAGES_MAX=5\r"],
)  # fmt: skip
def test_reading_ends_where_only_a_shell_can_tell(line: str) -> None:
    values, (note,) = parse_ksmtuned_conf(f"KSM_THRES_COEF=9\n{line}\nKSM_NPAGES_MAX=2000\nKSM_SLEEP_MSEC=20\n")
    assert values == {"ksmtuned.thres_coef": 9}
    assert note == f"line 2: only a shell can read {line.strip()!r}: nothing was taken from here on"


def test_debians_file_means_the_defaults_as_installed_and_with_every_line_uncommented(tmp_path: Path) -> None:
    text = read_ksmtuned_file("etc/ksmtuned.conf")
    assert taken(text) == {}
    lines = [line.removeprefix("# ") if "=" in line else line for line in text.splitlines()]
    values, notes = parse_ksmtuned_conf("\n".join(lines))
    assert set(values) == {f"ksmtuned.{name}" for name in keys_of(KsmtunedParams)}
    assert [note.split()[2] for note in notes] == ["LOGFILE", "DEBUG"]
    assert as_adaptive(values, []) == ({}, []), "a default is not tuned"
    path = tmp_path / "imported.toml"
    path.write_text(imported(values, notes, "/etc/ksmtuned.conf", "ksmtuned"))
    loaded = load(str(path))
    assert loaded.config == Config(policy="ksmtuned")
    assert {name for name, origin in loaded.origins.items() if origin == str(path)} == {"policy", *values}


def test_for_adaptive_the_threshold_is_taken_and_nothing_else() -> None:
    params = {"thres_coef": 40, "thres_const": 9000, "npages_max": 2000, "monitor_interval": 60}
    values, notes = as_adaptive({f"ksmtuned.{name}": value for name, value in params.items()}, ["line 1: x"])
    assert values == {"adaptive.reserve_percent": 40}
    assert notes == [
        "line 1: x",
        "ksmtuned.thres_const = 9000 has no counterpart: raise reserve_percent instead",
        "ksmtuned.npages_max = 2000 has no counterpart: cpu_percent limits the speed of adaptive",
    ]


def test_the_two_thresholds_mean_the_same_memory() -> None:
    for percent, total_kib in ((1, 16_384_001), (20, 999), (40, 2**34), (100, 7)):
        ksmtuned = threshold_kib(total_kib, KsmtunedParams(thres_coef=percent, thres_const=0))
        assert reserve_of_kib(total_kib, AdaptiveParams(reserve_percent=percent)) == ksmtuned
