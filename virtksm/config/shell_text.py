"""Splits the text of a shell configuration file into its simple commands, without executing or expanding anything.

Returns commands of words, with quotes, escapes, comments and continued lines read as bash reads them, and in their
places the parts that only a shell can follow ($, backticks, pipes, redirections, brackets). Where such a part may reach
beyond its line, reading ends: the rest may be inside of it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<blank>    (?: [ \t] | \\\n )+ | \#[^\n]* )
  | (?P<end>      [\n;] )
  | (?P<word>     (?: [^ \t\n;&|<>()$`"'\\] | \\[\s\S] | '[^']*' | "(?:[^"\\$`]|\\[\s\S])*" )+ )
    """,
    re.VERBOSE,
)
_PIECE = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\[\s\S])*)"|\\(?P<escaped>[\s\S])|(?P<plain>[^"'\\]+)"""
)
_INERT = re.compile(r"""'[^']*'|"((?:[^"\\]|\\.)*)"|\\.|(?<=[ \t])\#.*""")
_GOES_ON = re.compile(r"(?:&&|\|[|&]?|\\)[ \t]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word without its quotes, and the part before the first quote (only there can a name be assigned)."""

    text: str
    bare: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The words of one simple command, and the line that it begins on."""

    line: int
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A part that only a shell can follow; `is_last` if nothing after it was read."""

    line: int
    text: str
    is_last: bool


def parse_commands(text: str) -> Iterator[Command | Unread]:
    """Yield the commands of `text`, in order; of a line with an unreadable part, those that end before that part."""
    position, line, counted = 0, 1, 0
    began = 0
    words: list[Word] = []
    while position < len(text):
        token = _TOKEN.match(text, position)
        kind = "" if token is None else token.lastgroup
        if kind == "word" and token is not None:
            began = began if words else position
            words.append(parse_word(token[0]))
        elif kind == "end" and words:
            line, counted = line + text.count("\n", counted, began), began
            yield Command(line=line, text=text[began:position], words=tuple(words))
            words = []
        elif token is None or token[0] == ";":  # a ; that ends nothing is an error, on which a shell stops reading
            began = began if words else position
            line, counted = line + text.count("\n", counted, began), began
            end = _end_of_line(text, position)
            is_last = token is not None or not _ends_here(text[position:end])
            yield Unread(line=line, text=text[began:end], is_last=is_last)
            if is_last:
                return
            words, position = [], end
        if token is not None:
            position = token.end()
    if words:
        yield Command(line=line + text.count("\n", counted, began), text=text[began:], words=tuple(words))


def parse_word(raw: str) -> Word:
    """Return a word as a shell has it after removing quotes and escapes."""
    pieces: list[str] = []
    for piece in _PIECE.finditer(raw):
        match piece.lastgroup:
            case "double":
                pieces.append(re.sub(r'\\(?:(\n)|([$`"\\]))', r"\2", piece["double"]))
            case "escaped":
                pieces.append(piece["escaped"].replace("\n", ""))
            case _:
                pieces.append(piece["single"] or piece["plain"] or "")
    return Word(text="".join(pieces), bare=re.split(r"[\"'\\]", raw, maxsplit=1)[0])


def _end_of_line(text: str, position: int) -> int:
    found = text.find("\n", position)
    return len(text) if found < 0 else found


def _ends_here(part: str) -> bool:
    """Return whether an unreadable part, up to its line's end, surely ends there; doubt counts as no."""
    # What is in double quotes is kept, since a bracket may open there.
    bare = _INERT.sub(lambda inert: re.sub(r"['\\]", "", inert[1] or ""), part)
    paired = all(bare.count(opening) == bare.count(closing) for opening, closing in ("()", "{}"))
    quoted = "'" in bare or '"' in bare or bare.count("`") % 2 == 1
    return paired and not quoted and "<<" not in bare and not _GOES_ON.search(bare)
