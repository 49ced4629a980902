"""Writes everything into a folder: `python3 -m manual FOLDER`. Needs pandoc."""

import argparse
import subprocess
from pathlib import Path

from manual.completions import make_bash_script, make_fish_script, make_zsh_script
from manual.pages import configuration_page, hook_page, program_page
from manual.tree import describe

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Write man pages and completion; raises CalledProcessError if pandoc fails."""
    options = argparse.ArgumentParser(prog="manual", description=__doc__)
    options.add_argument("folder", type=Path, metavar="FOLDER")
    folder = options.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    root = describe()
    pages = {
        "virtksm.1": program_page(root, read("reference.md")),
        "virtksm.toml.5": configuration_page(read("configuration.md")),
        "virtksm-hook.7": hook_page(read("guide.md")),
    }
    for name, text in pages.items():
        to_man = ("pandoc", "--standalone", "--from=markdown-smart", "--to=man", f"--output={folder / name}")
        subprocess.run(to_man, input=text, text=True, check=True)
    scripts = {
        "virtksm.bash": make_bash_script(root),
        "virtksm.zsh": make_zsh_script(root),
        "virtksm.fish": make_fish_script(root),
    }
    for name, text in scripts.items():
        (folder / name).write_text(text, encoding="utf-8")


def read(name: str) -> str:
    """Return a document's text."""
    return (DOCS / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
