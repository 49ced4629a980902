"""The man pages virtksm(1), virtksm.toml(5) and virtksm-hook(7) as pandoc's Markdown.

Commands and keys come from the program, what surrounds them from the same documents that people read in docs/. Pure: a
document that lacks a section raises ValueError.
"""

import re
from collections.abc import Iterable

from manual.tree import Command, Option
from virtksm import __version__
from virtksm.config.schema import Config, Key, all_keys, tables_of
from virtksm.config.toml_text import format_value

ENVIRONMENT = {
    "`LIBVIRT_DEFAULT_URI`": "the connection where **\\--connect** does not name one",
    "`COLUMNS`": "the width of output and help, also in a pipe; else the terminal's",
    "`NO_COLOR`": "set, to whatever it may be: no colours on a terminal",
}
FILES = {
    "/etc/virtksm/virtksm.toml, /etc/virtksm/conf.d/\\*.toml": "configuration; virtksm.toml(5)",
    "/run/virtksm/agent": "locks, sockets, the values that were found; kept when the agent stops",
    "/run/virtksm/poke": "where the qemu hook writes; virtksm-hook(7)",
    "/var/lib/virtksm": "what survives a reboot",
    "/etc/libvirt/hooks/qemu.d/virtksm": "the qemu hook",
}
HOOK_SECTION = "Hosts without an agent: the qemu hook"
SEE_ALSO = {
    "virtksm(1)": "**virtksm.toml**(5), **virtksm-hook**(7), **virsh**(1); the documents in /usr/share/doc/virtksm",
    "virtksm.toml(5)": "**virtksm**(1)",
    "virtksm-hook(7)": "**virtksm**(1), **virtksm.toml**(5)",
}


def program_page(command: Command, reference: str) -> str:
    """Return virtksm(1): every command with its options, then the exit codes and signals of docs/reference.md."""
    parts = [
        _title("virtksm", 1, "manages KSM on libvirt hosts"),
        "# SYNOPSIS\n",
        f"{_usage(command)}\n",
        "# DESCRIPTION\n",
        "Listens to libvirt and sets the kernel's KSM parameters as guests start, stop and grow. **virtksm agent** "
        "does so for as long as it runs; the other commands ask it, or act once.\n",
        "# OPTIONS\n",
        "Before or after the command:\n",
        *_options(command.options),
        "# COMMANDS\n",
    ]
    for one in command.walk():
        if one is not command:
            parts += [f"## {' '.join(one.words[1:])}\n", f"{_usage(one)}\n", f"{_sentence(one.summary)}\n"]
            parts += _options(option for option in one.options if not option.is_common and "-h" not in option.flags)
    parts.append("# EXAMPLES\n")
    leaves = [one for one in command.walk() if not one.commands]
    parts += [_definition(f"`{text}`", meaning) for one in leaves for text, meaning in one.examples]
    parts += ["# EXIT STATUS\n", section(reference, "Exit codes")]
    parts += ["# SIGNALS\n", "Of the agent. " + section(reference, "Signals")]
    parts += ["# ENVIRONMENT\n", *(f"{name}\n:   {meaning}\n" for name, meaning in ENVIRONMENT.items())]
    parts += ["# FILES\n", *(f"{path}\n:   {meaning}\n" for path, meaning in FILES.items())]
    return _finished(parts, "virtksm(1)")


def configuration_page(document: str) -> str:
    """Return virtksm.toml(5): docs/configuration.md, and every key."""
    before = _for_a_terminal(document.partition("\n")[2])
    parts = [_title("virtksm.toml", 5, "configuration of virtksm"), "# DESCRIPTION\n", _raised(before), "# KEYS\n"]
    for table in ("", *tables_of(Config)):
        parts.append(f"## [{table}]\n" if table else "## Top level\n")
        parts += [_key(name, one) for name, one in all_keys().items() if name.rpartition(".")[0] == table]
    return _finished(parts, "virtksm.toml(5)")


def hook_page(guide: str) -> str:
    """Return virtksm-hook(7): what docs/guide.md tells of the hook."""
    text = section(guide, HOOK_SECTION).replace("\n### ", "\n## ")
    return _finished(
        [_title("virtksm-hook", 7, "tells virtksm when a guest comes or goes"), "# DESCRIPTION\n", _raised(text)],
        "virtksm-hook(7)",
    )


def section(document: str, heading: str) -> str:
    """Return the text below a document's `## heading`; raises ValueError if there is none."""
    found = re.search(rf"^## {re.escape(heading)}\n+(.*?)(?=^## |\Z)", document, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"no section {heading!r}")
    return _for_a_terminal(found[1])


def without_links(text: str) -> str:
    """Leave of a link to another document its words alone: man pages have no folders."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


def without_tables(text: str) -> str:
    """Turn tables of two columns into lists, which have room where a terminal is narrow."""
    rows = re.compile(r"^\|.*\|\n\| --- \| --- \|\n((?:\|.*\|\n?)+)", flags=re.MULTILINE)
    cells = re.compile(r"^\| (.*?) \| (.*) \|$", flags=re.MULTILINE)
    return rows.sub(lambda table: cells.sub(r"\1\n:   \2\n", table[1]), text)


def _for_a_terminal(text: str) -> str:
    return without_tables(without_links(text))


def _title(name: str, number: int, summary: str) -> str:
    return f"% {name.upper()}({number}) virtksm {__version__}\n\n# NAME\n\n{name} - {summary}\n"


def _finished(parts: list[str], page: str) -> str:
    return "\n".join([*parts, "# SEE ALSO\n", f"{SEE_ALSO[page]}\n"])


def _raised(text: str) -> str:
    """Make a document's sections those of a page."""
    return re.sub(r"^##(#?) (.*)$", lambda found: f"#{found[1]} {found[2].upper()}", text, flags=re.MULTILINE)


def _usage(command: Command) -> str:
    return f"`{command.usage}`"


def _options(options: Iterable[Option]) -> list[str]:
    return [_definition(_called(option), _plain(option.help)) for option in options]


def _called(option: Option) -> str:
    value = f" *{_plain(option.metavar)}*" if option.metavar else ""
    return ", ".join(f"**{_plain(flag)}**{value}" for flag in option.flags) or value.strip()


def _key(name: str, one: Key) -> str:
    allowed = f"{one.range_text}; default {format_value(one.default)}."
    return _definition(f"**{_plain(name.rpartition('.')[2])}**", f"{one.meaning}\n\n    {_plain(allowed)} {one.reason}")


def _definition(term: str, text: str) -> str:
    return f"{term}\n:   {text}\n"


def _plain(text: str) -> str:
    """Escape what Markdown would read as more than text."""
    return re.sub(r"([\\`*_{}\[\]<>#+.!|~^$@'\"-])", r"\\\1", text)


def _sentence(text: str) -> str:
    return _plain(f"{text[0].upper()}{text[1:]}.")
