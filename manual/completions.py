"""Completion for bash, zsh and fish: commands, options, their choices, files, and names of running guests.

Static scripts: nothing but virsh is started when Tab is pressed. Written here, since of the packaged ones
argcomplete starts Python at each Tab and would be needed at run time; shtab 1.5 (Debian 12) offers bash one
choice of many, and knows no fish.

What an option or argument takes follows from its metavar: FILE, DIR, GUEST, or its choices.
"""

import re
import shlex
from collections.abc import Iterable, Iterator

from manual.tree import Command, Option

GUESTS = "virsh --readonly list --name 2>/dev/null"
"""Prints a name a line; a user who may not ask gets none.

A name is whatever a guest's owner has chosen, and root presses Tab: no shell may expand it. zsh (compadd without -Q)
and fish (a line of a command substitution) take it as it is and quote it when they insert it. bash does neither.
"""

BASH_VALUES = {"FILE": "_virtksm_offer -f", "DIR": "_virtksm_offer -d", "GUEST": "_virtksm_offer_guests"}
BASH_HEAD = f"""\
# Completion of virtksm for bash.
_virtksm_offer() {{ # _virtksm_offer HOW...: what compgen finds; a name a line, which may hold spaces
  local IFS=$'\\n' # splits the words of -W, which bash expands: only words of this script
  mapfile -t COMPREPLY < <(compgen "$@" -- "${{COMP_WORDS[COMP_CWORD]}}")
  compopt -o filenames 2>/dev/null # quotes what needs it
}}

_virtksm_offer_guests() {{ # a name may hold all but a line end and a slash: never expanded, inserted quoted
  local name one typed=${{COMP_WORDS[COMP_CWORD]}}
  while IFS= read -r name; do
    [[ $name && $name == ${{typed#[\\"\\']}}* ]] || continue # a pattern: web\\ o is how "web one" begins
    if [[ $typed == *[\\"\\']* ]]; then # within quotes only what needs none
      [[ $name != *[!a-zA-Z0-9_.\\ -]* ]] || continue
    else
      printf -v name %q "$name"
      for one in : = @; do name=${{name//$one/\\\\$one}}; done # at these, bash would split the word
    fi
    COMPREPLY+=("$name")
  done < <({GUESTS})
}}

_virtksm() {{
  local at place=virtksm
  COMPREPLY=()
  for ((at = 1; at < COMP_CWORD; at++)); do
    case "$place ${{COMP_WORDS[at]}}" in
"""

ZSH_VALUES = {"FILE": "_files", "DIR": "_files -/", "GUEST": "__virtksm_guest_names"}
ZSH_HEAD = f"""\
#compdef virtksm
# Completion of virtksm for zsh.
__virtksm_guest_names() {{
  local -a names
  names=(${{(f)"$({GUESTS})"}})
  compadd -a names
}}
"""

FISH_VALUES = {"FILE": "-F", "DIR": "-xa '(__fish_complete_directories)'", "GUEST": f"-xa '({GUESTS})'"}


def make_bash_script(root: Command) -> str:
    """Return the script for bash: it first finds the command that is being typed, then offers what may follow."""
    lines = [f'      {_bash_text(below.words)}) place+=" ${{COMP_WORDS[at]}}" ;;' for below in _below(root)]
    lines += [f"      {place}) ((at += 1)) ;;" for place, _ in _bash_values(root)]
    lines += ["    esac", "  done", '  case "$place ${COMP_WORDS[COMP_CWORD - 1]}" in']
    lines += [f"    {place}) {offer or ':'}; return ;;" for place, offer in _bash_values(root)]
    lines += ["  esac", '  case "$place ${COMP_WORDS[COMP_CWORD]}" in']
    for command in reversed([*root.walk()]):  # the longest place first
        place = _bash_text(command.words)
        lines.append(f"    {place}' -'*) {_bash_offer_words(flag for one in command.options for flag in one.flags)} ;;")
        offers = [_bash_offer(option) for option in command.options if not option.flags]
        if command.commands:
            offers.append(_bash_offer_words(below.words[-1] for below in command.commands))
        lines.append(f"    {place}' '*) {'; '.join(filter(None, offers)) or ':'} ;;")
    return BASH_HEAD + "\n".join([*lines, "  esac", "}", "complete -F _virtksm virtksm", ""])


