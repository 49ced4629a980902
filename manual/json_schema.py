"""The JSON Schema of what the commands print, made of manual/outputs.py: docs/json-schema.json. Pure but for sources.

`$defs` has an entry for each command, and one for each object in them.
"""

import ast
import inspect
import json
import sys
from collections.abc import Mapping
from enum import Enum
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from manual import outputs
from manual.outputs import COMMANDS
from virtksm.json_output import output_name

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ABOUT = "What each command prints with --json: $defs/virtksm COMMAND. Every field is there; further ones may come."
PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}

Schema = dict[str, Any]


def json_schema() -> str:
    """Return the document's text, a definition a line."""
    commands = {f"virtksm {name}": _schema(kind, {}) for name, kind in COMMANDS.items()}
    definitions = {name: _object(kind) for name, kind in objects().items()}
    head = {"$schema": DIALECT, "title": "virtksm's JSON", "description": ABOUT}
    lines = [f"  {json.dumps(name)}: {json.dumps(schema)}" for name, schema in (commands | definitions).items()]
    return json.dumps(head, indent=1)[:-2] + ',\n "$defs": {\n' + ",\n".join(lines) + "\n }\n}\n"


def objects() -> dict[str, type]:
    """Return the class of every object that a command prints, by its name."""
    found: dict[str, type] = {}
    for kind in COMMANDS.values():
        _schema(kind, found)
    return found


def fields_of(kind: type) -> dict[str, tuple[Schema, str]]:
    """Return the fields of a class by their names outside: schema, and meaning."""
    meanings = _meanings(kind)
    return {
        output_name(name): (_field(output_name(name), one, {}), meanings.get(name, ""))
        for name, one in _hints(kind).items()
    }


def _object(kind: type) -> Schema:
    properties = {name: schema | _described(meaning) for name, (schema, meaning) in fields_of(kind).items()}
    # The docstring of one of the program's own classes tells of the values inside.
    about = inspect.getdoc(kind) if kind.__module__ == outputs.__name__ else ""
    return {"type": "object", **_described(about or ""), "properties": properties, "required": list(properties)}


def _described(text: str) -> Schema:
    return {"description": " ".join(text.split())} if text else {}


def _field(name: str, kind: Any, found: dict[str, type]) -> Schema:  # noqa: ANN401  # an annotation
    if name == "at" or name.endswith("_at"):
        return {"type": "string", "format": "date-time"}
    return _schema(kind, found)


def _schema(kind: Any, found: dict[str, type]) -> Schema:  # noqa: ANN401  # an annotation
    """Return the schema of an annotation; classes that it names are put into `found`. Raises ValueError."""
    inner = get_args(kind)
    if kind is object:
        return {}
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if isinstance(kind, UnionType) or get_origin(kind) is Union:  # the latter with a Literal
        parts = [_schema(one, found) for one in inner]
        is_plain = all(part.keys() == {"type"} for part in parts)
        return {"type": [part["type"] for part in parts]} if is_plain else {"anyOf": parts}
    if not inner:
        return _named(kind, found)
    if get_origin(kind) is Literal:
        return {"enum": list(inner)}
    if get_origin(kind) is Mapping:
        return {"type": "object", "additionalProperties": _schema(inner[1], found)}
    return {"type": "array", "items": _schema(inner[0], found)}


def _named(kind: type, found: dict[str, type]) -> Schema:
    if issubclass(kind, Enum):
        return {"enum": [one.value for one in kind]}
    if found.setdefault(kind.__name__, kind) is not kind:
        raise ValueError(f"two objects are called {kind.__name__}")
    for one in _hints(kind).values():  # type: ignore[arg-type]  # a class is hashable
        _schema(one, found)
    return {"$ref": f"#/$defs/{kind.__name__}"}


@cache
def _meanings(kind: type) -> Mapping[str, str]:
    """Return the text below each field of a class, its bases' included, as the source has them."""
    found: dict[str, str] = {}
    for one in reversed([base for base in kind.__mro__ if base not in (tuple, object)]):
        tree = ast.parse(inspect.getsource(sys.modules[one.__module__]))
        (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == one.__name__]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = ast.literal_eval(text.value)
    return found


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)
