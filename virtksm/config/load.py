"""Reads configuration files into a Config, layer over layer as systemd does, reporting every fault at once.

Layers, later wins: the vendor's file and /etc's (the first hides the other, as a unit file of the same name does), then
the drop-ins of both conf.d folders in the order of their names, where /etc's hides the vendor's of the same name.
A faulty file changes nothing: the whole load fails with ConfigError and one finding for each fault.

Validation is by hand from the table in `schema`: some forty lines. voluptuous would be about as many, and 33 ms
more at every start of the one-shot.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from virtksm.config.schema import Config, Key, Value, all_keys, find_inconsistencies, keys_of, tables_of
from virtksm.errors import ConfigError, Finding

VENDOR_DIR = "/usr/lib/virtksm"
ADMIN_DIR = "/etc/virtksm"
FILE_NAME = "virtksm.toml"
DROP_IN_DIR = "conf.d"
DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration, the file that each key's value came from (`default` for none), and the files that were read."""

    config: Config
    origins: Mapping[str, str]
    files: tuple[str, ...]


def load(path: str | None, *, vendor_dir: str = VENDOR_DIR, admin_dir: str = ADMIN_DIR) -> Loaded:
    """Load `path` alone, or all layers for None; raises ConfigError with every finding."""
    files = find_files(vendor_dir, admin_dir) if path is None else [path]
    findings: list[Finding] = []
    values: dict[str, Value] = {}
    origins = dict.fromkeys(all_keys(), DEFAULT)
    for file in files:
        good, bad = read_values(file)
        findings += bad
        values.update(good)
        origins.update(dict.fromkeys(good, file))
    config = build(values)
    findings += [
        Finding(file=", ".join(_origins(origins, name)), key=name, problem=problem, remedy=remedy)
        for name, problem, remedy in find_inconsistencies(config)
    ]
    if findings:
        raise ConfigError(findings)
    return Loaded(config=config, origins=origins, files=tuple(files))


def find_files(vendor_dir: str, admin_dir: str) -> list[str]:
    """Return the files to read, in order; those that do not exist are left out."""
    mains = (f"{admin_dir}/{FILE_NAME}", f"{vendor_dir}/{FILE_NAME}")
    main = next((file for file in mains if os.path.lexists(file)), None)
    drop_ins: dict[str, str] = {}
    for folder in (f"{vendor_dir}/{DROP_IN_DIR}", f"{admin_dir}/{DROP_IN_DIR}"):
        try:
            names = [path.name for path in Path(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError([_unreadable(folder, error)]) from error
        drop_ins.update({name: f"{folder}/{name}" for name in names if name.endswith(".toml")})
    return [*([main] if main else []), *(drop_ins[name] for name in sorted(drop_ins))]


def read_values(file: str) -> tuple[dict[str, Value], list[Finding]]:
    """Return the valid values of one file by dotted key, and a finding for everything else in it."""
    try:
        document = tomllib.loads(Path(file).read_bytes().decode("utf-8"))
    except OSError as error:
        return {}, [_unreadable(file, error)]
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start})"
        return {}, [Finding(file=file, key="", problem=problem, remedy="save it as UTF-8")]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        return {}, [Finding(file=file, key="", problem=f"is not TOML: {error}", remedy="correct that place")]
    values: dict[str, Value] = {}
    findings: list[Finding] = []
    for name, value, problem, remedy in _walk(Config, "", document):
        if problem:
            findings.append(Finding(file=file, key=name, problem=problem, remedy=remedy))
        elif isinstance(value, bool | int | str):
            values[name] = value
    return values, findings


def build(values: Mapping[str, Value]) -> Config:
    """Build a Config from valid values by dotted key."""
    top = {name: value for name, value in values.items() if "." not in name}
    nested = {
        table: made(**{name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{table}.")})
        for table, made in tables_of(Config).items()
    }
    return Config(**top, **nested)  # type: ignore[arg-type]  # the table has checked every value's type


def _walk(table: type[object], prefix: str, document: Mapping[str, object]) -> Iterator[tuple[str, object, str, str]]:
    """Yield (dotted key, value, problem, remedy); problem is empty for a valid value."""
    known, inner = keys_of(table), tables_of(table)
    for name, value in document.items():
        dotted = f"{prefix}{name if name.isprintable() else repr(name)}"
        if name in known:
            yield dotted, value, *check_value(known[name], value)
        elif name not in inner:
            yield dotted, value, "is not a known key", _suggest(dotted)
        elif isinstance(value, Mapping):
            yield from _walk(inner[name], f"{dotted}.", value)
        else:
            yield dotted, value, f"is {_describe(value)}, not a table", f"write it as [{dotted}]"


def check_value(known: Key, value: object) -> tuple[str, str]:
    """Return (problem, remedy) of a value for its key; both empty if it is valid. TOML's true is no integer."""
    wanted = type(known.default)
    if type(value) is not wanted:
        names = {int: "an integer", str: "a string", bool: "true or false"}
        return f"is {_describe(value)}, not {names[wanted]}", f"use {known.range_text}"
    if known.choices and value not in known.choices:
        return f"is {_describe(value)}", f"use one of {known.range_text}"
    if isinstance(value, int) and not _least(known) <= value <= _most(known):
        return f"is {_describe(value)}, out of range", f"use {known.range_text}"
    return "", ""


def _least(known: Key) -> float:
    return float("-inf") if known.minimum is None else known.minimum


def _most(known: Key) -> float:
    return float("inf") if known.maximum is None else known.maximum


def _describe(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > 64:
            return "a very large integer"
        case int() | float():
            return str(value)
        case str():
            return repr(value if len(value) <= 40 else f"{value[:37]}...")
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _suggest(dotted: str) -> str:
    import difflib

    near = difflib.get_close_matches(dotted, all_keys(), n=1) or [
        name for name in all_keys() if name.rpartition(".")[2] == dotted.rpartition(".")[2]
    ]
    return f"did you mean {near[0]}?" if near else "remove it; `virtksm config show` lists all keys"


def _origins(origins: Mapping[str, str], name: str) -> Iterable[str]:
    """Return the files that set any key of the same table, since several take part in an inconsistency."""
    table = name.rpartition(".")[0]
    return dict.fromkeys(
        file for one, file in origins.items() if one.rpartition(".")[0] == table and file != DEFAULT
    ) or (DEFAULT,)


def _unreadable(file: str, error: OSError) -> Finding:
    return Finding(
        file=file, key="", problem=f"cannot be read: {error.strerror}", remedy="see its path, owner and mode"
    )
