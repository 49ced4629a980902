"""Reads what else on this host sets KSM at boot: the files that systemd, sysfsutils, udev, cron and rc.local read.

Of a script or a unit's command those lines count that write below /sys/kernel/mm/ksm, even if their value is unknown; a
script that a unit or root's crontab starts is read, too, if it is root's. Bounded: longer files are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.files import NoRegularFile, Root
from virtksm.doctor.reading.units import FOLDERS

TMPFILES_DIRS = ("etc/tmpfiles.d", "run/tmpfiles.d", "usr/local/lib/tmpfiles.d", "usr/lib/tmpfiles.d")
"""The first hides what has the same name in the others (tmpfiles.d(5))."""
UDEV_DIRS = ("etc/udev/rules.d", "run/udev/rules.d", "usr/local/lib/udev/rules.d", "usr/lib/udev/rules.d")
SCRIPTS = ("etc/rc.local", "etc/rc.d/rc.local", "etc/init.d/boot.local", "etc/init.d/after.local")
CRONTABS = ("etc/crontab", "var/spool/cron/crontabs/root", "var/spool/cron/root", "var/spool/cron/tabs/root")
"""Root's own is at Debian's, Fedora's or SUSE's place."""
QEMU_KVM_FILE = "/etc/default/qemu-kvm"
"""Read by Ubuntu's qemu-kvm.service."""
PROGRAM_FOLDERS = ("/usr/", "/opt/", "/etc/", "/bin/", "/sbin/", "/lib/")
"""Where scripts are read: in no home folder and no user's mount."""
MAX_FILES = 500
MAX_LETTERS = 1000
"""Of a line."""

_NAME = "(run|pages_to_scan|sleep_millisecs|merge_across_nodes|advisor_mode)"
_PLACE = rf"[\"']?(?:/sys/kernel/mm/ksm|\$\{{?\w{{1,40}}\}}?)[\"']?/{_NAME}\b"
_ECHO = re.compile(rf"\b(?:echo|printf)(?: +-n)? +[\"']?([\w-]{{1,40}})(?:\\n)?[\"']? *>{{1,2}} *{_PLACE}")
_WRITE = re.compile(rf"(?:>|\btee\b(?: +-\w+)*) *{_PLACE}")
_TMPFILE = re.compile(
    rf"^\s*[wfF]\S{{0,4}}\s+[\"']?/sys/kernel/mm/ksm/{_NAME}[\"']?\s+\S+\s+\S+\s+\S+\s+\S+\s+[\"']?([\w-]+)"
)
_SYSFS = re.compile(rf"^\s*(?:/sys/)?kernel/mm/ksm/{_NAME}\s*=\s*[\"']?([\w-]+)")
_SWITCH = re.compile(r"(?:^|[\s;&])KSM_ENABLED=[\"']?(\w*)[\"']?(?=[\s;&|]|$)")
_EXEC = re.compile(r"^[ \t]*Exec\w+\s*=\s*(.+)$", re.MULTILINE)


class BootSetting(NamedTuple):
    """A file that sets one of KSM's own values at boot, to `value`, None where that is unknown.

    `is_declared`: in a file whose every line is a setting (tmpfiles.d, sysfs.conf), not by a program.
    """

    file: str
    name: str
    value: str | None
    is_declared: bool

    def __str__(self) -> str:
        return f"{self.file} sets {self.name}{'' if self.value is None else f' to {self.value}'} at boot"


class Boot(NamedTuple):
    """What sets KSM at boot besides virtksm; `unread` says why of files that could not be read."""

    settings: list[BootSetting]
    unread: list[str]


