"""Text from outside (a guest's name, libvirt's messages) as one line that harms no terminal and no log, and its width.

Imports nothing for text in ASCII.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with what is not printable as backslash escapes: controls, line ends, bidirectional overrides."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def width(text: str) -> int:
    """Return how many columns printable text takes in a terminal; some characters take two of them, some none."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.category(one) in ("Mn", "Me") for one in text)
