"""The table of what was tried where: a run's row takes the place of its earlier one on the same userland."""

from pathlib import Path

import pytest

from tests import tried

HEAD = "# Tried\n\n| run | userland | result |\n| --- | --- | --- |\n"
A = "| `a` | Debian 12 | 2 of 2 |"
B = "| `b` | Debian 12 | 1 of 2 |"
B_AGAIN = "| `b` | Debian 12 | 2 of 2 |"
B_ELSEWHERE = "| `b` | Debian 13 | 1 of 2 |"
B_NOWHERE = f"| `b` | {tried.UNKNOWN} | did not end |"


@pytest.mark.parametrize(
    ("had", "new", "becomes"),
    [
        ([], [B, A], [A, B]),
        ([A, B], [B_AGAIN], [A, B_AGAIN]),
        ([A, B], [B_ELSEWHERE], [A, B, B_ELSEWHERE]),
        ([B, B_ELSEWHERE], [B_AGAIN], [B_AGAIN, B_ELSEWHERE]),
        ([A, B], [B_NOWHERE], [A, B_NOWHERE, B]),
        ([A, B_NOWHERE, B], [B_ELSEWHERE], [A, B, B_ELSEWHERE]),
    ],
)
def test_a_run_s_row_takes_the_place_of_its_earlier_one_on_the_same_userland(
    had: list[str], new: list[str], becomes: list[str]
) -> None:
    document = tried.merged(HEAD, had)
    assert tried.merged(document, new) == "\n".join([HEAD.rstrip(), *becomes, ""])


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
