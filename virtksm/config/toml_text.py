"""Writes configuration as TOML: the documented default file, the one in force, and an imported one.

Pure. Values are truth values, integers, strings and arrays of strings, whose JSON form is their TOML form.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping

from virtksm.config.load import Loaded
from virtksm.config.schema import Config, Key, Value, all_keys, value_of
from virtksm.text import printable

HEADER = """\
# virtksm's configuration: every key with its unit or choices, its default and its use.
# A line that begins with # and a key shows the default; remove the # to change it. Put your own changes into
# /etc/virtksm/conf.d/NAME.toml to keep them apart from this file: read after it, sorted by name, later wins.
# `virtksm config check` finds every fault at once, `virtksm config show` prints the values in force and their files.
# Made by `python -m virtksm.config`; a test holds it equal to the program's table.
"""
WIDTH = 116


def format_value(value: Value) -> str:
    """Return a value as TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def default_file() -> str:
    """Return the text of conf/virtksm.toml."""
    return HEADER + "".join(
        _sections(lambda name, one: [*_comment(one), f"#{_last(name)} = {format_value(one.default)}"])
    )


def effective(loaded: Loaded) -> str:
    """Return the configuration in force, each value with the file it came from behind it."""
    config = loaded.config
    lines = {name: f"{_last(name)} = {format_value(value_of(config, name))}" for name in all_keys()}
    width = max(map(len, lines.values()))
    sections = _sections(lambda name, _: [f"{lines[name]:<{width}}  # {printable(loaded.origins[name])}"], gap="")
    return "".join(sections).lstrip("\n")


def imported(values: Mapping[str, Value], notes: Iterable[str], source: str, policy: str) -> str:
    """Return a file with a policy's `values` by dotted key, and notes as comments. The default policy is not named."""
    lines = [f"# Imported from {printable(source)} by `virtksm config import --policy {policy}`."]
    lines += [f"# Note: {note}" for note in notes]
    lines += [] if policy == Config().policy else ["", f"policy = {format_value(policy)}"]
    lines += ["", f"[{policy}]"] if values else []
    lines += [f"{_last(name)} = {format_value(value)}" for name, value in values.items()]
    return "\n".join([*lines, ""])


def _sections(lines_of: Callable[[str, Key], list[str]], *, gap: str = "\n") -> list[str]:
    parts: list[str] = []
    table = ""
    for name, one in all_keys().items():
        if name.rpartition(".")[0] != table:
            table = name.rpartition(".")[0]
            parts.append(f"\n[{table}]\n")
        parts.append(gap + "\n".join(lines_of(name, one)) + "\n")
    return parts


def _comment(one: Key) -> list[str]:
    kind = "One of " if one.choices or isinstance(one.default, bool) else "Range " if one.bounds[2] else ""
    allowed = f"{kind}{one.range_text}, default {format_value(one.default)}. {one.reason}"
    return [
        f"# {line}" for text in (one.meaning, allowed) for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False)
    ]


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]