def read_boot(root: Root, units: Iterable[str]) -> Boot:
    """Read what sets KSM at boot; `units` are those that are enabled, but for such as have a check of their own."""
    reader = _Reader(root)
    for path in reader.first_of_each(TMPFILES_DIRS, ".conf"):
        reader.declared(path, _TMPFILE)
    for path in ("etc/sysfs.conf", *reader.files("etc/sysfs.d", ".conf")):
        reader.declared(path, _SYSFS)
    for path in reader.first_of_each(UDEV_DIRS, ".rules"):
        reader.commands(path, reader.text(path))
    for path in (*SCRIPTS, *reader.files("etc/init.d")):
        reader.commands(path, reader.text(path))
    for path in (*CRONTABS, *reader.files("etc/cron.d")):
        text = reader.text(path)
        reader.commands(path, text)
        reader.programs(_uncommented(text))
    for path in reader.unit_files(units):
        lines = _EXEC.findall(reader.text(path).replace("\\\n", " "))
        reader.commands(path, "\n".join(lines))
        reader.programs(lines)
    if parse_switch(reader.text(QEMU_KVM_FILE[1:])) == "0":
        reader.add(QEMU_KVM_FILE[1:], "run", "0", is_declared=True)
    return Boot(settings=list(dict.fromkeys(reader.found)), unread=reader.unread)


def parse_commands(text: str) -> list[tuple[str, str | None]]:
    """Return what a script sets of KSM's, in its order, and to what, None where that is unknown."""
    if "/sys/kernel/mm/ksm" not in text:
        return []
    found: dict[str, str | None] = {}
    for line in _uncommented(text):
        found.update(dict.fromkeys(_WRITE.findall(line)))
        found.update({name: value for value, name in _ECHO.findall(line)})
    return list(found.items())


def parse_switch(text: str) -> str | None:
    """Return what Ubuntu's /etc/default/qemu-kvm, which a shell reads, sets KSM_ENABLED to; the last counts."""
    values = [value for line in _uncommented(text) for value in _SWITCH.findall(re.sub(r"\s#.*", "", line))]
    return values[-1] if values else None


def _uncommented(text: str) -> Iterator[str]:
    return (line[:MAX_LETTERS] for line in text.splitlines() if not line.lstrip().startswith("#"))


class _Reader:
    def __init__(self, root: Root) -> None:
        self._root = root
        self.found: list[BootSetting] = []
        self.unread: list[str] = []

    def text(self, path: str, *, only_scripts: bool = False) -> str:
        try:
            return self._root.text(path, only_scripts=only_scripts) or ""
        except NoRegularFile:  # a link to /dev/null is how files of that name are shut off
            return ""
        except CannotTell as doubt:
            self.unread.append(str(doubt))
            return ""

    def files(self, folder: str, ending: str = "") -> list[str]:
        try:
            names = self._root.names(folder)
        except CannotTell as doubt:
            self.unread.append(str(doubt))
            return []
        return [f"{folder}/{name}" for name in names if name.endswith(ending)][:MAX_FILES]

    def first_of_each(self, folders: Iterable[str], ending: str) -> list[str]:
        paths: dict[str, str] = {}
        for path in (one for folder in folders for one in self.files(folder, ending)):
            paths.setdefault(path.rpartition("/")[2], path)
        return list(paths.values())

    def unit_files(self, units: Iterable[str]) -> Iterator[str]:
        for unit in sorted(re.sub(r"\.timer$", ".service", one) for one in units)[:MAX_FILES]:
            if unit.endswith(".service"):
                stem, at, _ = unit.partition("@")
                file = f"{stem}@.service" if at else unit
                yield from (f"{folder}/{file}" for folder in FOLDERS)
                yield from (path for folder in FOLDERS for path in self.files(f"{folder}/{file}.d", ".conf"))

    def declared(self, path: str, form: re.Pattern[str]) -> None:
        for line in _uncommented(self.text(path)):
            if match := form.match(line):
                self.add(path, match[1], match[2], is_declared=True)

    def commands(self, path: str, text: str) -> None:
        for name, value in parse_commands(text):
            self.add(path, name, value, is_declared=False)

    def programs(self, lines: Iterable[str]) -> None:
        """Read the scripts that these lines start."""
        for line in lines:
            for word in re.findall(r"(?<![\w./])/[\w./+-]{1,200}", line)[:4]:
                if word.startswith(PROGRAM_FOLDERS):
                    self.commands(word.lstrip("/"), self.text(word.lstrip("/"), only_scripts=True))

    def add(self, path: str, name: str, value: str | None, *, is_declared: bool) -> None:
        self.found.append(BootSetting(f"/{path}", name, value, is_declared))
