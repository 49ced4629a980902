"""The product's own source: no Python code of it writes below /sys.

What it does at run time is tested with /sys mounted read-only (tests/real/test_agent_conflict.py).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "virtksm"
MODULES = sorted(PACKAGE.rglob("*.py"))

READS_SYS = {
    "host/local_facts.py": set[str](),  # KSM's switch and advisor
    "doctor/reading/boot.py": set[str](),  # the files that name KSM's folder
    "doctor/reading/processes.py": set[str](),  # whether libvirt's daemon sees KSM's folder read-only
}
"""The modules whose code, not only whose texts for people, names a path below /sys, and what else they may write."""

WRITING_CALLS = {
    "write_text", "write_bytes", "touch", "mkfifo", "mkdir", "rename", "replace_file", "unlink", "rmdir", "pwrite",
    "truncate", "symlink", "copyfile", "fchmod",
}  # fmt: skip


def texts(tree: ast.AST) -> list[str]:
    """Return the string constants of a module, docstrings aside."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def names_sys(module: Path) -> bool:
    """Tell whether a text of the module is itself a path below /sys, not a sentence that mentions one."""
    return any(text.startswith("/sys") for text in texts(ast.parse(module.read_text(encoding="utf-8"))))


def writing_calls(module: Path) -> set[str]:
    """Return the names of calls by which the module could write a file."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WRITING_CALLS or (name == "open" and not opens_for_reading(node)):
            found.add(name)
    return found


def opens_for_reading(call: ast.Call) -> bool:
    """Tell whether an open() has no mode or flags but reading ones; libvirt.open and os.open are told by these."""
    said = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    flags = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
    modes = {text for text in said if text and set(text) <= set("rwaxbt+")}
    return not any(set(mode) & set("wax+") for mode in modes) and not flags & {"O_WRONLY", "O_RDWR", "O_CREAT"}


def test_there_are_modules_to_judge() -> None:
    assert len(MODULES) > 30


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_can_write_below_sys(module: Path) -> None:
    name = str(module.relative_to(PACKAGE))
    assert names_sys(module) == (name in READS_SYS)
    if names_sys(module):
        assert writing_calls(module) <= READS_SYS[name]


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("open('/sys/kernel/mm/ksm/run', 'w')", {"open"}),
        ("Path('/sys/x').write_text('1')", {"write_text"}),
        ("os.open(path, os.O_WRONLY)", {"open"}),
        ("Path('/sys/x').open('r+b')", {"open"}),
        ("open('/sys/x')", set()),
        ("Path('/sys/x').read_text()", set()),
    ],
)
def test_the_judge_sees_what_writes(tmp_path: Path, source: str, calls: set[str]) -> None:
    module = tmp_path / "module.py"
    module.write_text(source, encoding="utf-8")
    assert writing_calls(module) == calls