def _bash_values(root: Command) -> Iterator[tuple[str, str]]:
    """Yield each option that takes a value, at its place, and what offers the value."""
    for command in root.walk():
        for option in command.options:
            if option.flags and option.metavar:
                yield " | ".join(_bash_text((*command.words, flag)) for flag in option.flags), _bash_offer(option)


def _bash_offer(option: Option) -> str:
    return _bash_offer_words(option.choices) if option.choices else BASH_VALUES.get(option.metavar, "")


def _bash_offer_words(words: Iterable[str]) -> str:
    return f"_virtksm_offer -W {shlex.quote(chr(10).join(words))}"


def _bash_text(words: tuple[str, ...]) -> str:
    return shlex.quote(" ".join(words))


def make_zsh_script(root: Command) -> str:
    """Return the script for zsh: one function a command."""
    functions = [_zsh_function(command) for command in root.walk()]
    return "\n".join([ZSH_HEAD, *functions, '_virtksm "$@"', ""])


def _zsh_function(command: Command) -> str:
    name = _zsh_name(command)
    arguments = [argument for option in command.options for argument in _zsh_arguments(option)]
    lines = [f"{name}() {{", "  local curcontext=$curcontext state line"]
    if not command.commands:
        return "\n".join([*lines, _zsh_call(arguments), "}"])
    offered = " ".join(f"{one.words[-1]}\\:{shlex.quote(_zsh_text(one.summary))}" for one in command.commands)
    lines += [_zsh_call([*arguments, shlex.quote(f"1:command:(({offered}))"), "'*::argument:->below'"])]
    lines += ["  [[ $state == below ]] || return", "  case $line[1] in"]
    lines += [f"    {one.words[-1]}) {_zsh_name(one)} ;;" for one in command.commands]
    return "\n".join([*lines, "  esac", "}"])


def _zsh_call(arguments: list[str]) -> str:
    return " \\\n    ".join(["  _arguments -C", *arguments])


def _zsh_arguments(option: Option) -> Iterator[str]:
    how = f"({' '.join(option.choices)})" if option.choices else ZSH_VALUES.get(option.metavar, "")
    value = f":{option.metavar}:{how}" if option.metavar else ""
    if not option.flags:
        yield shlex.quote(f"*{value}")
    for flag in option.flags:
        yield shlex.quote(f"({' '.join(option.flags)}){flag}[{_zsh_text(option.help)}]{value}")


def _zsh_text(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def _zsh_name(command: Command) -> str:
    return "_" + "_".join(command.words)


def make_fish_script(root: Command) -> str:
    """Return the script for fish: a line an option and a command."""
    lines = ["# Completion of virtksm for fish.", "complete -c virtksm -f"]
    for command in root.walk():
        lines += [_fish_line(_fish_place(command), option) for option in command.options]
        for below in command.commands:
            summary = shlex.quote(below.summary)
            lines.append(f"complete -c virtksm {_fish_place(command)} -a {below.words[-1]} -d {summary}")
    return "\n".join([*lines, ""])


def _fish_place(command: Command) -> str:
    """Return the condition under which a command's own words are expected: it was named, and none below it."""
    named = [f"__fish_seen_subcommand_from {word}" for word in command.words[1:]]
    below = " ".join(one.words[-1] for one in command.commands)
    conditions = [*named, f"not __fish_seen_subcommand_from {below}"] if below else named
    return f"-n {shlex.quote('; and '.join(conditions))}"


def _fish_line(place: str, option: Option) -> str:
    words = ["complete", "-c", "virtksm", place]
    words += [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if option.choices:
        words.append(f"-xa {shlex.quote(' '.join(option.choices))}")
    elif option.metavar:
        words.append(FISH_VALUES.get(option.metavar, "-x" if option.flags else ""))
    if option.help and option.flags:
        words.append(f"-d {shlex.quote(option.help)}")
    return " ".join(filter(None, words))


def _below(root: Command) -> Iterator[Command]:
    return (command for command in root.walk() if command is not root)
