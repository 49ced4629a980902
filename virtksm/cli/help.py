"""`virtksm help [COMMAND [ACTION]]`, and what follows the options in every --help: commands by purpose, examples.

Imported only where somebody reads help, and by the man page.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence

from virtksm.cli.main import ACTIONS, GROUPS, Words, parse

EXIT_CODES = (
    "exit codes: 0 done or nothing to do, 1 other failure, not verified or a FAIL, 2 usage or configuration, "
    "3 libvirt unreachable, 4 the kernel or libvirt refused a setting; of wait: 5 timed out, 6 paused, 7 KSM off"
)
EXAMPLES: Mapping[Words, Sequence[tuple[str, str]]] = {
    (): (
        ("virtksm status", "is it running, and what does it save?"),
        ("virtksm doctor", "find out why KSM does not merge on this host"),
        ("virtksm help guests", "explain a command"),
    ),
    ("status",): (
        ("virtksm status --watch 5s", "show the status again every 5 seconds, until q"),
        ("virtksm -c qemu:///session status", "ask about the host behind another connection"),
    ),
    ("guests",): (
        ("virtksm guests --sort memory", "the guests with most memory first"),
        ("virtksm guests -o name --no-header", "the guests' names alone, for scripts"),
        ("virtksm guests web-1 web-2 --json", "two guests, as JSON"),
    ),
    ("headroom",): (("virtksm headroom", "can this host take another guest?"),),
    ("doctor",): (
        ("sudo virtksm doctor", "all checks; as root it sees other users' processes, too"),
        ("virtksm doctor --all --only kernel", "the kernel's checks, passed ones included"),
        ("virtksm doctor --strict", "for scripts: exit with 1 for a warning, too"),
    ),
    ("explain",): (
        ("virtksm explain --last 20", "the last 20 decisions"),
        ("virtksm explain --follow", "each decision when it is made, until Ctrl-C"),
    ),
    ("wait",): (
        ("virtksm wait", "return once the memory of all guests is scanned"),
        ("virtksm wait --timeout 10m", "wait for 10 minutes at most; the exit code says how it ended"),
    ),
    ("retune",): (
        ("sudo virtksm retune", "evaluate now, after a change of the configuration"),
        ("virtksm retune --direct --dry-run", "show what would be set, without an agent"),
    ),
    ("pause",): (("sudo virtksm pause", "stop scanning now; merged pages stay merged"),),
    ("resume",): (("sudo virtksm resume", "let virtksm scan again"),),
    ("unmerge",): (
        ("virtksm unmerge --check", "would all unmerged pages fit into memory?"),
        ("sudo virtksm unmerge", "give up all savings; KSM is then off"),
        ("sudo virtksm unmerge --merge-across-nodes never", "keep merged pages on their NUMA node, and merge again"),
    ),
    ("guest", "show"): (("sudo virtksm guest show web-1", "may it merge, and what would unmerging it cost?"),),
    ("guest", "unmerge"): (("sudo virtksm guest unmerge web-1", "give up what is merged of one guest, while it runs"),),
    ("guest", "merge"): (("sudo virtksm guest merge web-1", "undo `virtksm guest unmerge`"),),
    ("verify-off",): (("virtksm verify-off", "for scripts: ends with 0 only if KSM is certainly off"),),
    ("restore",): (("sudo virtksm restore", "put back the settings after the agent was stopped"),),
    ("config", "check"): (("virtksm config check /etc/virtksm/conf.d/50-site.toml", "check one file"),),
    ("config", "show"): (("virtksm config show", "every value and where it comes from"),),
    ("config", "path"): (("virtksm config path", "the files, in the order in which they are read"),),
    ("config", "import"): (
        ("virtksm config import /etc/ksmtuned.conf", "what its threshold means to policy adaptive"),
        ("virtksm config import --policy ksmtuned /etc/ksmtuned.conf -o ksmtuned.toml", "take all its settings over"),
    ),
    ("agent",): (("sudo virtksm agent --log-level debug", "run the daemon in this terminal"),),
    ("fleet", "status"): (
        ("virtksm fleet status --hosts hosts.txt", "all hosts of a file, a name or a URI a line"),
        ("virtksm fleet status --inventory site.yml --limit compute", "a group of Ansible's inventory"),
    ),
    ("fleet", "retune"): (
        ("sudo virtksm fleet retune -c qemu+ssh://web1/system -c qemu+ssh://web2/system", "a pass on two hosts"),
    ),
    ("fleet", "doctor"): (("virtksm fleet doctor --hosts hosts.txt --json", "what to mend where, for scripts"),),
    ("fleet", "pause"): (("sudo virtksm fleet pause --hosts hosts.txt", "stop scanning on hosts without an agent"),),
    ("fleet", "resume"): (("sudo virtksm fleet resume --hosts hosts.txt", "let them scan again"),),
    ("trace", "record"): (("sudo virtksm trace record --for 1h host.trace", "record an hour"),),
    ("trace", "replay"): (
        ("virtksm trace replay --policy ksmtuned host.trace", "what would ksmtuned have done?"),
        ("virtksm trace replay --set adaptive.engage=always host.trace", "try another value"),
    ),
    ("trace", "plot"): (("virtksm trace plot --last 6h -o ksm.svg", "draw the last six hours"),),
    ("help",): (("virtksm help trace record", "explain an action"),),
    ("version",): (("virtksm version --json", "the version, for scripts"),),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="COMMAND", nargs="*", help="the command to explain, and its action")


def run(options: argparse.Namespace) -> None:
    parse([*options.topic, "--help"])


def describe(words: Words, summary: str, width: int) -> str:
    """Return what a command does, with the commands or actions that its words may be followed by."""
    groups = GROUPS if not words else {"Actions": ACTIONS.get(words[0], {})} if len(words) == 1 else {}
    parts = [textwrap.fill(f"{summary[0].upper()}{summary[1:]}.", width)]
    parts += ["\n".join([f"{title}:", *_table(some, width)]) for title, some in groups.items() if some]
    if not words:
        parts.append(textwrap.fill(EXIT_CODES, width, subsequent_indent="  "))
    return "\n\n".join(parts)


def examples(words: Words) -> str:
    lines = ["examples:"]
    for example, meaning in examples_of(words):
        lines += [f"  {example}", f"      {meaning}"]
    return "\n".join(lines)


def examples_of(words: Words) -> list[tuple[str, str]]:
    """Return examples of a command, or of all its actions, and what each is for."""
    return [one for named, some in EXAMPLES.items() if named[: max(len(words), 1)] == words for one in some]


def _table(summaries: Mapping[str, str], width: int) -> list[str]:
    lines: list[str] = []
    for name, summary in summaries.items():
        first = f"  {name:<12}"
        lines += textwrap.wrap(summary, width, initial_indent=first, subsequent_indent=" " * len(first))
    return lines
