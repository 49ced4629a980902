"""Values from and to JSON, bounded: objects from outside, and dataclasses by their annotations. Pure.

A dataclass may hold text, bool, int, float, Enum members (by value), what may be None, other dataclasses, tuples,
frozensets and mappings by name; `object` takes any JSON value as it is.

A one-shot that finds an agent needs parse_object alone: expensive imports happen when `build` is called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import NoneType, UnionType

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Made = TypeVar("Made")
    Bounds = tuple[float, float, bool]
    Reader = Callable[[str, Any, Bounds], Any]

MAX = 2.0**65
"""Bounds numbers: no counter and no clock exceeds it."""
MAX_TEXT = 4096
"""Characters of a text: a guest's name, or an error with a path."""
MAX_MEMBERS = 100_000
"""Bounds lists and mappings: of guests, and of times."""


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
    """Build a dataclass from the JSON values of its fields, by their annotations; raises ValueError naming the field.

    Numbers are bounded, nested ones too. A missing field gets its default, and an unknown one is left out, as another
    version may have written it; `is_exact` allows neither.
    """
    try:
        built: Made = _reader(made)(made.__name__, values, (least, most, is_exact))  # type: ignore[arg-type]  # a class is hashable
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return built


def dump(value: object) -> Any:  # noqa: ANN401  # the dumped value's
    """Return a value and its nested values as JSON values: of a dataclass its fields, in their order."""
    if type(value) in (str, int, float, bool, NoneType):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: dump(one) for name, one in value.items()}
    if isinstance(value, frozenset):
        return sorted(dump(one) for one in value)
    if isinstance(value, list | tuple):
        return [dump(one) for one in value]
    return {name: dump(getattr(value, name)) for name in type(value).__dataclass_fields__}  # type: ignore[attr-defined]


@cache
def _reader(kind: Any) -> Reader:  # noqa: ANN401  # an annotation
    """Return the reader of a JSON value for an annotation, given the field's name and the bounds."""
    from typing import get_args, get_origin

    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    wanted = [one for one in kinds if one is not NoneType]
    outer, inner = get_origin(wanted[0]) or wanted[0], get_args(wanted[0])
    if outer in (str, bool, int, float):
        reader = _plain(wanted)
    elif outer is object:
        reader = _anything
    elif outer is Mapping:
        reader = _mapping(_reader(inner[1]))
    elif outer is frozenset or inner[1:] == (...,):
        reader = _many(outer, _reader(inner[0]))
    elif outer is tuple:
        reader = _row([_reader(one) for one in inner])
    else:
        reader = _member(outer) if issubclass(outer, Enum) else _fields(outer)
    if NoneType not in kinds:
        return reader
    return lambda name, value, bounds: None if value is None else reader(name, value, bounds)


def _anything(_name: str, value: object, _bounds: Bounds) -> object:
    return value


def _plain(kinds: list[type]) -> Reader:
    what, types = " or ".join(one.__name__ for one in kinds), {*kinds, *((int,) if float in kinds else ())}

    def take(name: str, value: Any, bounds: Bounds) -> object:  # noqa: ANN401  # compared once it is a number
        if type(value) not in types:  # exactly: bool is an int
            raise _wrong(name, value, what)
        if isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise _wrong(name, value, f"text of at most {MAX_TEXT} characters")
        elif not isinstance(value, bool) and not bounds[0] <= value <= bounds[1]:  # NaN is not, either
            raise _wrong(name, value, f"a number from {bounds[0]:g} to {bounds[1]:g}")
        return value

    return take


def _mapping(reader: Reader) -> Reader:
    def take(name: str, value: object, bounds: Bounds) -> object:
        if not isinstance(value, Mapping) or len(value) > MAX_MEMBERS:
            raise _wrong(name, value, "an object")
        if not all(isinstance(key, str) and len(key) <= MAX_TEXT for key in value):
            raise ValueError(f"{name} has a name that is no text")
        return {key: reader(key, one, bounds) for key, one in value.items()}

    return take


def _many(made: type, reader: Reader) -> Reader:
    def take(name: str, value: object, bounds: Bounds) -> object:
        if not isinstance(value, list | tuple) or len(value) > MAX_MEMBERS:
            raise _wrong(name, value, "a list")
        return made(reader(name, one, bounds) for one in value)

    return take


def _row(readers: list[Reader]) -> Reader:
    def take(name: str, value: object, bounds: Bounds) -> object:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise _wrong(name, value, f"a list of {len(readers)}")
        return tuple(reader(name, one, bounds) for reader, one in zip(readers, value, strict=True))

    return take


def _member(of: type[Enum]) -> Reader:
    def take(name: str, value: object, _bounds: Bounds) -> object:
        try:
            return of(value)
        except ValueError:
            raise _wrong(name, value, f"one of {', '.join(str(one.value) for one in of)}") from None

    return take


def _fields(made: Any) -> Reader:  # noqa: ANN401  # a dataclass
    """Return the reader of a dataclass; raises TypeError if it is none."""
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    kinds = get_type_hints(made)
    readers = {one.name: _reader(kinds[one.name]) for one in fields(made)}
    required = {one.name for one in fields(made) if one.default is one.default_factory is MISSING}

    def take(name: str, value: object, bounds: Bounds) -> object:
        if not isinstance(value, Mapping):
            raise _wrong(name, value, "an object")
        if bounds[2] and value.keys() != readers.keys():
            raise ValueError(f"{name} has other fields")
        if missing := required - value.keys():
            raise ValueError(f"{min(missing)} is missing")
        return made(**{key: reader(key, value[key], bounds) for key, reader in readers.items() if key in value})

    return take


def _wrong(name: str, value: object, what: str) -> ValueError:
    return ValueError(f"{name:.40} is {value!r:.40}, not {what}")
