"""What all values share, NamedTuples and frozen dataclasses: `replace`, a default for mappings, and JSON. Pure.

`build` and `dump` take values from and to JSON by their annotations, bounded, as it may be from outside. A value may
hold text, bool, int, float, Enum members (by value), what may be None, other values, tuples, frozensets and mappings by
name; `object` takes any JSON value as it is.

A one-shot that finds an agent needs parse_object alone: expensive imports happen when `build` is called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from types import MappingProxyType, NoneType, UnionType

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import Any, NamedTuple, TypeVar

    from _typeshed import DataclassInstance

    Made = TypeVar("Made")
    Value = TypeVar("Value", bound=NamedTuple | DataclassInstance)
    Bounds = tuple[float, float, bool]

EMPTY: Mapping[str, Any] = MappingProxyType({})
"""The default of a field that is a Mapping."""
MAX = 2.0**65
"""Bounds numbers: no counter and no clock exceeds it."""
MAX_TEXT = 4096
"""Characters of a text: a guest's name, or an error with a path."""
MAX_MEMBERS = 100_000
"""Bounds lists and mappings: of guests, and of times."""
PLAIN = frozenset((str, int, float, bool, NoneType))


def replace(value: Value, **changes: Any) -> Value:  # noqa: ANN401  # the fields'
    """Return the same value with other fields; raises ValueError or TypeError for one that it has not."""
    if isinstance(value, tuple):
        changed: Value = value._replace(**changes)  # type: ignore[attr-defined]  # a NamedTuple's
        return changed
    import dataclasses

    return dataclasses.replace(value, **changes)


def parse_object(said: bytes | str, what: str) -> dict[str, object]:
    """Parse a JSON object, called `what` in the ValueError that is raised for other text."""
    try:
        value = json.loads(said, parse_int=_whole, parse_float=_real, parse_constant=_real)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object")
    return value


def _whole(text: str) -> int:
    _real(text)
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not -MAX < value < MAX:
        raise ValueError(f"{text:.20} is no number of a counter or a clock")
    return value


def build(made: type[Made], values: object, *, least: float = -MAX, most: float = MAX, is_exact: bool = False) -> Made:
    """Build a value from the JSON values of its fields, by their annotations; raises ValueError naming the field.

    Numbers are bounded, nested ones too. A missing field gets its default, and an unknown one is left out, as another
    version may have written it; `is_exact` allows neither.
    """
    try:
        built: Made = _take_fields(made, made.__name__, values, (least, most, is_exact))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return built


def dump(value: object) -> Any:  # noqa: ANN401  # the dumped value's
    """Return a value and its nested values as JSON values: of a value of ours its fields, in their order."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: one if type(one) in PLAIN else dump(one) for name, one in value.items()}
    if isinstance(value, frozenset):
        return sorted(dump(one) for one in value)
    names = _field_names(type(value))
    if not names and isinstance(value, list | tuple):
        return [dump(one) for one in value]
    return {name: dump(getattr(value, name)) for name in names}


def _field_names(made: type) -> Iterable[str]:
    """Return the fields of a NamedTuple or a dataclass; none of any other class."""
    names: Iterable[str] = getattr(made, "_fields", getattr(made, "__dataclass_fields__", ()))
    return names


class _Kind:
    """An annotation: its types but None, and the class and the parameters of the first."""

    def __init__(self, annotation: Any) -> None:  # noqa: ANN401
        from typing import get_args, get_origin

        kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        self.types = tuple(one for one in kinds if one is not NoneType)
        self.made: Any = get_origin(self.types[0]) or self.types[0]
        parameters = get_args(self.types[0])
        self.inner = tuple(_Kind(one) for one in parameters if one is not ...)
        self.may_be_none = NoneType in kinds
        self.is_plain = self.made in (str, bool, int, float)
        self.is_row = self.made is tuple and ... not in parameters

    def take(self, name: str, value: Any, bounds: Bounds) -> Any:  # noqa: ANN401  # a field's
        made = self.made
        if value is None and self.may_be_none:
            return None
        if self.is_plain:
            return self._take_plain(name, value, bounds)
        if made is object:
            return value
        if made is Mapping:
            if not isinstance(value, Mapping) or len(value) > MAX_MEMBERS:
                raise _wrong(name, value, "an object")
            if not all(isinstance(key, str) and len(key) <= MAX_TEXT for key in value):
                raise ValueError(f"{name} has a name that is no text")
            return {key: self.inner[1].take(key, one, bounds) for key, one in value.items()}
        if made in (frozenset, tuple):
            return self._take_many(name, value, bounds)
        if issubclass(made, Enum):
            try:
                return made(value)
            except ValueError:
                raise _wrong(name, value, f"one of {', '.join(str(one.value) for one in made)}") from None
        return _take_fields(made, name, value, bounds)

    def _take_plain(self, name: str, value: Any, bounds: Bounds) -> object:  # noqa: ANN401  # as above
        if type(value) not in self.types and not (type(value) is int and float in self.types):  # bool is an int
            raise _wrong(name, value, " or ".join(one.__name__ for one in self.types))
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise _wrong(name, value, f"text of at most {MAX_TEXT} characters")
        elif not isinstance(value, bool) and not bounds[0] <= value <= bounds[1]:  # NaN is not, either
            raise _wrong(name, value, f"a number from {bounds[0]:g} to {bounds[1]:g}")
        return value

    def _take_many(self, name: str, value: Any, bounds: Bounds) -> object:  # noqa: ANN401  # as above
        is_list = isinstance(value, list | tuple) and len(value) <= MAX_MEMBERS
        if not is_list or (self.is_row and len(value) != len(self.inner)):
            raise _wrong(name, value, f"a list of {len(self.inner)}" if self.is_row else "a list")
        inner = self.inner if self.is_row else self.inner * len(value)
        return self.made(one.take(name, member, bounds) for one, member in zip(inner, value, strict=True))


@cache
def _kinds(made: Any) -> tuple[dict[str, _Kind], set[str]]:  # noqa: ANN401  # a value's class
    """Return how a value's fields are annotated, and which have no default; raises TypeError if it is none."""
    from typing import get_type_hints

    hints = get_type_hints(made)
    kinds = {name: _Kind(hints[name]) for name in _field_names(made)}
    if issubclass(made, tuple):
        return kinds, kinds.keys() - made._field_defaults.keys()
    from dataclasses import MISSING, fields

    return kinds, {one.name for one in fields(made) if one.default is one.default_factory is MISSING}


def _take_fields(made: Any, name: str, value: Any, bounds: Bounds) -> Any:  # noqa: ANN401  # as above
    kinds, required = _kinds(made)
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object")
    if bounds[2] and value.keys() != kinds.keys():
        raise ValueError(f"{name} has other fields")
    if missing := required - value.keys():
        raise ValueError(f"{min(missing)} is missing")
    return made(**{key: kind.take(key, value[key], bounds) for key, kind in kinds.items() if key in value})


def _wrong(name: str, value: object, what: str) -> ValueError:
    return ValueError(f"{name:.40} is {value!r:.40}, not {what}")
