"""Reads configuration files into a Config, layer over layer as systemd does, reporting every fault at once.

Layers, later wins: the vendor's file and /etc's (the first hides the other, as a unit file of the same name does), then
the drop-ins of both conf.d folders in the order of their names, where /etc's hides the vendor's of the same name.
A faulty file changes nothing: the whole load fails with one ConfigError that has every fault.

Validation is by hand from the table in `schema`: some forty lines. voluptuous would be about as many, and 33 ms
more at every start of the one-shot. For the same reason files are read with `open` and `os`: pathlib is 6 ms, and
tomllib (12 ms) is imported only if there is a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from virtksm.config.schema import Config, Key, Value, all_keys, find_inconsistencies, keys_of, tables_of
from virtksm.errors import ConfigError, ConfigFault
from virtksm.text import printable

FOLDERS = ("/usr/lib/virtksm", "/etc/virtksm")
"""The vendor's, and the administrator's, which hides the vendor's files of the same name."""
DEFAULT = "default"
READ, MISSING = "read", "missing"
# A file with every key is 3 KB. tomllib needs time and memory by the square of a dotted key's parts: 20,000 of them
# (40 KB) cost 9 s, 130,000 more than 20 GB of memory.
MAX_BYTES = 65_536
MAX_DOTS_A_LINE = 200
MAX_SHOWN = 60
KINDS = {bool: "true or false", int: "an integer", str: "a string"}
MAX_REASON = 150
"""Characters of tomllib's message, which may repeat a key of any length."""


class Loaded(NamedTuple):
    """A configuration, the file that each key's value came from (`default` for none), and the files that were read."""

    config: Config
    origins: Mapping[str, str]
    files: tuple[str, ...]


def load(path: str | None, *, folders: Sequence[str] = FOLDERS, asks_groups: bool = True) -> Loaded:
    """Load `path` alone, or all layers for None; raises ConfigError with every fault.

    A caller that needs no group asks for none: a name service (LDAP) may hang.
    """
    loaded, faults = read(path, folders)
    name = loaded.config.status_group
    if asks_groups and name and group_id(name) is None:
        faults.append(unknown_group(name, loaded.origins["status_group"]))
    if faults:
        raise ConfigError(faults)
    return loaded


def read(path: str | None, folders: Sequence[str] = FOLDERS) -> tuple[Loaded, list[ConfigFault]]:
    """Load as `load` without groups, and return the faults: faulty keys have their defaults."""
    found, faults = find_files(path, folders)
    files = tuple(file for file, becomes in found.items() if becomes == READ or file == path)
    values: dict[str, Value] = {}
    origins = dict.fromkeys(all_keys(), DEFAULT)
    for file in files:
        good, bad = read_values(file)
        faults += bad
        values.update(good)
        origins.update(dict.fromkeys(good, file))
    config = build(values)
    faults += _find_inconsistent(config, origins, faults)
    return Loaded(config=config, origins=origins, files=files), faults


def find_files(path: str | None, folders: Sequence[str] = FOLDERS) -> tuple[dict[str, str], list[ConfigFault]]:
    """Return what becomes of each file, in order, and a fault for each folder that cannot be listed.

    A file is READ or MISSING, or it is replaced by the file that is named. A folder without drop-ins is MISSING.
    """
    if path is not None:
        return {path: READ if os.path.lexists(path) else MISSING}, []
    faults: list[ConfigFault] = []
    mains = [f"{folder}/virtksm.toml" for folder in folders]
    found = dict.fromkeys(mains, MISSING)
    of_a_name: dict[str, list[str]] = {}
    for folder in (f"{one}/conf.d" for one in folders):
        names: list[str] = []
        try:
            # Editors' hidden files (.#x.toml) are no configuration, as with systemd.
            names = [name for name in os.listdir(folder) if name.endswith(".toml") and name[0] != "."]  # noqa: PTH208
        except FileNotFoundError:
            pass
        except OSError as error:
            faults.append(_unreadable(folder, error))
        for name in names:
            of_a_name.setdefault(name, []).append(f"{folder}/{name}")
        if not names:
            found[f"{folder}/*.toml"] = MISSING
    for files in (
        [main for main in mains if os.path.lexists(main)],
        *(of_a_name[name] for name in sorted(of_a_name, key=os.fsencode)),
    ):
        found |= {file: READ if file == files[-1] else files[-1] for file in files}
    return found, faults


