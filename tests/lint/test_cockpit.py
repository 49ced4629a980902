"""The page for Cockpit as files: whole."""

import json
import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "cockpit"


def test_what_the_page_loads_is_there_and_its_menu_entry_has_a_page() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', page)
    loaded += [name for module in PAGE.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', module.read_text())]
    assert [name for name in loaded if not name.startswith("../base1/") and not (PAGE / name).is_file()] == []
    manifest = json.loads((PAGE / "manifest.json").read_text(encoding="utf-8"))
    assert all((PAGE / f"{name}.html").is_file() for name in manifest["menu"])
