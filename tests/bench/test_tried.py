"""The table of what was tried where: a run's row takes the place of its earlier one."""

from pathlib import Path

import pytest

from tests import tried

HEAD = "# Tried\n\n| run | result |\n| --- | --- |\n"


def test_a_run_s_row_takes_the_place_of_its_earlier_one() -> None:
    old = {"| `b`": "| `b` | 1 of 2 |", "| `a`": "| `a` | 2 of 2 |"}
    document = tried.merged(HEAD, old)
    assert document == f"{HEAD}| `a` | 2 of 2 |\n| `b` | 1 of 2 |\n"
    assert tried.merged(document, {"| `b`": "| `b` | 2 of 2 |"}) == f"{HEAD}| `a` | 2 of 2 |\n| `b` | 2 of 2 |\n"


@pytest.mark.parametrize(
    ("report", "cells"),
    [
        (
            "here    Debian 12 | 6.1 | libvirtd 9.0.0 | 3.11.2\r\nok      it\r\n7 of 7 claims hold\r\n",
            "7 of 7 claims hold",
        ),
        ("here    Debian 12 | 6.1 | libvirtd 9.0.0 | 3.11.2\nok      it\n", "did not end"),
        ("", "did not end"),
    ],
)
def test_claims_leave_what_they_came_to(report: str, cells: str, tmp_path: Path) -> None:
    (tmp_path / "report").write_text(report, encoding="utf-8")
    tried.keep_claims("vm 6.1", tmp_path / "report", tmp_path / "rows")
    here = "Debian 12 | 6.1 | libvirtd 9.0.0 | 3.11.2" if report else "| | |"
    [row] = (tmp_path / "rows").iterdir()
    assert row.read_text(encoding="utf-8").startswith(f"| `script/test vm 6.1` | {here} | {cells} | 20")
