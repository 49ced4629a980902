"""Where the files of Debian's package ksmtuned are: where script/setup unpacks them to, or where apt installs them.

Unpacked ones come first: they are as Debian made them, whatever an administrator has done to the installed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

ROOTS = (Path(__file__).resolve().parents[2] / "build" / "ksmtuned", Path("/"))


def read_ksmtuned_file(name: str, roots: Iterable[Path] = ROOTS) -> str:
    """Return the text of a file of the package, by its path without the leading /; without it the test fails."""
    path = find_ksmtuned_file(name, roots)
    if path is None:
        pytest.fail(f"{name} of ksmtuned's package is in none of {', '.join(map(str, roots))}: run script/setup")
    return path.read_text()


def find_ksmtuned_file(name: str, roots: Iterable[Path] = ROOTS) -> Path | None:
    """Return where a file of the package is, by its path without the leading /."""
    return next((root / name for root in roots if (root / name).is_file()), None)
