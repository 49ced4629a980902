"""Where the files of Debian's package ksmtuned are: where script/setup unpacks them to, or where apt installs them.

Unpacked ones come first: they are as Debian made them, whatever an administrator has done to the installed ones.
"""

from pathlib import Path

ROOTS = (Path(__file__).resolve().parents[2] / "build" / "ksmtuned", Path("/"))


def find_ksmtuned_file(name: str) -> Path:
    """Return where a file of the package is, by its path without the leading /; raises FileNotFoundError."""
    for root in ROOTS:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{name} of ksmtuned's package is not there: run script/setup")


def read_ksmtuned_file(name: str) -> str:
    """Return its text."""
    return find_ksmtuned_file(name).read_text()
