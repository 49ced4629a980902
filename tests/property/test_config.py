"""Configuration from anybody: a file is a Config or a ConfigError, whatever it holds; no text makes the import fail."""

import math
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from datetime import date, time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.config.ksmtuned_conf import OURS, as_adaptive, parse_ksmtuned_conf
from virtksm.config.load import Loaded, build, check_value, load
from virtksm.config.schema import Config, Key, Value, all_keys, find_inconsistencies, tables_of
from virtksm.config.toml_text import effective, format_value, imported
from virtksm.errors import ConfigError

LoadBytes = Callable[[bytes], Loaded]

KEYS = all_keys()
texts = st.text(max_size=20) | st.sampled_from(["x" * 5000, "\x1b]0;title\x07", "\u202e"])
names = st.one_of(st.sampled_from([*KEYS, "ksmtuned", "KSM_NPAGES_MIN"]), st.builds(format_value, texts))
scalars = st.one_of(
    st.builds(format_value, texts),
    st.integers().map(str),
    st.integers(10**20, 10**40).map(str),
    st.sampled_from(["true", "false", "inf", "-nan", "1e400", "0x10", "0o17", "1_000"]),
    st.floats().map(lambda number: str(number) if math.isfinite(number) else "nan"),
    st.dates().map(date.isoformat),
    st.times().map(time.isoformat),
    *[st.sampled_from([format_value(choice) for choice in one.choices]) for one in KEYS.values() if one.choices],
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.dictionaries(names, inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{name} = {value}" for name, value in table.items()) + "}"
        )
    ),
    max_leaves=5,
)
headers = names.map(lambda name: f"[{name}]") | names.map(lambda name: f"[[{name}]]")
lines = headers | st.tuples(names, values).map(" = ".join)
tomls = st.lists(lines, max_size=8).map("\n".join)

shell_signs = ["=", "=", "=", "\n", "\n", "\r\n", ";", " ", " ", "\t", "\x0c", "\u2028", "\x00", "#", "&&", "|", "<<"]
shell_quotes = ["'", '"', "\\", "\\\n", "$", "$(", ")", "`", "{", "}"]
shell_words = ["export ", "if", "fi", "1", "300", "-50", "0", "9" * 20]
shell_parts = st.sampled_from([*OURS, *shell_signs, *shell_quotes, *shell_words])
shells = st.one_of(st.text(), st.lists(shell_parts, max_size=40).map("".join))


TEXTS = {"status_group": "root", "metrics.listen": "[::1]:9876", "metrics.textfile": "/tmp/one.prom"}
"""A good one for each key that not every text will do for: the group is one that every machine has."""


def value_of_key(name: str, one: Key) -> st.SearchStrategy[Value]:
    if isinstance(one.default, tuple):
        return st.lists(st.text(min_size=1, max_size=20), max_size=3).map(tuple)
    if isinstance(one.default, bool):
        return st.booleans()
    if isinstance(one.default, str):
        return st.sampled_from(one.choices or ("", TEXTS[name]))
    return st.integers(*one.bounds[:2])


valid = st.fixed_dictionaries({}, optional={name: value_of_key(name, one) for name, one in KEYS.items()})


@pytest.fixture(scope="module")
def load_bytes() -> Iterator[LoadBytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.toml"

        def load_content(content: bytes) -> Loaded:
            path.write_bytes(content)
            return load(str(path))

        yield load_content


def outcome(load_bytes: LoadBytes, content: bytes) -> Loaded | ConfigError:
    try:
        return load_bytes(content)
    except ConfigError as error:
        return error


def check_outcome(load_bytes: LoadBytes, content: bytes) -> None:
    """A Config within its ranges, or faults that can be shown to anybody."""
    loaded = outcome(load_bytes, content)
    if isinstance(loaded, ConfigError):
        assert loaded.faults
        assert all(str(fault).isprintable() and fault.problem and fault.remedy for fault in loaded.faults)
        assert all(len(str(fault)) < 400 for fault in loaded.faults)
        return
    assert list(find_inconsistencies(loaded.config)) == []
    shown = tomllib.loads(effective(loaded))
    flat = {name: value for name, value in shown.items() if not isinstance(value, dict)}
    for table in tables_of(Config):
        flat |= {f"{table}.{name}": value for name, value in shown[table].items()}
    assert {name: check_value(KEYS[name], value) for name, value in flat.items()} == dict.fromkeys(KEYS, ("", ""))


@given(content=st.binary())
def test_any_bytes_are_a_configuration_or_a_config_error(load_bytes: LoadBytes, content: bytes) -> None:
    check_outcome(load_bytes, content)


@given(content=tomls)
def test_anything_like_toml_is_a_configuration_or_a_config_error(load_bytes: LoadBytes, content: str) -> None:
    check_outcome(load_bytes, content.encode())


@given(values=valid)
def test_valid_values_go_through_a_file_and_through_show_unchanged(
    load_bytes: LoadBytes, values: dict[str, Value]
) -> None:
    content = "".join(f"{name} = {format_value(value)}\n" for name, value in values.items())
    expected = build(values)
    if list(find_inconsistencies(expected)):
        with pytest.raises(ConfigError, match=r"is more than|changes nothing"):
            load_bytes(content.encode())
        return
    loaded = load_bytes(content.encode())
    assert loaded.config == expected
    assert {name for name, origin in loaded.origins.items() if origin != "default"} == set(values)
    assert load_bytes(effective(loaded).encode()).config == expected


@given(text=texts)
def test_any_text_goes_through_toml_unchanged(text: str) -> None:
    assert tomllib.loads(f"x = {format_value(text)}") == {"x": text}


@given(text=shells, source=st.text(st.characters(), max_size=20))
def test_any_text_is_imported_to_a_valid_file_with_printable_notes(
    load_bytes: LoadBytes, text: str, source: str
) -> None:
    values, notes = parse_ksmtuned_conf(text)
    assert all(note.isprintable() for note in notes)
    loaded = load_bytes(imported(values, notes, source, "ksmtuned").encode())
    assert loaded.config == build({**values, "policy": "ksmtuned"})
    assert {name for name, origin in loaded.origins.items() if origin != "default"} == {"policy", *values}
    ours, more = as_adaptive(values, notes)
    assert load_bytes(imported(ours, more, source, "adaptive").encode()).config == build(ours)
