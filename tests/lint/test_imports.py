"""The product's own source: no Python code of it writes below /sys, and few modules lie beside its folders.

What it does at run time is tested with /sys mounted read-only (tests/real/test_agent_conflict.py).
"""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "virtksm"
READS_SYS = {
    "host/local_facts.py",  # KSM's switch and advisor
    "host/memory_limits.py",  # control groups
    "doctor/reading/boot.py",  # the files that name KSM's folder
    "doctor/reading/processes.py",  # whether libvirt's daemon sees KSM's folder read-only
}
"""The modules of which a text is itself a path below /sys, and no sentence that mentions one: they may not write."""
WRITES = re.compile(
    r"\b(write_text|write_bytes|touch|mkfifo|mkdir|rename|replace_file|unlink|rmdir|pwrite|truncate|symlink|copyfile|fchmod"
    r"|O_WRONLY|O_RDWR|O_CREAT)\b|\bopen\([^)]*['\"]([wax]|r?b?\+)[bt+]*['\"]"
)


def names_sys(text: str) -> bool:
    constants = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return any(isinstance(value, str) and f"{value}/".startswith("/sys/") for value in constants)


def test_no_module_can_write_below_sys() -> None:
    texts = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert {name for name, text in texts.items() if names_sys(text)} == READS_SYS
    assert {name: found for name in READS_SYS if (found := WRITES.findall(texts[name]))} == {}
    assert WRITES.search("Path('/sys/x').open('r+b')")


def test_at_most_eight_modules_lie_beside_the_folders() -> None:
    beside = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(beside) <= 8, sorted(beside)
