"""Values: what is replaced is of the same kind, of a NamedTuple as of a dataclass."""

from dataclasses import dataclass
from typing import NamedTuple

from virtksm.values import replace


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    ends: tuple[Point, ...]
    name: str | None = None


LINE = Line(ends=(Point(x=1), Point(x=2, y=3)))


def test_what_is_replaced_is_of_the_same_kind_and_the_rest_stays() -> None:
    moved = replace(LINE, ends=(replace(LINE.ends[1], y=4),))
    assert (type(moved), type(moved.ends[0])) == (Line, Point)
    assert moved == Line(ends=(Point(x=2, y=4),))
