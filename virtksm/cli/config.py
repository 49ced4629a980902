"""`virtksm config check|show|import`: finds faults, prints the configuration in force, imports ksmtuned's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from virtksm.errors import ConfigError, ConfigFault, ExitCode

TYPE_CHECKING = False  # importing typing costs a start 2 ms
if TYPE_CHECKING:
    from virtksm.cli.main import Parser


def add_options(parser: Parser) -> None:
    """Add the action's options."""
    match parser.words[1]:
        case "check":
            parser.add_argument("file", nargs="?", metavar="FILE")
            parser.set_defaults(run=run_check)
        case "show":
            parser.set_defaults(run=run_show)
        case "import":
            parser.add_argument("file", metavar="FILE", help="usually /etc/ksmtuned.conf")
            parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of to standard output")
            parser.set_defaults(run=run_import)


def run_check(options: argparse.Namespace) -> int:
    """Check the configuration; faults are raised as ConfigError."""
    from virtksm.config.load import load, shown

    loaded = load(options.config if options.file is None else options.file)
    for file in loaded.files:
        print(f"{shown(file)}: ok")
    if not loaded.files:
        print("no configuration file: the defaults are in force")
    return ExitCode.DONE


def run_show(options: argparse.Namespace) -> int:
    """Print the effective configuration."""
    from virtksm.config.load import load
    from virtksm.config.schema import all_keys
    from virtksm.config.toml_text import effective, value_of

    loaded = load(options.config)
    if options.json:
        import json

        shown = {name: {"value": value_of(loaded.config, name), "origin": loaded.origins[name]} for name in all_keys()}
        print(json.dumps(shown))
    else:
        print(effective(loaded), end="")
    return ExitCode.DONE


def run_import(options: argparse.Namespace) -> int:
    """Convert ksmtuned's file; notes go into the output and to standard error."""
    from virtksm.config.ksmtuned_conf import parse_ksmtuned_conf
    from virtksm.config.load import shown
    from virtksm.config.toml_text import imported

    values, notes = parse_ksmtuned_conf(_read_bounded(options.file))
    result = imported(values, notes, options.file)
    for note in notes:
        print(f"virtksm: {shown(options.file)}: {note}", file=sys.stderr)
    if options.output is None:
        print(result, end="")
        return ExitCode.DONE
    try:
        with Path(options.output).open("x", encoding="utf-8") as output:
            output.write(result)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        remedy = "name a new file; an existing one is not overwritten"
        raise ConfigError([ConfigFault(file=shown(options.output), key="", problem=problem, remedy=remedy)]) from error
    return ExitCode.DONE


def _read_bounded(file: str) -> str:
    """Return a file's text; bytes that are not UTF-8 become lone surrogates, which no value has and notes escape."""
    from virtksm.config.load import MAX_BYTES, shown

    problem, remedy = f"is larger than {MAX_BYTES} bytes", "name ksmtuned's file"
    try:
        with Path(file).open("rb") as source:
            content = source.read(MAX_BYTES + 1)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise ConfigError([ConfigFault(file=shown(file), key="", problem=problem, remedy=remedy)]) from error
    if len(content) > MAX_BYTES:
        raise ConfigError([ConfigFault(file=shown(file), key="", problem=problem, remedy=remedy)])
    return content.decode("utf-8", errors="surrogateescape")
