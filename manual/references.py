"""The documents' tables and the JSON Schema, as the program has them: `python -m manual.references` rewrites them.

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`. virtksm.config makes the tables of keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

from manual.json_schema import json_schema
from manual.tree import Command, describe
from virtksm.agent.metrics.definitions import METRICS, Metric
from virtksm.doctor.checks import CHECKS

DOCS = Path(__file__).resolve().parents[1] / "docs"


def commands_table() -> str:
    """Return every command that can be called, and what it does."""
    leaves = [one for one in describe().walk() if not one.commands]
    return _table(("command", "does"), ((f"`{' '.join(one.words)}{_arguments(one)}`", one.summary) for one in leaves))


def metrics_table() -> str:
    """Return every metric with its labels; a counter's name says that it is one."""
    return _table(
        ("metric", "tells"),
        ((f"`{one.name}{_labels(one)}`", one.meaning + " (histogram)" * (one.kind == "histogram")) for one in METRICS),
    )


def checks_table() -> str:
    """Return every check of doctor, by group."""
    rows = (
        (group, "; ".join(f"`{one.name}`" + f": {one.what}" * (one.what != one.name) for one in checks))
        for group, checks in groupby(CHECKS, key=lambda one: one.group)
    )
    return _table(("group", "checks"), rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "commands": ("reference.md", commands_table),
    "checks": ("reference.md", checks_table),
    "metrics": ("metrics.md", metrics_table),
}
"""By name: the document that has it, and what makes it."""


def filled(document: str, name: str, table: str) -> str:
    """Return a document with a table at its place; raises ValueError if there is none."""
    place = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(place.findall(document)) != 1:
        raise ValueError(f"no one place for {name}")
    return place.sub(lambda found: found[1] + table + found[2], document)


def rewritten() -> Iterator[tuple[Path, str]]:
    """Yield each document that has a table, and its text as it should be."""
    for name, (document, make) in TABLES.items():
        path = DOCS / document
        yield path, filled(path.read_text(encoding="utf-8"), name, make())
    yield DOCS / "json-schema.json", json_schema()


def _labels(metric: Metric) -> str:
    return f"{{{','.join(metric.labels)}}}" if metric.labels else ""


def _arguments(command: Command) -> str:
    found = re.search(r"(?: \[[A-Z]+(?: \.\.\.)?\]| [A-Z]+)*$", command.usage)
    return found[0] if found else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    for one_path, one_text in rewritten():
        one_path.write_text(one_text, encoding="utf-8")
