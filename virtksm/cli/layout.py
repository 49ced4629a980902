"""Text for people in the width of their terminal: rows of a label and a text, and tables. Pure, but for what
prints.

Long texts wrap with a hanging indent. In a pipe nothing wraps, unless COLUMNS says how wide it is. Everything is made
printable here, and nowhere else. Python's textwrap counts characters; a terminal's columns are what matters.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from virtksm.text import printable, width

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import TextIO

SCHEMA = 1
"""Of what the commands print as JSON: another one where a field changes its meaning or goes."""
LABEL = 11
"""Columns of a label, with the blank behind it."""
GAP = "  "
MIN_COLUMNS, USUAL_COLUMNS = 40, 80
MIN_CELL = 8
NORMAL = "\x1b[0m"
TONES = {"good": "\x1b[32m", "warn": "\x1b[33m", "bad": "\x1b[31m", "dim": "\x1b[2m"}
"""How a row's label is coloured: a row is a tone, "" for none, a label and a text."""


class Table:
    """Rows of cells, the first perhaps headings. The columns `texts` are texts: they stand left and may wrap."""

    def __init__(self, rows: Sequence[Sequence[str]], texts: Collection[int], *, has_headings: bool = True) -> None:
        self.rows = [tuple(map(printable, row)) for row in rows]
        self.texts = texts
        self.has_headings = has_headings

    def lines(self, columns: int | None) -> Iterator[str]:
        """Lay the table out; the widest texts wrap until it fits. Where it cannot, rows are paragraphs."""
        widths = [max(map(width, cells)) for cells in zip(*self.rows, strict=True)]
        while columns is not None and self.texts and sum(widths) + len(GAP) * (len(widths) - 1) > columns:
            widest = max(self.texts, key=widths.__getitem__)
            if widths[widest] <= MIN_CELL and self.has_headings:
                yield from self._paragraphs(columns)
                return
            if widths[widest] <= 1:
                break
            widths[widest] -= 1
        for row in self.rows:
            cells = [wrap(cell, columns) for cell, columns in zip(row, widths, strict=True)]
            for number in range(max(map(len, cells))):
                parts = [cell[number] if number < len(cell) else "" for cell in cells]
                yield GAP.join(self._aligned(at, *pair) for at, pair in enumerate(zip(parts, widths, strict=True)))

    def _paragraphs(self, columns: int) -> Iterator[str]:
        headings, *rows = self.rows
        for number, row in enumerate(rows):
            if number:
                yield ""
            yield from to_lines([("", *named) for named in zip(headings, row, strict=True)], columns)

    def _aligned(self, at: int, part: str, columns: int) -> str:
        blank = " " * (columns - width(part))
        return part + blank if at in self.texts else blank + part


Row = tuple[str, str, str]
Item = Row | Table


def lay_out(items: Iterable[Item], columns: int | None) -> Iterator[Row]:
    """Return rows of one line each; `columns` is None for as many as they take."""
    for item in items:
        if isinstance(item, Table):
            yield from (("", line.rstrip(), "") for line in item.lines(columns))
            continue
        tone, label, text = item
        first, *others = wrap(printable(text), None if columns is None else columns - LABEL)
        yield tone, f"{printable(label):<{LABEL if text else 0}}", first
        yield from (("", " " * LABEL, other) for other in others)


def wrap(text: str, columns: int | None) -> list[str]:
    """Break printable text at its blanks into lines of at most so many columns; a longer word is cut.

    A comma at its end stands behind something of it.
    """
    if columns is None or width(text) <= columns:
        return [text]
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if width(joined) > columns:
            if line:
                lines.append(line)
            while width(word) > columns:
                part = fit(word, columns) or word[:1]
                if len(part) == len(word) - 1 > 1 and not word[-1].isalnum():
                    part = part[:-1]
                lines.append(part)
                word = word[len(part) :]  # noqa: PLW2901
            joined = word
        line = joined
    return [*lines, line] if line else lines


def fit(text: str, columns: int) -> str:
    """Cut printable text to so many columns; some characters take two of them, some none."""
    if text.isascii():
        return text[: max(columns, 0)]
    for end, one in enumerate(text):
        columns -= width(one)
        if columns < 0:
            return text[:end]
    return text


def render(row: Row, *, colour: bool) -> str:
    tone, label, text = row
    return (f"{TONES[tone]}{label}{NORMAL}{text}" if colour and tone else label + text).rstrip()


def show(items: Iterable[Item]) -> None:
    """Print items on standard output; without any, not even an empty line."""
    columns, colour = find_columns(sys.stdout, os.environ), may_colour(sys.stdout, os.environ)
    lines = to_lines(items, columns, colour=colour)
    print(*lines, sep="\n", end="\n" if lines else "", flush=True)


def print_result(options: argparse.Namespace, values: Mapping[str, object], items: Iterable[Item]) -> None:
    """Print a command's result on standard output: with --json its values, and their schema, else items for people."""
    if not options.json:
        show(items)
        return
    from virtksm.json_output import to_json

    print(to_json({"schema": SCHEMA, **values}), flush=True)


def to_lines(items: Iterable[Item], columns: int | None = None, *, colour: bool = False) -> list[str]:
    """Return items as lines of text; `columns` is None for as many as they take."""
    return [render(row, colour=colour) for row in lay_out(items, columns)]


def find_columns(stream: TextIO, environ: Mapping[str, str]) -> int | None:
    """Return COLUMNS, as the user says it, or the terminal's width; None for a pipe, which has none."""
    given = environ.get("COLUMNS", "")
    columns = int(given[:9]) if given.isascii() and given.isdecimal() else 0
    if not columns and not stream.isatty():
        return None
    if not columns:
        try:
            columns = os.get_terminal_size(stream.fileno()).columns
        except OSError:
            columns = 0
    return max(columns or USUAL_COLUMNS, MIN_COLUMNS)


def is_paintable(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether frames can be painted on what the stream leads to."""
    return stream.isatty() and environ.get("TERM", "dumb") != "dumb"


def may_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether colours are wanted there: on a terminal, unless NO_COLOR is set."""
    return is_paintable(stream, environ) and "NO_COLOR" not in environ
