"""What all values share, NamedTuples and frozen dataclasses: `replace`, and a default for mappings. Pure."""

from __future__ import annotations

from types import MappingProxyType

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NamedTuple, TypeVar

    from _typeshed import DataclassInstance

    Value = TypeVar("Value", bound=NamedTuple | DataclassInstance)

EMPTY: Mapping[str, Any] = MappingProxyType({})
"""The default of a field that is a Mapping."""


def replace(value: Value, **changes: Any) -> Value:  # noqa: ANN401  # the fields'
    """Return the same value with other fields; raises ValueError or TypeError for one that it has not."""
    if isinstance(value, tuple):
        changed: Value = value._replace(**changes)  # type: ignore[attr-defined]  # a NamedTuple's
        return changed
    import dataclasses

    return dataclasses.replace(value, **changes)
