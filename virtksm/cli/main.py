"""The command line: which command is meant, its options, and the one place that turns errors into exit codes.

A command's module is imported only if it is called, and imports only what it uses: `virtksm retune` through an agent
starts as fast as Python itself. For the same reason each command has a parser of its own, without argparse's
subparsers: the common options may stand before and after the command, and a usage error shows the command's usage.

A command's module has `run`, or `run_ACTION` for each action: it takes the options, and returns an exit code where that
is not DONE. It has `add_options` where it has options of its own. `options.words` name the command, `options.paths` are
the folders that the options name.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from virtksm.errors import ConfigError, ExitCode, OnlyRoot, StateUnusable, UsageError, VirtksmError, reason_of
from virtksm.paths import DEFAULT_RUNTIME_DIR, DEFAULT_STATE_DIR, RuntimePaths
from virtksm.text import printable
from virtksm.uri import DEFAULT_URI, VARIABLE

TYPE_CHECKING = False  # importing typing costs a one-shot through the agent 2 ms
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

Words = tuple[str, ...]
"""What names a command: ("status",), ("config", "show"); none for the program itself."""

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Look": {
        "status": "show what KSM saves now, what it costs, and why ksmd scans or is idle",
        "guests": "show savings and cost for each guest, and which guests cannot merge",
        "headroom": "show how much more guest memory fits",
        "doctor": "check this host's KSM setup and suggest fixes",
        "explain": "show the last decisions and their reasons",
        "wait": "wait until all memory is scanned and ksmd is idle",
    },
    "Act": {
        "retune": "run one pass now",
        "pause": "stop scanning until `virtksm resume`, also over reboots",
        "resume": "undo `virtksm pause`, and run a pass",
        "restore": "put back the KSM settings found before virtksm",
        "unmerge": "unmerge all pages and switch KSM off, if their copies fit into memory",
        "guest": "take one running guest's memory out of KSM, or let it back in",
        "verify-off": "prove that KSM is off and nothing is merged",
    },
    "Set up": {"config": "check, show, find or import the configuration", "agent": "run the daemon (systemd does)"},
    "Tools": {
        "fleet": "status, retune, doctor, pause or resume on many hosts at once",
        "trace": "record the policy's inputs, replay them, draw them",
        "help": "explain a command, with examples",
        "version": "print the version",
    },
}
COMMANDS = {name: summary for commands in GROUPS.values() for name, summary in commands.items()}
ACTIONS: Mapping[str, Mapping[str, str]] = {
    "guest": {
        "show": "show what of a running guest may merge, and what taking it out would cost",
        "unmerge": "take a running guest out of KSM until it ends, if the copies fit into memory",
        "merge": "let a running guest's memory merge again",
    },
    "config": {
        "check": "report every fault of the configuration, or of FILE alone",
        "show": "print the configuration in force, each value with its file",
        "path": "print which files are read, in order, and which of them exist",
        "import": "turn a ksmtuned.conf into virtksm's configuration",
    },
    "fleet": {
        "status": "show KSM's state and savings on each host",
        "retune": "run one pass on each host",
        "doctor": "make the checks that libvirt allows on each host",
        "pause": "stop scanning on each host, until `virtksm fleet resume`",
        "resume": "undo `virtksm fleet pause`",
    },
    "trace": {
        "record": "write the inputs of the agent's policy to a file, pass after pass",
        "replay": "run any policy over a recorded file, beside the one that was recorded",
        "plot": "draw savings, ksmd's CPU, settings and guests over time",
    },
}
FOLDERS = ("trace",)
"""Commands whose actions have a module each."""
MANY = ("fleet",)
"""The command that takes many connections."""
WITHOUT_JSON = {("agent",), ("config", "check"), ("config", "import"), ("help",)}
COMMON = "common options"
"""The heading of the options that every command takes."""
CONNECT_HELP = f"libvirt connection (default: {VARIABLE}, else the agent's, else {DEFAULT_URI})"
CONNECTS_HELP = "ask the host behind this libvirt connection (may be repeated)"
VALUED = frozenset({"-c", "--connect", "--config", "--runtime-dir", "--state-dir"})
"""Common options that a value follows."""
NOT_IN_USAGE = ("help", "runtime_dir", "state_dir")
MAX_COLUMNS = 120
READER_GONE = 141
"""The exit code where the output's reader (head, grep -q) went before its end: what a shell sees of a program that
SIGPIPE ends, such as virsh. Never 0, as a judgment that nobody has read is none."""


class HelpText(argparse.RawDescriptionHelpFormatter):
    """A formatter that leaves the rarest common options out of the usage.

    argparse makes one for every option that is added; without `columns` it imports shutil with all its compressors to
    find the terminal's: 2 ms of every start.
    """

    def __init__(self, prog: str, columns: int = 80) -> None:
        super().__init__(prog, width=columns - 2, max_help_position=22)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        super().add_usage(usage, [one for one in actions if one.dest not in NOT_IN_USAGE], groups, prefix)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Write `-c, --connect URI`, as Python 3.13 does by itself and older ones do not."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """The parser of one command, with the common options."""

    def __init__(self, words: Words) -> None:
        super().__init__(prog=" ".join(("virtksm", *words)), formatter_class=HelpText, allow_abbrev=False)
        self.words = words
        self.summary = below(words[:-1])[words[-1]] if words else "manage KSM on libvirt hosts"
        if below(words):
            self.usage = f"{self.prog} [-c URI] [--json] [--config FILE] {'ACTION' if words else 'COMMAND'} ..."
        common = self.add_argument_group(COMMON)
        if words[:1] == MANY:
            common.add_argument("-c", "--connect", metavar="URI", action="append", help=CONNECTS_HELP)
        else:
            common.add_argument("-c", "--connect", metavar="URI", help=CONNECT_HELP)
        if words not in WITHOUT_JSON:
            common.add_argument("--json", action="store_true", help="print JSON")
        common.add_argument("--config", metavar="FILE", help="read FILE instead of /etc/virtksm and its drop-ins")
        common.add_argument(
            "--runtime-dir",
            metavar="DIR",
            default=DEFAULT_RUNTIME_DIR,
            help="folder of locks, state and sockets (default: %(default)s)",
        )
        common.add_argument(
            "--state-dir",
            metavar="DIR",
            default=DEFAULT_STATE_DIR,
            help="folder of files that survive a reboot (default: %(default)s)",
        )

    def format_help(self) -> str:
        from virtksm.cli.help import describe, examples  # only where somebody reads it

        self.description = describe(self.words, self.summary, self._fit(sys.stdout) - 2)
        self.epilog = examples(self.words)
        return super().format_help()

    def _fit(self, stream: TextIO) -> int:
        """Have texts fit the terminal; returns its columns."""
        from virtksm.cli.layout import USUAL_COLUMNS, find_columns

        columns = min(find_columns(stream, os.environ) or USUAL_COLUMNS, MAX_COLUMNS)
        self.formatter_class = lambda prog: HelpText(prog, columns)
        return columns

    def error(self, message: str, *, remedy: str = "") -> NoReturn:
        self._fit(sys.stderr)
        self.print_usage(sys.stderr)
        raise UsageError(message, remedy=remedy or " ".join(("virtksm help", *self.words)))


def make_parser(words: Words) -> Parser:
    """Return the parser of a command, of a command that only has actions, or of the program itself."""
    parser = Parser(words)
    if not words:
        parser.add_argument("--version", action="store_true", help="print the version")
    if not below(words):
        module = words if words[0] in FOLDERS else words[:1]
        command = importlib.import_module(".".join(("virtksm.cli", *module)).replace("-", "_"))
        parser.set_defaults(run=getattr(command, f"run_{words[-1]}", None) or command.run, words=words)
        if hasattr(command, "add_options"):
            command.add_options(parser)
    return parser


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; its `run` runs the command. Raises UsageError, SystemExit after --help."""
    words, rest = split(given)
    parser = make_parser(words)
    options = parser.parse_args(rest)
    options.paths = RuntimePaths(options.runtime_dir, options.state_dir)
    if not words and options.version:
        return parse(["version", *(word for word in rest if word != "--version")])
    if below(words):
        parser.error("no action given" if words else "no command given")
    return options


