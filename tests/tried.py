"""The table of docs/tried.md: each whole run of a suite, and each run of claims, keeps its row in build/tried.

`python -m tests.tried` puts those rows into the document, each in the place of an earlier one of its run.
"""

import re
import sys
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


def merged(document: str, rows: dict[str, str]) -> str:
    """Return the document with these rows, by run, in the order of the runs' names."""
    head, mark, table = document.partition("| --- |")
    first, *lines = table.splitlines()
    had = {line.split(" | ", 1)[0]: line for line in lines if line.startswith("|")}
    return f"{head}{mark}{first}\n" + "".join(f"{line}\n" for _, line in sorted((had | rows).items()))


def main(arguments: list[str]) -> None:
    """With RUN REPORT: keep the row of these claims; without: rewrite the document."""
    if arguments:
        run, report = arguments
        keep_claims(run, Path(report))
        return
    lines = [path.read_text(encoding="utf-8").strip() for path in ROWS.iterdir()]
    text = merged(DOCUMENT.read_text(encoding="utf-8"), {line.split(" | ", 1)[0]: line for line in lines})
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
