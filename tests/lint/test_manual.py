"""Man pages and completion: they name all that the program offers, and bash completes by them."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from manual.completions import make_bash_script, make_fish_script, make_zsh_script
from manual.pages import (
    HOOK_SECTION,
    configuration_page,
    hook_page,
    program_page,
    section,
    without_links,
    without_tables,
)
from manual.tree import Command, describe, describe_options
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.pseudo_terminal import PseudoTerminal
from virtksm.config.schema import all_keys

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
ROOT = describe()
GUESTS = ("web one", "web-2", "db")
HOSTILE_GUESTS = (
    "a$(touch pwned; echo x)",
    "b`touch pwned`",
    "c'd\"e; touch pwned #",
    "f  g\\h ",
    "i*[!k]{l,m}>pwned",
    "n:1=2@3",
    "o\t$(touch pwned)",
    "~root!!",
    "ü${x:-$(touch pwned)}",
)
"""With a first character that no other has, and that needs no quotes."""


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def with_guest() -> Command:
    """Return a program of which one command takes a guest's name, a file and a choice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("guest", metavar="GUEST", help="whom (default: %(default)s)", default="all")
    parser.add_argument("--out", "-o", metavar="FILE", help="where to")
    parser.add_argument("--sort", choices=("name", "memory"))
    parser.add_argument("--secret", help=argparse.SUPPRESS)
    options = tuple(describe_options(parser))
    look = Command(words=("virtksm", "look"), summary="look at %% of it", usage="", options=options)
    return Command(words=("virtksm",), summary="", usage="", options=(), commands=(look,))


def write_program(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)


def complete_in_bash(script: str, tmp_path: Path, *words: str, guests: tuple[str, ...] = GUESTS) -> list[str]:
    """Return what bash offers for the last word of a command line; `virsh` knows the guests."""
    write_program(tmp_path / "virsh", "printf '%s\\n' " + shlex.join((*guests, "")))
    asked = f"""{script}
        PATH={tmp_path}:$PATH
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _virtksm
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    run = subprocess.run(["bash", "-c", asked, "-", *words], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert run.stderr == ""
    return run.stdout.split("\n")[:-1]


def test_man_pages_are_made_where_nothing_is_installed_that_the_program_needs() -> None:
    """As where a package is built."""
    needs = ["libvirt", "psutil", "structlog", "tenacity"]
    program = f"""
import sys
sys.modules.update(dict.fromkeys({needs}))  # None: they cannot be imported
from manual.tree import describe
describe()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PROJECT)


def test_the_tree_tells_what_help_tells_and_hides_what_it_hides() -> None:
    [look] = with_guest().commands
    told = [(option.flags, option.metavar, option.choices, option.help) for option in look.options]
    assert [told[0], *told[2:]] == [
        ((), "GUEST", (), "whom (default: all)"),
        (("--out", "-o"), "FILE", (), "where to"),
        (("--sort",), "name|memory", ("name", "memory"), ""),
    ]


def test_the_programs_page_has_every_command_and_option() -> None:
    page = program_page(ROOT, read("reference.md")).replace("\\", "")
    for command in ROOT.walk():
        assert command is ROOT or f"\n## {' '.join(command.words[1:])}\n" in page
        _, _, own = page.partition(f"`{command.usage}`")
        for option in command.options:
            text = page if option.is_common else own
            assert option.flags == ("-h", "--help") or all(f"**{flag}**" in text for flag in option.flags)
        assert command.commands or (command.examples and all(example in page for example, _ in command.examples))
    assert "\n4\n:   the kernel or libvirt refused a setting\n" in page
    assert "| --- |" not in page
    assert "SIGUSR1" in page


def test_the_configurations_page_has_every_key_with_its_default() -> None:
    page = configuration_page(read("configuration.md")).replace("\\", "")
    for name, key in all_keys().items():
        assert f"\n**{name.rpartition('.')[2]}**\n:   {key.meaning}\n\n    {key.range_text}; default" in page
    assert "# WHERE IT IS READ FROM" in page
    assert "| --- |" not in page, "tables of keys are wider than a terminal"


def test_the_hooks_page_is_the_guides_section() -> None:
    page = hook_page(read("guide.md"))
    assert "\n# WHAT THE HOOK DOES\n" in page
    assert section(read("guide.md"), HOOK_SECTION).splitlines()[0] in page


