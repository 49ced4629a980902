"""Reads libvirt's folder of hooks."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.files import Root

FOLDER = "etc/libvirt/hooks"


class HookFile(NamedTuple):
    """A file where libvirt looks for QEMU's hooks; `changed_at_s` is Unix time (ctime)."""

    path: str
    is_executable: bool
    is_roots: bool
    changed_at_s: float
    selinux_label: str = ""


def read_hooks(root: Root) -> list[HookFile]:
    """Read QEMU's hooks."""
    found = []
    for path in (f"{FOLDER}/qemu", *(f"{FOLDER}/qemu.d/{name}" for name in root.names(f"{FOLDER}/qemu.d"))):
        real = root.path(path)
        try:
            status = os.stat(real)  # noqa: PTH116  # its errors are told apart
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CannotTell(f"/{path}: {error.strerror}") from error
        is_executable = stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)
        is_roots = status.st_uid == 0 and not status.st_mode & 0o022
        found.append(HookFile(f"/{path}", is_executable, is_roots, status.st_ctime, _read_label(real)))
    return found


def _read_label(path: str) -> str:
    try:
        return os.getxattr(path, "security.selinux").decode("ascii", "replace").strip("\0")
    except OSError:  # not labelled, or no SELinux
        return ""
