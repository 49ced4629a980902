"""A policy with its configuration, apart from all other keys: taken out of a Config, saved in a trace, changed by hand.

Values are checked by the same table as configuration files; every fault is a ConfigFault, and all come at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from virtksm.config.load import build, check_value, quoted, suggest
from virtksm.config.schema import Config, Key, Value, all_keys, find_inconsistencies
from virtksm.errors import ConfigError, ConfigFault

SET = "--set"


def law_of(config: Config) -> dict[str, Value]:
    """Return the keys of all policies' tables, by dotted name."""
    return {name: getattr(getattr(config, name.partition(".")[0]), name.partition(".")[2]) for name in _law_keys()}


def read_law(policy: str, values: Mapping[str, object], place: str) -> Config:
    """Return the Config of a policy and its keys as saved at `place`; missing keys have their defaults.

    Raises ConfigError with every fault.
    """
    known = {"policy": all_keys()["policy"], **_law_keys()}
    known_values: dict[str, Value] = {}
    faults = []
    for name, value in {"policy": policy, **values}.items():
        problem, remedy = "is not a known key", "read it with the version of virtksm that has written it"
        if name in known:
            problem, remedy = check_value(known[name], value)
        if problem:
            faults.append(ConfigFault(file=place, key=name, problem=problem, remedy=remedy))
        else:
            assert isinstance(value, int | str | tuple)
            known_values[name] = value
    return _built(known_values, faults, place)


def change_law(config: Config, policy: str | None, texts: Iterable[str]) -> Config:
    """Return the Config with another policy, if one is named, and with each `key=value` of `texts`.

    Raises ConfigError with every fault.
    """
    values: dict[str, Value] = {**law_of(config), "policy": config.policy if policy is None else policy}
    faults = []
    for text in texts:
        name, equals, literal = text.partition("=")
        name, literal = name.strip(), literal.strip()
        value, problem, remedy = _parsed(name, literal) if equals else (literal, "has no value", f"write {name}=VALUE")
        if not problem and name.partition(".")[0] != values["policy"]:
            problem, remedy = f"is no key of the policy {values['policy']}", "leave it out, or choose another --policy"
        if problem:
            faults.append(ConfigFault(file=SET, key=name, problem=problem, remedy=remedy))
        values[name] = value
    return _built(values, faults, SET)


def _law_keys() -> dict[str, Key]:
    tables = all_keys()["policy"].choices
    return {name: one for name, one in all_keys().items() if name.partition(".")[0] in tables and "." in name}


def _parsed(name: str, text: str) -> tuple[Value, str, str]:
    """Return the value of a text, with the problem and the remedy if it has none."""
    known = all_keys().get(name)
    if known is None:
        return text, "is not a known key", suggest(name)
    value: Value = text
    if isinstance(known.default, int):
        try:
            value = int(text)
        except ValueError:  # also for what has too many digits
            return text, f"is {quoted(text)}, not an integer", f"use {known.range_text}"
    return value, *check_value(known, value)


def _built(values: Mapping[str, Value], faults: list[ConfigFault], place: str) -> Config:
    if faults:
        raise ConfigError(faults)
    config = build(values)
    for names, problem, remedy in find_inconsistencies(config):
        faults.append(ConfigFault(file=place, key=names[0], problem=problem, remedy=remedy))
    if faults:
        raise ConfigError(faults)
    return config
