"""The report of claims: a line each, and the figures that they tell."""

import re
from io import StringIO

from tests.boot.inside import NotSo, try_claims


def holds() -> None:
    """one that holds"""


def tells() -> str:
    """one with a figure"""
    return "7"


def fails() -> None:
    """one that
    does not hold"""
    raise NotSo("it is otherwise")


def test_every_claim_is_tried_and_told() -> None:
    lines = StringIO()
    assert try_claims((holds, fails, tells), lines.write) == 1
    assert re.sub(r" +\d+\.\d s", " N s", lines.getvalue()).splitlines() == [
        "ok N s  one that holds",
        "FAILED N s  one that does not hold: it is otherwise",
        "ok N s  one with a figure: 7",
        "2 of 3 claims hold",
    ]
