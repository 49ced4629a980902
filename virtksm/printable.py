"""Text from outside (a guest's name, libvirt's messages) as one line that harms no terminal and no log.

Imports nothing.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with what is not printable as backslash escapes: controls, line ends, bidirectional overrides."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
