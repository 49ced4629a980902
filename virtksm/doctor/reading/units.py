"""Reads the setup of systemd and tuned from their files: no bus, no program, also where neither runs.

A unit is enabled if a unit folder's `*.wants` or `*.requires` holds its name (systemctl(1), enable), or if an enabled
one names it in its own file (Wants=, Requires=), and not if it is masked. It runs if its control group has processes.
"""

from __future__ import annotations

import os
import re

from virtksm.doctor.facts import Tuned, Unit, Unknown
from virtksm.doctor.reading.files import Root
from virtksm.host.systemd import UNIT_DIRS

TUNED_DIRS = ("etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned")
MAX_PROFILES = 20
MAX_FILES = 20
MAX_UNITS = 1000
FOLDERS = tuple(folder.lstrip("/") for folder in UNIT_DIRS)
CGROUPS = ("sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice")
"""Of cgroup v2, and of v1."""

_WANTS = re.compile(r"^(?:Wants|Requires|BindsTo)\s*=(.*)$", re.MULTILINE)
_VIRT_CHECK = re.compile(r"\$\{f:virt_check:([\w.-]+):([\w.-]+)\}")
"""tuned's function that chooses the first profile in a virtual machine, and the second elsewhere."""
_KEEPS_OFF = re.compile(
    r"^[^#;\n]*(?:\bdisable_ksm\b(?!\s*\()|/mm/ksm/run\s*=\s*[02]\b|\becho +[02] *>+ *\S{0,40}ksm/run\b)", re.MULTILINE
)


def read_units(root: Root, names: tuple[str, ...]) -> dict[str, Unit]:
    """Read the state of these units."""
    wanted = read_enabled(root)
    units = {}
    for name in names:
        places = [place for folder in FOLDERS if os.path.lexists(place := root.path(f"{folder}/{name}"))]
        is_masked = bool(places) and os.path.realpath(places[0]) == "/dev/null"
        units[name] = Unit(
            is_installed=bool(places),
            is_enabled=name in wanted and bool(places) and not is_masked,
            is_running=any(root.text(f"{folder}/{name}/cgroup.procs") not in ("", None) for folder in CGROUPS),
            is_masked=is_masked,
        )
    return units


def read_enabled(root: Root) -> set[str]:
    """Read the names of the units that some target wants, and of those that these want."""
    wanted = {name for folder in FOLDERS for name in _read_wanted(root, folder)}
    of_these = set[str]()
    for name in sorted(wanted)[:MAX_UNITS]:
        for folder in FOLDERS:
            drop_ins = root.names(f"{folder}/{name}.d")
            more = () if isinstance(drop_ins, Unknown) else drop_ins[:MAX_FILES]
            for path in (f"{folder}/{name}", *(f"{folder}/{name}.d/{one}" for one in more)):
                text = root.text(path)
                if isinstance(text, str):
                    of_these.update(word for line in _WANTS.findall(text) for word in line.split())
    return wanted | of_these


def read_tuned(root: Root) -> Tuned | Unknown:
    """Read tuned's active profiles, and where they or what they include mention KSM."""
    text = root.text("etc/tuned/active_profile")
    if isinstance(text, Unknown):
        return text
    profiles = tuple((text or "").split()[:MAX_PROFILES])
    due, seen, unknown_includes = list(profiles), set[str](), list[str]()
    while due and len(seen) < MAX_PROFILES:
        name = due.pop(0)
        if name in seen or "/" in name or name.startswith("."):
            continue
        seen.add(name)
        folder = next((one for one in TUNED_DIRS if root.text(f"{one}/{name}/tuned.conf") is not None), None)
        if folder is None:
            continue
        conf = root.text(f"{folder}/{name}/tuned.conf")
        for include in parse_includes(conf) if isinstance(conf, str) else []:
            (unknown_includes if "$" in include else due).append(include)
        found = _find_ksm(root, f"{folder}/{name}")
        if isinstance(found, Unknown):
            return found
        if found is not None:
            path, keeps_off = found
            return Tuned(profiles=profiles, ksm_in=path, keeps_off=keeps_off)
    return Tuned(profiles=profiles, ksm_in=None, unknown_includes=tuple(unknown_includes))


def mentions_ksm(text: str) -> bool:
    """Return whether a line that is no comment mentions KSM."""
    return any("ksm" in line.lower() for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))


def parse_includes(conf: str) -> list[str]:
    """Return the profiles that a tuned.conf includes; of virt_check, both that it chooses from."""
    lines = [_VIRT_CHECK.sub(r"\1,\2", line) for line in re.findall(r"^include[ \t]*=(.*)$", conf, re.MULTILINE)]
    return [name for line in lines for name in re.split(r"[\s,]+", line) if name]


def keeps_ksm_off(text: str) -> bool:
    """Return whether a profile's file switches KSM off: by tuned's own function, or by KSM's switch."""
    return _KEEPS_OFF.search(text) is not None


def _find_ksm(root: Root, folder: str) -> tuple[str, bool] | Unknown | None:
    names = root.names(folder)
    if isinstance(names, Unknown):
        return names
    for name in [one for one in names if one.endswith((".conf", ".sh"))][:MAX_FILES]:
        text = root.text(f"{folder}/{name}")
        if isinstance(text, Unknown):
            return text
        if text is not None and mentions_ksm(text):
            return f"/{folder}/{name}", keeps_ksm_off(text)
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
