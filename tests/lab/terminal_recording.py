"""What people see, kept as text: a command in a terminal of so many columns, compared with the recording in a file.

A recording is what the terminal had on its screen. Two are the same but for what varies: numbers, amounts, times,
paths of temporary folders, and where a line wraps. `RECORD=1 pytest tests/real/test_terminal.py` writes anew what has
changed.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tests.lab.forked import Start
from tests.lab.pseudo_terminal import CODES, PseudoTerminal
from virtksm.text import width

FOLDER = Path(__file__).parents[1] / "terminal"
ERRORS = ("virtksm: ", "hint: ")
"""What lines begin with that wrap as the terminal does, to be copied whole."""

PROGRESS = re.compile(r"\r[^\r\n]*\x1b\[K\r")
"""A line that was written over (virtksm/cli/progress.py)."""
MASKS = (
    (r"\n {11}(?=\S)", " "),  # a hanging line
    (r"/tmp/(va|vk)[a-z0-9_]{8}", r"/tmp/\1"),  # temporary folders
    (r"qemu(\+unix)?:///system\?socket=/tmp/vk/run/libvirt/(libvirt|virtqemud)-soc ?k ?", "URI"),  # cut at 80 columns
    (r"(?m)^(Last hour|ksmd|Other) .*\n", ""),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
    (r"-?\d+(\.\d+)?", "N"),
    (r"N [MG]iB", "N MiB"),
    (r"\bsignal(, [a-z]+)+", "signal"),  # on a busy machine other triggers come with it
    (r"N(:N)+", "N:N"),
    (r" {2,}", "  "),
    (r"(takes up to N MiB): .*", r"\1: depends"),
)
"""What varies, and what it is replaced by, in this order."""


def screen(command: Start, columns: int) -> str:
    """Return what a command writes to a terminal of so many columns."""
    terminal = PseudoTerminal(command, columns=columns, rows=60)
    try:
        terminal.wait_ended()
        return CODES.sub("", PROGRESS.sub("", terminal.said)).replace("\r\n", "\n")
    finally:
        terminal.close()


def masked(text: str) -> str:
    """Return the text without what varies."""
    for pattern, instead in MASKS:
        text = re.sub(pattern, instead, text)
    return text


def find_differences(name: str, shown: str, command: Start, widths: Iterable[int]) -> list[str]:
    """Return what is wrong with a command's output, by each width; with RECORD=1 recordings are mended instead."""
    faults = []
    for columns in widths:
        text = f"$ {shown}\n{screen(command, columns)}"
        lines = [line for line in text.splitlines() if not line.startswith(ERRORS)]
        if wide := [line for line in lines if width(line) > columns]:
            faults.append(f"{name}: wider than {columns} columns: {wide}")
        file = FOLDER / f"{name}.{columns}.txt"
        recorded = file.read_text(encoding="utf-8") if file.exists() else ""
        if masked(recorded) == masked(text):
            continue
        if "RECORD" in os.environ:
            FOLDER.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        else:
            faults.append(f"{file.name} is not what is shown (RECORD=1 writes it anew):\n{text}\nrecorded:\n{recorded}")
    return faults
