"""Reads the setup of systemd and tuned from their files: no bus, no program, also where neither runs.

A unit is enabled if a unit folder's `*.wants` or `*.requires` holds its name (systemctl(1), enable), or if an enabled
one names it in its own file (Wants=, Requires=), and not if it is masked. It runs if its control group has processes.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.files import Root
from virtksm.host.systemd import UNIT_DIRS, is_mask

TUNED_DIRS = ("etc/tuned/profiles", "etc/tuned", "usr/lib/tuned/profiles", "usr/lib/tuned")
MAX_PROFILES = 20
MAX_FILES = 20
MAX_UNITS = 1000
FOLDERS = tuple(folder.lstrip("/") for folder in UNIT_DIRS)
CGROUPS = ("sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice")
"""Of cgroup v2, and of v1."""

_WANTS = re.compile(r"^[ \t]*(?:Wants|Requires|BindsTo)\s*=(.*)$", re.MULTILINE)
_VIRT_CHECK = re.compile(r"\$\{f:virt_check:([\w.-]+):([\w.-]+)\}")
"""tuned's function that chooses the first profile in a virtual machine, and the second elsewhere."""
_KEEPS_OFF = re.compile(
    r"\bdisable_ksm\b(?!\s*\()|/mm/ksm/run\s*=\s*[02]\b"
    r"|\b(?:echo|printf)(?: +-n)? +[\"']?[02](?:\\n)?[\"']? *(?:>+|\|(?: *sudo)? *tee(?: +-\w+)*) *\S{0,40}ksm/run\b"
)
_STOP = re.compile(r"[ \t]*(?:function[ \t]+)?stop\b[ \t]*(?:\([ \t]*\))?[ \t]*(?:\{|$)")
"""The function that tuned calls when it leaves the profile."""


class Unit(NamedTuple):
    """What the files of systemd's unit folders say: enabled is wanted or required by another unit that is.

    `is_running`: there are processes in its control group.
    """

    is_installed: bool
    is_enabled: bool
    is_running: bool
    is_masked: bool

    @property
    def is_at_work(self) -> bool:
        """Whether it runs, or will after the next boot."""
        return self.is_running or self.is_enabled


class Tuned(NamedTuple):
    """tuned's active profiles, and the first of their files that mentions KSM; `keeps_off`: it switches KSM off.

    `unknown_includes`: what they include by a variable or function of tuned's that is not understood.
    """

    profiles: list[str]
    ksm_in: str | None = None
    keeps_off: bool = False
    unknown_includes: tuple[str, ...] = ()


def read_unit(root: Root, name: str, enabled: set[str]) -> Unit:
    """Read the state of a unit; `enabled` is what `read_enabled` returns."""
    places = [place for folder in FOLDERS if os.path.lexists(place := root.path(f"{folder}/{name}"))]
    is_masked = bool(places) and is_mask(places[0])
    return Unit(
        is_installed=bool(places),
        is_enabled=name in enabled and bool(places) and not is_masked,
        is_running=any(_has_processes(root, f"{folder}/{name}") for folder in CGROUPS),
        is_masked=is_masked,
    )


def _has_processes(root: Root, group: str) -> bool:
    try:
        return bool(root.text(f"{group}/cgroup.procs"))
    except CannotTell:  # it is there
        return True


def read_enabled(root: Root) -> set[str]:
    """Read the names of the units that some target wants, and of those that these want."""
    wanted = {
        unit
        for folder in FOLDERS
        for name in root.names_if_readable(folder)
        if name.endswith((".wants", ".requires"))
        for unit in root.names_if_readable(f"{folder}/{name}")
    }
    of_these = set[str]()
    for path in (f"{folder}/{name}" for name in sorted(wanted)[:MAX_UNITS] for folder in FOLDERS):
        drop_ins = [f"{path}.d/{one}" for one in root.names_if_readable(f"{path}.d")[:MAX_FILES]]
        for file in (path, *drop_ins):
            of_these.update(word for line in _WANTS.findall(root.text_if_readable(file)) for word in line.split())
    return wanted | of_these


def read_tuned(root: Root) -> Tuned:
    """Read tuned's active profiles, and where they or what they include mention KSM."""
    profiles = (root.text("etc/tuned/active_profile") or "").split()[:MAX_PROFILES]
    due, seen, unknown_includes = list(profiles), set[str](), list[str]()
    while due and len(seen) < MAX_PROFILES:
        name = due.pop(0)
        if name in seen or "/" in name or name.startswith("."):
            continue
        seen.add(name)
        for folder in (f"{one}/{name}" for one in TUNED_DIRS):
            conf = root.text(f"{folder}/tuned.conf")
            if conf is None:
                continue
            for include in parse_includes(conf):
                (unknown_includes if "$" in include else due).append(include)
            files = [f"{folder}/{one}" for one in root.names(folder) if one.endswith((".conf", ".sh"))][:MAX_FILES]
            found = {f"/{file}": text for file in files if mentions_ksm(text := root.text(file) or "")}
            if found:
                keeps_off = [file for file, text in found.items() if keeps_ksm_off(text)]
                return Tuned(profiles, ksm_in=(keeps_off or [*found])[0], keeps_off=bool(keeps_off))
            break
    return Tuned(profiles, unknown_includes=tuple(unknown_includes))


def mentions_ksm(text: str) -> bool:
    """Return whether a line that is no comment mentions KSM."""
    return any("ksm" in line.lower() for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))


def parse_includes(conf: str) -> list[str]:
    """Return the profiles that a tuned.conf includes; of virt_check, both that it chooses from."""
    lines = [_VIRT_CHECK.sub(r"\1,\2", line) for line in re.findall(r"^include[ \t]*=(.*)$", conf, re.MULTILINE)]
    return [name for line in lines for name in re.split(r"[\s,]+", line) if name]


def keeps_ksm_off(text: str) -> bool:
    """Return whether a profile's file switches KSM off, except at its stop: by tuned's function, or by the switch."""
    is_stop = False
    for line in text.splitlines():
        if is_stop:
            is_stop = not line.lstrip().startswith("}")
        elif _STOP.match(line):
            is_stop = "}" not in line
        elif not line.lstrip().startswith(("#", ";")) and _KEEPS_OFF.search(re.sub(r"\s#.*", "", line)):
            return True
    return False
