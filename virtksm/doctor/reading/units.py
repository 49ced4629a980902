"""Reads what systemd and tuned are set to do, from their files: no bus, no program, also where neither runs.

A unit is enabled if a unit folder's `*.wants` or `*.requires` holds its name (systemctl(1), enable), and not if it is
masked. Whether it runs now is told by its processes.
"""

from __future__ import annotations

import os
import re

from virtksm.adapters.systemd import UNIT_DIRS
from virtksm.doctor.facts import Tuned, Unit, Unknown
from virtksm.doctor.reading.files import Root

TUNED_DIRS = ("etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned")
MOST_PROFILES = 20
MOST_FILES = 20


def read_units(root: Root, names: tuple[str, ...]) -> dict[str, Unit]:
    """Read the state of these units."""
    folders = [folder.lstrip("/") for folder in UNIT_DIRS]
    wanted = {name for folder in folders for name in _read_wanted(root, folder)}
    units = {}
    for name in names:
        places = [place for folder in folders if os.path.lexists(place := root.path(f"{folder}/{name}"))]
        is_masked = bool(places) and os.path.realpath(places[0]) == "/dev/null"
        units[name] = Unit(is_installed=bool(places), is_enabled=name in wanted and bool(places) and not is_masked)
    return units


def read_tuned(root: Root) -> Tuned | Unknown:
    """Read tuned's active profiles, and where they or what they include mention KSM."""
    text = root.text("etc/tuned/active_profile")
    if isinstance(text, Unknown):
        return text
    profiles = tuple((text or "").split()[:MOST_PROFILES])
    due, seen = list(profiles), set[str]()
    while due and len(seen) < MOST_PROFILES:
        name = due.pop(0)
        if name in seen or "/" in name or name.startswith("."):
            continue
        seen.add(name)
        folder = next((one for one in TUNED_DIRS if root.text(f"{one}/{name}/tuned.conf") is not None), None)
        if folder is None:
            continue
        conf = root.text(f"{folder}/{name}/tuned.conf")
        due += parse_includes(conf) if isinstance(conf, str) else []
        if (found := _find_ksm(root, f"{folder}/{name}")) is not None:
            return found if isinstance(found, Unknown) else Tuned(profiles=profiles, ksm_in=found)
    return Tuned(profiles=profiles, ksm_in=None)


def mentions_ksm(text: str) -> bool:
    """Tell whether a line that is no comment mentions KSM."""
    return any("ksm" in line.lower() for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))


def parse_includes(conf: str) -> list[str]:
    """Return the profiles that a tuned.conf includes."""
    lines = re.findall(r"^include[ \t]*=(.*)$", conf, re.MULTILINE)
    return [name for line in lines for name in re.split(r"[\s,]+", line) if name]


def _find_ksm(root: Root, folder: str) -> str | Unknown | None:
    names = root.names(folder)
    if isinstance(names, Unknown):
        return names
    for name in [one for one in names if one.endswith((".conf", ".sh"))][:MOST_FILES]:
        text = root.text(f"{folder}/{name}")
        if isinstance(text, Unknown):
            return text
        if text is not None and mentions_ksm(text):
            return f"/{folder}/{name}"
    return None


def _read_wanted(root: Root, folder: str) -> set[str]:
    names = root.names(folder)
    if isinstance(names, Unknown):
        return set()
    found = set[str]()
    for name in names:
        if name.endswith((".wants", ".requires")):
            wanted = root.names(f"{folder}/{name}")
            found.update(() if isinstance(wanted, Unknown) else wanted)
    return found
