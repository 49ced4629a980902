"""Every dataclass that is kept or sent survives JSON, and whatever is done to it is a ValueError or a value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.history.samples import GuestEvent, Sample
from virtksm.model.decision import Reason, Triggers
from virtksm.model.snapshot import Snapshot
from virtksm.policy.adaptive.state import AdaptiveState
from virtksm.policy.ksmtuned import KsmtunedState
from virtksm.trace import End, Gap, Header, Pass
from virtksm.tuning.ownership import Ownership
from virtksm.values import MAX_MEMBERS, MAX_TEXT, build, dump

SERVED = (
    AdaptiveState, End, Gap, GuestEvent, Header, KsmtunedState, Ownership, Pass, Reason, Sample, Snapshot, Triggers,
)  # fmt: skip
DEEP = 100_000

garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLAIN: Mapping[object, st.SearchStrategy[Any]] = {
    str: st.text(max_size=9),
    bool: st.booleans(),
    int: st.integers(-(2**64), 2**64),
    float: st.floats(-(2.0**64), 2.0**64) | st.integers(-(2**64), 2**64),
    NoneType: st.none(),
    object: st.none() | st.booleans() | st.integers(-9, 9) | st.lists(st.text(max_size=3), max_size=2),
}


def values(kind: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401  # an annotation
    """Return the values that a field of this annotation may have."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if isinstance(kind, UnionType):
        return st.one_of(*map(values, inner))
    if outer in PLAIN:
        return PLAIN[outer]
    if outer is Mapping:
        return st.dictionaries(PLAIN[str], values(inner[1]), max_size=3)
    if outer is frozenset:
        return st.frozensets(values(inner[0]), max_size=3)
    if outer is tuple:
        many = inner[1:] == (...,)
        return st.lists(values(inner[0]), max_size=3).map(tuple) if many else st.tuples(*map(values, inner))
    if is_dataclass(outer) or issubclass(outer, tuple):
        return st.builds(outer, **{name: values(hint) for name, hint in get_type_hints(outer).items()})
    return st.sampled_from(list(outer))


served = st.sampled_from(SERVED).flatmap(values)


@given(served, st.booleans())
def test_what_is_dumped_is_built_again(value: object, is_exact: bool) -> None:
    assert build(type(value), json.loads(json.dumps(dump(value))), is_exact=is_exact) == value


@given(served, st.data(), garbage, st.booleans())
def test_whatever_is_changed_removed_or_added_is_a_value_error_or_a_value(
    value: object, data: st.DataObject, change: object, is_exact: bool
) -> None:
    made = type(value)
    place = kept = json.loads(json.dumps(dump(value)))
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if isinstance(place, dict) and (what := data.draw(st.sampled_from(["change", "remove", "add"]))) != "change":
        if what == "remove":
            del place[key]
        else:
            place["another"] = change
    else:
        place[key] = change
    try:
        built = build(made, kept, is_exact=is_exact)
    except ValueError:
        return
    assert build(made, dump(built)) == built


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Inner:
    whole: int = 0


@dataclass(frozen=True, kw_only=True)
class Outer:
    number: float
    flag: bool = False
    text: str = ""
    colour: Colour = Colour.RED
    pairs: tuple[tuple[float, int], ...] = ()
    by_name: Mapping[str, int] | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("number", True, "number is True, not float"),
        ("number", "1", "number is '1', not float"),
        ("number", float("nan"), "number is nan, not a number from "),
        ("number", 2**66, "number is 73786976294838206464, not a number from "),
        ("number", [[]], "number is "),
        ("flag", 1, "flag is 1, not bool"),
        ("text", None, "text is None, not str"),
        ("text", "x" * (MAX_TEXT + 1), f"not text of at most {MAX_TEXT} characters"),
        ("colour", "blue", "colour is 'blue', not one of red"),
        ("colour", [], "colour is "),
        ("pairs", [[1.0, 2, 3]], "pairs is "),
        ("pairs", [[1.0, 1]] * (MAX_MEMBERS + 1), "pairs is "),
        ("by_name", {"a": 1.5}, "a is 1.5, not int"),
        ("by_name", {1: 1}, "by_name has a name that is no text"),
        ("by_name", dict.fromkeys(map(str, range(MAX_MEMBERS + 1)), 1), "by_name is "),
        ("inner", [], "inner is "),
        ("inner", {"whole": None}, "whole is None, not int"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(field: str, value: object, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # what it says is looked at below
        build(Outer, {"number": 1, field: value})
    assert problem in str(caught.value)


def test_what_nests_without_end_is_a_value_error() -> None:
    deep: list[object] = []
    for _ in range(DEEP):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        build(Outer, {"number": deep})


def test_bounds_hold_for_what_is_nested() -> None:
    with pytest.raises(ValueError, match="whole is -1"):
        build(Outer, {"number": 0, "inner": {"whole": -1}}, least=0)


def test_another_version_s_fields_are_left_out_unless_it_has_to_be_exact() -> None:
    kept = dump(Outer(number=1))
    assert build(Outer, {"number": 1, "later": []}) == Outer(number=1)
    with pytest.raises(ValueError, match="number is missing"):
        build(Outer, {})
    for other in ({**kept, "later": 1}, {"number": 1}, {**kept, "inner": {}}):
        with pytest.raises(ValueError, match="has other fields"):
            build(Outer, other, is_exact=True)
