"""`virtksm config check|show|path|import`: find faults, show what is in force and in which files, import ksmtuned's."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from virtksm.cli.main import Parser
from virtksm.config.load import MAX_BYTES, MISSING, READ, find_files, load
from virtksm.errors import ConfigError, ExitCode
from virtksm.text import printable


def add_options(parser: Parser) -> None:
    match parser.words[1]:
        case "check":
            parser.add_argument("file", nargs="?", metavar="FILE")
        case "import":
            parser.add_argument("file", metavar="FILE", help="usually /etc/ksmtuned.conf")
            parser.add_argument(
                "--policy",
                choices=("adaptive", "ksmtuned"),
                help="adaptive (the default, recommended) takes the threshold, ksmtuned all values",
            )
            parser.add_argument("-o", "--output", metavar="FILE", help="write this new file instead of standard output")


def run_check(options: argparse.Namespace) -> None:
    loaded = load(options.config if options.file is None else options.file)
    for file in loaded.files:
        print(f"{printable(file)}: ok")
    if not loaded.files:
        print("no configuration file: the defaults are in force")


def run_show(options: argparse.Namespace) -> None:
    from virtksm.config.schema import all_keys, value_of
    from virtksm.config.toml_text import effective

    loaded = load(options.config)
    if options.json:
        shown = {
            name: {
                "value": value_of(loaded.config, name),
                "origin": loaded.origins[name],
                "choices": one.choices,
                "meaning": one.meaning,
            }
            for name, one in all_keys().items()
        }
        print(json.dumps(shown))
    else:
        print(effective(loaded), end="")


def run_path(options: argparse.Namespace) -> None:
    """Print the files of the configuration in the order in which they are read: a later one wins, key by key."""
    found, faults = find_files(options.config)
    states = {file: state if state in {READ, MISSING} else f"replaced by {state}" for file, state in found.items()}
    if options.json:
        print(json.dumps({"files": [{"path": file, "state": state} for file, state in states.items()]}))
    else:
        width = max(len(printable(file)) for file in states)
        print("\n".join(f"{printable(file):<{width}}  {printable(state)}" for file, state in states.items()))
    if faults:
        raise ConfigError(faults)


def run_import(options: argparse.Namespace) -> int:
    """Convert ksmtuned's file; returns FAILED if something was left out, with notes in the output and on stderr."""
    from virtksm.config.ksmtuned_conf import ADAPTIVE, as_adaptive, parse_ksmtuned_conf
    from virtksm.config.toml_text import imported

    policy = options.policy or ADAPTIVE
    values, notes = parse_ksmtuned_conf(_read_bounded(options.file))
    if policy == ADAPTIVE:
        values, notes = as_adaptive(values, notes)
    result = imported(values, notes, options.file, policy)
    for note in notes:
        print(f"virtksm: warning: {printable(options.file)}: left out: {note}", file=sys.stderr)
    if options.policy is None:
        print("virtksm: this is for policy adaptive, which is recommended", file=sys.stderr)
        print("hint: --policy ksmtuned takes all values, and scans as ksmtuned does", file=sys.stderr)
    if options.output is None:
        print(result, end="")
    elif values or policy != ADAPTIVE:
        _write_new(options.output, result)
        taken = ", ".join(f"{name} = {value}" for name, value in values.items())
        print(f"{printable(options.output)}: written: {taken or f'policy = {policy}'}")
    else:
        print(f"{printable(options.file)}: nothing to write: it has no threshold of its own")
    return ExitCode.FAILED if notes else ExitCode.DONE


def _write_new(file: str, text: str) -> None:
    try:
        with Path(file).open("x", encoding="utf-8") as output:
            os.fchmod(output.fileno(), 0o644)  # whatever the umask: root writes it, and the agent's user reads it
            output.write(text)
    except OSError as error:
        remedy = "name a new file; an existing one is not overwritten"
        raise ConfigError.of(printable(file), f"cannot be written: {error.strerror}", remedy) from error


def _read_bounded(file: str) -> str:
    """Return a file's text; bytes that are not UTF-8 become lone surrogates, which no value has and notes escape."""
    remedy = "name ksmtuned's file"
    try:
        with Path(file).open("rb") as source:
            content = source.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError.of(printable(file), f"cannot be read: {error.strerror}", remedy) from error
    if len(content) > MAX_BYTES:
        raise ConfigError.of(printable(file), f"is larger than {MAX_BYTES} bytes", remedy)
    return content.decode("utf-8", errors="surrogateescape")
