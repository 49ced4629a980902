"""The table of docs/tried.md: each whole run of a suite, and each run of claims, keeps its row in build/tried.

`python -m tests.tried` puts those rows into the document, each in the place of an earlier one of its run and userland.
The names of the files there mean nothing to it: rows of a checkout on another userland may lie beside them.
"""

import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
ROWS = PROJECT / "build" / "tried"
DOCUMENT = PROJECT / "docs" / "tried.md"
UNKNOWN = "| | |"


def keep(run: str, here: str, result: str, rows: Path = ROWS) -> None:
    """Keep the row of a run of `script/test`; `here` has the cells userland, kernel, libvirt and Python."""
    rows.mkdir(parents=True, exist_ok=True)
    cells = (f"`script/test {run}`".replace(" `", "`"), here, result, datetime.now(UTC).date().isoformat())
    (rows / (run.replace(" ", "-") or "suite")).write_text(f"| {' | '.join(cells)} |\n", encoding="utf-8")


def keep_claims(run: str, report: Path, rows: Path = ROWS) -> None:
    """Keep the row of a run of claims, by the report that they have left."""
    said = report.read_text(encoding="utf-8", errors="replace")
    here = re.search(r"^here +(.*?)\s*$", said, re.MULTILINE)
    result = re.search(r"^\d+ of \d+ claims hold", said, re.MULTILINE)
    keep(run, here[1] if here else UNKNOWN, result[0] if result else "did not end", rows)


def merged(document: str, rows: Iterable[str]) -> str:
    """Return the document with these rows, in the order of runs and userlands.

    A run that did not get as far as telling where it was takes no other's place, and gives up its own to any.
    """
    head, mark, table = document.partition("| --- |")
    first, *lines = table.splitlines()
    had = {key(line): line for line in lines if line.startswith("|")}
    new = {key(row): row for row in rows}
    again = {(run, "") for run, _ in new}
    kept = {place: line for place, line in had.items() if place not in again}
    return f"{head}{mark}{first}\n" + "".join(f"{line}\n" for _, line in sorted((kept | new).items()))


def key(row: str) -> tuple[str, str]:
    """Return a row's run and userland."""
    run, userland, *_ = (cell.strip() for cell in row.strip("| ").split("|"))
    return run, userland


def main(arguments: list[str]) -> None:
    """With RUN REPORT: keep the row of these claims; without: rewrite the document."""
    if arguments:
        run, report = arguments
        keep_claims(run, Path(report))
        return
    rows = [path.read_text(encoding="utf-8").strip() for path in ROWS.iterdir()]
    DOCUMENT.write_text(merged(DOCUMENT.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
