"""The page for Cockpit as files: whole, and put where Cockpit looks for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "cockpit"


def install(data_home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROJECT / "script" / "cockpit", *arguments],
        env={**os.environ, "XDG_DATA_HOME": str(data_home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_the_page_loads_is_there_and_its_menu_entry_has_a_page() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', page)
    loaded += [name for module in PAGE.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', module.read_text())]
    assert [name for name in loaded if not name.startswith("../base1/") and not (PAGE / name).is_file()] == []
    manifest = json.loads((PAGE / "manifest.json").read_text(encoding="utf-8"))
    assert all((PAGE / f"{name}.html").is_file() for name in manifest["menu"])


def test_script_cockpit_links_this_checkouts_page_and_takes_the_link_away_again(tmp_path: Path) -> None:
    link = tmp_path / "cockpit" / "virtksm"
    for _ in range(2):
        done = install(tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert link.resolve() == PAGE.resolve()
    assert "https://localhost:9090" in done.stdout
    assert install(tmp_path, "--remove").returncode == 0
    assert not link.is_symlink()


def test_script_cockpit_leaves_a_folder_alone_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "cockpit" / "virtksm").mkdir(parents=True)
    for arguments in ((), ("--remove",)):
        done = install(tmp_path, *arguments)
        assert done.returncode == 1
        assert "is no link" in done.stderr


def test_script_cockpit_says_what_it_does_not_know(tmp_path: Path) -> None:
    done = install(tmp_path, "--nonsense")
    assert (done.returncode, done.stderr) == (1, "script/cockpit: knows --remove alone\n")
    assert list(tmp_path.iterdir()) == []