def split(given: Sequence[str]) -> tuple[Words, list[str]]:
    """Return the words that name the command, and all others; raises UsageError for a command that is not there."""
    words: Words = ()
    rest = list(given)
    at = 0
    while at < len(rest) and below(words):
        if rest[at].startswith("-"):
            at += 1 + (rest[at] in VALUED)
            continue
        name = rest.pop(at)
        if name not in below(words):
            _refuse(words, name)
        words = (*words, name)
    return words, rest


def below(words: Words) -> Mapping[str, str]:
    """Return the commands, or actions, that these words may be followed by, with a summary each."""
    return ACTIONS.get(words[0], {}) if len(words) == 1 else {} if words else COMMANDS


def _refuse(words: Words, name: str) -> NoReturn:
    from difflib import get_close_matches  # 9 ms, for nobody else

    near = get_close_matches(name, below(words), 1)
    meant = " ".join(("virtksm", *words, *near))
    parser = make_parser(words)
    parser.error(f"{name!r} is no {'action' if words else 'command'}", remedy=f"did you mean {meant}?" if near else "")


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments

    def run() -> int:
        options = parse(given)
        return int(options.run(options) or ExitCode.DONE)

    return exit_code_of(run, given=given)


def exit_code_of(run: Callable[[], int], program: str = "virtksm", given: Sequence[str] = ()) -> int:
    """Return what `run` returns, or the exit code of its error, which is printed in the program's name.

    `given` are its arguments, for the command that a hint names.
    """
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the output goes there
        return READER_GONE
    except (VirtksmError, OSError) as error:  # an OSError is unforeseen by any adapter, such as a full disk
        complain(error_lines(error, program, given))
        return int(error.exit_code if isinstance(error, VirtksmError) else ExitCode.FAILED)
    except KeyboardInterrupt:
        return 130
    return code