def read_values(file: str) -> tuple[dict[str, Value], list[ConfigFault]]:
    """Return the valid values of one file by dotted key, and a fault for everything else in it."""
    import tomllib

    try:
        with open(file, "rb") as source:  # noqa: PTH123  # pathlib is start-up time
            content = source.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            return {}, [_whole(file, f"is larger than {MAX_BYTES} bytes", "name a configuration file")]
        if any(line.count(b".") > MAX_DOTS_A_LINE for line in content.split(b"\n")):
            return {}, [_whole(file, f"has a line with more than {MAX_DOTS_A_LINE} dots", "break or shorten that line")]
        document = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        return {}, [_unreadable(file, error)]
    except UnicodeDecodeError as error:
        return {}, [_whole(file, f"is not UTF-8 (byte {error.start})", "save it as UTF-8")]
    except RecursionError:
        return {}, [_whole(file, "is nested too deeply", "remove arrays within arrays: no key needs one")]
    except ValueError as error:  # TOMLDecodeError is a ValueError; so is int("9" * 5000)
        return {}, [_whole(file, f"is not TOML: {printable(str(error)[:MAX_REASON])}", "correct that place")]
    values: dict[str, Value] = {}
    faults: list[ConfigFault] = []
    for name, value, problem, remedy in _walk(Config, "", document):
        if problem:
            faults.append(ConfigFault(file=printable(file), key=name, problem=problem, remedy=remedy))
        else:
            assert isinstance(value, int | str | list)
            values[name] = tuple(value) if isinstance(value, list) else value
    return values, faults


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
        dotted = prefix + (name if _is_bare(name) else quoted(name))
        if name in known:
            yield dotted, value, *check_value(known[name], value)
        elif name not in inner:
            yield dotted, value, "is not a known key", suggest(dotted)
        elif isinstance(value, Mapping):
            yield from _walk(inner[name], f"{dotted}.", value)
        else:
            yield dotted, value, f"is {_describe(value)}, not a table", f"write it as [{dotted}]"


def _is_bare(name: str) -> bool:
    """Return whether TOML needs no quotes for a name: `"a.b"` is one name, a.b are two. Long ones are quoted, too."""
    return len(name) <= MAX_SHOWN and name.isascii() and name.replace("_", "").replace("-", "").isalnum()


def check_value(known: Key, value: object) -> tuple[str, str]:
    """Return (problem, remedy) of a value for its key; both empty if it is valid. TOML's true is no integer."""
    problem = _find_problem(known, value)
    use = "use one of" if known.choices and isinstance(value, str) else "use"
    return (problem, f"{use} {known.range_text}") if problem else ("", "")


def _find_problem(known: Key, value: object) -> str:
    if isinstance(known.default, tuple):
        if not isinstance(value, list | tuple):
            return f"is {_describe(value)}, not an array"
        bad = [one for one in value if not isinstance(one, str) or not one]
        return f"holds {_describe(bad[0]) if bad[0] != '' else 'an empty text'}" if bad else ""
    if type(value) is not type(known.default):
        return f"is {_describe(value)}, not {KINDS[type(known.default)]}"
    if known.choices and value not in known.choices:
        return f"is {_describe(value)}"
    if type(value) is int and not known.bounds[0] <= value <= known.bounds[1]:
        return f"is {_describe(value)}, out of range"
    return ""


def quoted(text: str) -> str:
    """Return the literal of text from outside, cut to a length that leaves a message readable."""
    return repr(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}...")


def _describe(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > 64:
            return "a very large integer"
        case int() | float():
            return str(value)
        case str():
            return quoted(value)
        case list() | tuple():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def suggest(dotted: str) -> str:
    """Return the remedy for a key that is not known."""
    import difflib

    table, _, last = dotted.rpartition(".")
    known = {name: f"[{name}]" for name in tables_of(Config)}
    for name in sorted(all_keys(), key=lambda name: name.rpartition(".")[0] == table):
        known[name.rpartition(".")[2]] = name  # of equal names in several tables, the one of this table stays
    near = difflib.get_close_matches(last.lower().removeprefix("ksm_"), known, n=1)
    if not near:
        return "remove it; `virtksm config show` lists all keys"
    meant = known[near[0]]
    hint = ", which belongs above the first [table]" if table and meant == near[0] else ""
    return f"did you mean {meant}{hint}?"


def _find_inconsistent(config: Config, origins: Mapping[str, str], known: list[ConfigFault]) -> list[ConfigFault]:
    """Return inconsistent values, without those that only seem so because a faulty value fell back to its default."""
    faulty = {fault.key for fault in known}
    faulty |= {name for name in origins if name.partition(".")[0] in faulty}  # if a table is none, all its keys
    found = []
    for names, problem, remedy in find_inconsistencies(config):
        files = list(dict.fromkeys(origins[name] for name in names))
        unsure = faulty.intersection(names) or ("" in faulty and DEFAULT in files)
        if not unsure:
            where = ", ".join(printable(file) for file in files if file != DEFAULT)
            found.append(ConfigFault(file=where, key=names[0], problem=problem, remedy=remedy))
    return found


def unknown_group(name: str, file: str) -> ConfigFault:
    """Return the fault of a `status_group` that this machine's name service does not know."""
    problem = f"is {quoted(name)}, and this machine has no such group"
    remedy = "create it (groupadd), or name one that exists"
    return ConfigFault(file=printable(file), key="status_group", problem=problem, remedy=remedy)


def _unreadable(file: str, error: OSError) -> ConfigFault:
    return _whole(file, f"cannot be read: {error.strerror}", f"ls -ld {printable(file)}")


def group_id(name: str) -> int | None:
    """Return a group's number, None if this machine's name service knows none of that name."""
    import grp  # only where a group is configured

    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # unknown, or no name at all (a NUL in it)
        return None


def _whole(file: str, problem: str, remedy: str) -> ConfigFault:
    return ConfigFault(file=printable(file), key="", problem=problem, remedy=remedy)