def test_pages_have_no_links_between_documents() -> None:
    for name in ("reference.md", "configuration.md", "guide.md"):
        assert "](" not in without_links(read(name).replace("](https://", ""))
    assert "[TOML](https://toml.io)" in without_links("[TOML](https://toml.io)")


def test_a_table_becomes_a_list() -> None:
    table = "Before.\n\n| code | meaning |\n| --- | --- |\n| 0 | `a\\|b` |\n| 1 | no |\n\nAfter.\n"
    assert without_tables(table) == "Before.\n\n0\n:   `a\\|b`\n\n1\n:   no\n\n\nAfter.\n"


def test_bash_completes_commands_options_choices_names_of_guests_and_files(tmp_path: Path) -> None:
    for typed, completed in (
        ("ret", "retune"),
        ("restore --de", "--defaults"),
        ("agent --log-level e", "error"),
        ("--config agent config im", "import"),
    ):
        assert complete_in_bash(make_bash_script(ROOT), tmp_path, "virtksm", *typed.split()) == [completed]
    script = make_bash_script(with_guest())
    for typed in ("w", "web\\ o", "'web o", '"web o'):
        offered = ["web one" if typed[0] in "'\"" else "web\\ one", *(["web-2"] if typed == "w" else [])]
        assert complete_in_bash(script, tmp_path, "virtksm", "look", typed) == offered
    assert complete_in_bash(make_bash_script(ROOT), tmp_path, "virtksm", "guests", "web-2", "d") == ["db"]
    (tmp_path / "a-file").touch()
    offered = complete_in_bash(script, tmp_path, "virtksm", "look", "--out", f"{tmp_path}/a-")
    assert offered == [f"{tmp_path}/a-file"]


def test_bash_never_runs_a_guests_name(tmp_path: Path) -> None:
    script = make_bash_script(with_guest())
    for typed in ("", "'", '"'):
        offered = complete_in_bash(script, tmp_path, "virtksm", "look", typed, guests=HOSTILE_GUESTS)
        assert len(offered) == (1 if typed else len(HOSTILE_GUESTS))
        assert not typed or offered == [""], "what would need quotes within quotes is not offered"
    assert not (tmp_path / "pwned").exists()


def test_a_guests_name_that_bash_has_completed_is_one_argument(tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(make_bash_script(ROOT), encoding="utf-8")
    write_program(tmp_path / "virsh", "printf '%s\\n' " + shlex.join((*HOSTILE_GUESTS, "")))
    write_program(tmp_path / "virtksm", 'printf "%s|" "$@" >>taken; echo >>taken')
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "INPUTRC": "/dev/null", "HISTFILE": "/dev/null"}
    shell = PseudoTerminal(["env", "-C", str(tmp_path), "bash", "--noprofile", "--norc", "-i"], environ=environ)
    try:
        shell.type(b". ./completion\n")
        for name in HOSTILE_GUESTS:
            typed = "\\" * (name[0] == "~") + name[0]
            shell.type(f"virtksm guest show {typed}\t\n".encode())
        taken, wanted = tmp_path / "taken", [f"guest|show|{name}|" for name in HOSTILE_GUESTS]
        wait_until(
            lambda: taken.exists() and taken.read_text("utf-8").splitlines() == wanted,
            HANG_S,
            f"{wanted}, but {taken.exists() and taken.read_text('utf-8')}",
        )
    finally:
        shell.close()
    assert not (tmp_path / "pwned").exists()


def test_zsh_and_fish_are_told_every_command_and_option() -> None:
    for script in (make_zsh_script(ROOT), make_fish_script(ROOT)):
        assert "%(" not in script
        for command in ROOT.walk():
            assert command is ROOT or command.words[-1] in script
            for flag in (flag for option in command.options for flag in option.flags if flag.startswith("--")):
                assert (flag in script) or (f"-l {flag[2:]} " in script + " ")


def test_fish_offers_each_word_at_its_place() -> None:
    lines = make_fish_script(with_guest()).splitlines()
    assert "complete -c virtksm -n 'not __fish_seen_subcommand_from look' -a look -d 'look at %% of it'" in lines
    assert [line.partition("from look' ")[2] for line in lines if "-n '__fish" in line] == [
        "-xa '(virsh --readonly list --name 2>/dev/null)'",
        "-s h -l help -d 'show this help message and exit'",
        "-l out -s o -F -d 'where to'",
        "-l sort -xa 'name memory'",
    ]