def complain(lines: Sequence[str]) -> None:
    """Print lines on standard error; where that cannot be (no reader, a full disk), no act or exit code suffers."""
    try:  # noqa: SIM105  # contextlib is start-up time
        print("\n".join(map(printable, lines)), file=sys.stderr, flush=True)
    except OSError:
        pass


def error_lines(error: VirtksmError | OSError, program: str, given: Sequence[str]) -> list[str]:
    """Render an error: what has happened, and a command to type or a fact to check."""
    # A file of root's is the cause; not so of what a configuration or a trace names.
    is_denied = isinstance(error, StateUnusable) and isinstance(error.__cause__, PermissionError)
    if os.geteuid() != 0 and (isinstance(error, OnlyRoot | PermissionError) or is_denied):
        import shlex

        return [f"{program}: error: {OnlyRoot()}", f"hint: {shlex.join(('sudo', program, *given))}"]
    if isinstance(error, ConfigError) and len(error.faults) > 1:
        files = len({fault.file for fault in error.faults})
        counted = f"{len(error.faults)} errors in {files} file{'s' if files > 1 else ''}"
        return [f"{program}: error: {fault}" for fault in error.faults] + [f"{program}: {counted}"]
    shown = error.faults[0] if isinstance(error, ConfigError) else error
    message, remedy = (reason_of(shown), "") if isinstance(shown, OSError) else (shown.message, shown.remedy)
    return [f"{program}: error: {message}", *([f"hint: {remedy}"] if remedy else [])]


def run_program(run: Callable[[], int] = main) -> NoReturn:
    """Run one command as a program of its own, and end the process without Python's cleanup.

    That takes 10 ms once libvirt is imported, a tenth of a one-shot, and frees only what the kernel frees anyway.
    """
    _make_streams_writable()
    try:
        code = run()
    except SystemExit as end:  # argparse's, after --help
        code = int(end.code or 0)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or READER_GONE
        except (OSError, ValueError):
            code = code or int(ExitCode.FAILED)
    os._exit(code)


def _make_streams_writable() -> None:
    """Have standard output and error take any text: letters that the locale lacks, and where they are closed."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed (>&-), its number would be the next file's
        os.set_inheritable(free, True)  # noqa: FBT003  # takes no name
    os.close(free)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
