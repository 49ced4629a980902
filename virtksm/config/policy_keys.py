"""A policy with its configuration, apart from all other keys: taken out of a Config, saved in a trace, changed by hand.

Values are checked by the same table as configuration files; every fault is a ConfigFault, and all come at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from virtksm.config.load import build, check_value, suggest
from virtksm.config.schema import Config, Value, all_keys, find_inconsistencies, value_of
from virtksm.errors import ConfigError, ConfigFault

SET = "--set"
OF_ITS_VERSION = "read it with the version of virtksm that has written it"


def law_of(config: Config) -> dict[str, Value]:
    """Return the keys of all policies' tables, by dotted name."""
    return {name: value_of(config, name) for name in _law_keys()}


def table_of(policy: str) -> str:
    """Return the table that has the keys of a policy."""
    return "adaptive" if policy == "observe" else policy


def read_law(policy: str, values: Mapping[str, object], place: str) -> Config:
    """Return the Config of a policy and its keys as saved at `place`; missing keys have their defaults.

    Raises ConfigError with every fault.
    """
    return _checked({"policy": policy, **values}, place, [])


def change_law(config: Config, policy: str | None, texts: Iterable[str]) -> Config:
    """Return the Config with another policy, if one is named, and with each `key=value` of `texts`.

    Raises ConfigError with every fault.
    """
    keys, policy = all_keys(), config.policy if policy is None else policy
    values: dict[str, object] = {**law_of(config), "policy": policy}
    faults = []
    for text in texts:
        name, equals, literal = (part.strip() for part in text.partition("="))
        problem, remedy = "", ""
        if not equals:
            problem, remedy = "has no value", f"write {name}=VALUE"
        elif name in keys and name.partition(".")[0] != table_of(policy):
            problem, remedy = f"is no key of the policy {policy}", "leave it out, or choose another --policy"
        if problem:
            faults.append(ConfigFault(file=SET, key=name, problem=problem, remedy=remedy))
            continue
        values[name] = literal
        kind = type(keys[name].default) if name in keys else str
        if kind is bool:
            values[name] = {"true": True, "false": False}.get(literal, literal)
        elif kind is int:
            with suppress(ValueError):  # also for what has too many digits
                values[name] = int(literal)
    return _checked(values, SET, faults)


def _law_keys() -> Iterator[str]:
    tables = all_keys()["policy"].choices
    return (name for name in all_keys() if "." in name and name.partition(".")[0] in tables)


def _checked(values: Mapping[str, object], place: str, faults: list[ConfigFault]) -> Config:
    keys = {"policy": all_keys()["policy"], **{name: all_keys()[name] for name in _law_keys()}}
    good: dict[str, Value] = {}
    for name, value in values.items():
        if name in keys:
            problem, remedy = check_value(keys[name], value)
        else:
            problem, remedy = "is not a known key", suggest(name) if place == SET else OF_ITS_VERSION
        if problem:
            faults.append(ConfigFault(file=place, key=name, problem=problem, remedy=remedy))
        else:
            assert isinstance(value, int | str | tuple)
            good[name] = value
    if not faults:
        for names, problem, remedy in find_inconsistencies(config := build(good)):
            faults.append(ConfigFault(file=place, key=names[0], problem=problem, remedy=remedy))
    if faults:
        raise ConfigError(faults)
    return config
