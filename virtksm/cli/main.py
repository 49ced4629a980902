"""The command line: global options, one module a subcommand, and the one place that turns errors into exit codes.

A subcommand's module is imported only if it is called, and imports only what it uses: `virtksm retune` through an agent
starts as fast as Python itself.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from virtksm import __version__
from virtksm.errors import ConfigError, ExitCode, VirtksmError
from virtksm.paths import DEFAULT_RUNTIME_DIR, DEFAULT_STATE_DIR
from virtksm.text import printable

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import NoReturn

COMMANDS = {
    "agent": "listen to libvirt and tune KSM as guests start and stop",
    "retune": "run one tuning pass and exit",
    "status": "show the host's KSM, what it does and why, also while libvirt does not answer; or watch it",
    "doctor": "find obstacles to KSM on this host, with remedies",
    "guests": "show KSM's savings and cost for each guest, and which guests cannot merge",
    "headroom": "show how much more guest memory this host can take, and the risk",
    "explain": "explain the last decisions, and what would have changed them",
    "trace": "record the policy's inputs, replay them, draw them",
    "restore": "give KSM's settings back as virtksm found them",
    "off": "stop scanning until further notice, and say how to unmerge; or verify that KSM is off",
    "on": "undo `virtksm off`, and run a pass",
    "config": "check, show or import configuration",
}
ACTIONS = {
    "trace": {
        "record": "write the inputs of the agent's policy to a file, pass after pass",
        "replay": "run any policy over a recorded file, beside the one that was recorded",
        "plot": "draw savings, ksmd's CPU, settings and guests over time",
    },
}
"""The actions of a command that is a folder, one module each; only the called one is imported."""

EPILOG = """\
exit codes: 0 done or nothing to do, 1 other failure, not verified or a FAIL, 2 usage or configuration,
3 libvirt unreachable, 4 the kernel or libvirt refused a setting
"""


class HelpText(argparse.RawDescriptionHelpFormatter):
    """A formatter that asks the terminal for its width itself.

    argparse makes a formatter for every option that is added, and the usual one imports shutil with all its compressors
    for that question: 2 ms of every start.
    """

    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size().columns
        except OSError:
            columns = 80
        super().__init__(prog, width=max(columns, 40) - 2)


def global_options() -> argparse.ArgumentParser:
    """Return the options before every subcommand."""
    parser = argparse.ArgumentParser(prog="virtksm", add_help=False, allow_abbrev=False, formatter_class=HelpText)
    parser.add_argument("--config", metavar="FILE", help="read this file instead of /etc/virtksm and its drop-ins")
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        default=DEFAULT_RUNTIME_DIR,
        help="folder of locks, state and sockets (default: %(default)s)",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        default=DEFAULT_STATE_DIR,
        help="folder of files that survive a reboot, such as virtksm's switch (default: %(default)s)",
    )
    return parser


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Build the parser of every command, or only of the command that `words` begin with.

    Where they begin with none, every command is named, but has no options. A command's parser takes 0.1 ms to build
    (measured), and there are more than a dozen.
    """
    parser = argparse.ArgumentParser(
        prog="virtksm",
        description="Decides and applies KSM settings on libvirt hosts.",
        epilog=EPILOG,
        formatter_class=HelpText,
        parents=[global_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"virtksm {__version__}")
    _add_commands(parser, "command", COMMANDS, "virtksm.cli", words)
    return parser


def _add_commands(
    parser: argparse.ArgumentParser, kind: str, summaries: Mapping[str, str], package: str, words: Sequence[str] | None
) -> None:
    named = words[0] if words and words[0] in summaries else None
    subparsers = parser.add_subparsers(dest=kind, metavar=kind.upper(), required=True)
    for name in [named] if named else summaries:
        summary = summaries[name]
        description = summary[0].upper() + summary[1:] + "."
        subparser = subparsers.add_parser(
            name, help=summary, description=description, formatter_class=HelpText, allow_abbrev=False
        )
        if words is not None and not named:
            continue
        module = f"{package}.{name}"
        if name in ACTIONS:
            _add_commands(subparser, "action", ACTIONS[name], module, words and words[1:])
        else:
            importlib.import_module(module).add_options(subparser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        # Python 3.13's argparse takes "--" away before a command; 3.11's calls it none.
        words = [word for word in global_options().parse_known_args(given)[1] if word != "--"]
        options = build_parser(words).parse_args(given)
        return int(options.run(options))

    return exit_code_of(run)


def exit_code_of(run: Callable[[], int], program: str = "virtksm") -> int:
    """Return what `run` returns, or the exit code of its error, which is printed in the program's name."""
    try:
        code = run()
        sys.stdout.flush()
    except ConfigError as error:  # a line for each finding, none with anything unprintable
        print(f"{program}: {error}", file=sys.stderr)
        return int(error.exit_code)
    except VirtksmError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:  # the reader (head, grep -q) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the output goes there
        return int(ExitCode.DONE)
    except OSError as error:  # unforeseen by any adapter, such as a full disk behind standard output
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        return 130
    return code


def run_program(run: Callable[[], int] = main) -> NoReturn:
    """Run one command as a program of its own, and end the process without Python's cleanup.

    That takes 10 ms once libvirt is imported, a tenth of a one-shot, and frees only what the kernel frees anyway.
    """
    code = run()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the reader is gone
            code = code or int(ExitCode.FAILED)
    os._exit(code)
