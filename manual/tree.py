"""The command line as values: what `virtksm --help` knows, for whatever describes or completes it.

In go the parsers of virtksm.cli.main, out come frozen commands. Nothing is listed here by hand, so nothing can be
forgotten.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from virtksm.cli.help import examples_of
from virtksm.cli.main import COMMON, Words, below, make_parser


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option or, without `flags`, one argument. `metavar` is empty for an option that takes no value.

    `is_common`: every command takes it.
    """

    flags: tuple[str, ...]
    metavar: str
    choices: tuple[str, ...]
    help: str
    is_common: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: `words` are those that call it (`virtksm config check`)."""

    words: tuple[str, ...]
    summary: str
    usage: str
    options: tuple[Option, ...]
    commands: tuple["Command", ...] = ()
    examples: tuple[tuple[str, str], ...] = ()

    def walk(self) -> Iterator["Command"]:
        """Yield this command and every one below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def describe(words: Words = ()) -> Command:
    """Return a command, and those below it, as values; without words the program."""
    parser = make_parser(words)
    return Command(
        words=("virtksm", *words),
        summary=parser.summary,
        usage=" ".join(parser.format_usage().removeprefix("usage: ").split()),
        options=tuple(describe_options(parser)),
        commands=tuple(describe((*words, name)) for name in below(words)),
        examples=tuple(examples_of(words)),
    )


def describe_options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    """Yield the options of a parser."""
    formatter = parser._get_formatter()  # noqa: SLF001 argparse has no other way to expand %(default)s
    for group in parser._action_groups:  # noqa: SLF001 nor to list what was added
        for action in group._group_actions:  # noqa: SLF001
            if action.help == argparse.SUPPRESS:
                continue
            choices = tuple(map(str, action.choices or ()))
            named = action.metavar if isinstance(action.metavar, str) else "|".join(choices) or action.dest.upper()
            yield Option(
                flags=tuple(action.option_strings),
                metavar="" if action.nargs == 0 else named,
                choices=choices,
                help=formatter._expand_help(action) if action.help else "",  # noqa: SLF001
                is_common=group.title == COMMON,
            )
