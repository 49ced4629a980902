"""The command line as values: what `virtksm --help` knows, for whatever describes or completes it.

In goes the parser of virtksm.cli.main, out come frozen commands. Nothing is listed here by hand, so nothing can be
forgotten.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option or, without `flags`, one argument. `metavar` is empty for an option that takes no value."""

    flags: tuple[str, ...]
    metavar: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: `words` are those that call it (`virtksm config check`)."""

    words: tuple[str, ...]
    summary: str
    usage: str
    options: tuple[Option, ...]
    commands: tuple[Command, ...]

    def walk(self) -> Iterator[Command]:
        """Yield this command and every one below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def describe(parser: argparse.ArgumentParser, summary: str = "") -> Command:
    """Return a parser and those below it as values."""
    formatter = parser._get_formatter()  # noqa: SLF001 argparse has no other way to expand %(default)s
    options: list[Option] = []
    commands: list[Command] = []
    for action in parser._actions:  # noqa: SLF001 nor to list what was added
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            commands += [describe(one, summaries.get(name, "")) for name, one in action.choices.items()]
        elif action.help != argparse.SUPPRESS:
            options.append(_option(action, formatter))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    words = tuple(parser.prog.split())
    return Command(words=words, summary=summary, usage=usage, options=tuple(options), commands=tuple(commands))


def _option(action: argparse.Action, formatter: argparse.HelpFormatter) -> Option:
    choices = tuple(map(str, action.choices or ()))
    named = action.metavar if isinstance(action.metavar, str) else "|".join(choices) or action.dest.upper()
    return Option(
        flags=tuple(action.option_strings),
        metavar="" if action.nargs == 0 else named,
        choices=choices,
        help=formatter._expand_help(action) if action.help else "",  # noqa: SLF001
    )
