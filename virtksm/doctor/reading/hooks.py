"""Reads libvirt's folder of hooks as its daemon sees it, and what AppArmor and SELinux are set to."""

from __future__ import annotations

import os
import stat

from virtksm.doctor.facts import Daemon, HookFile, Hooks, Unknown
from virtksm.doctor.reading.files import Root

FOLDER = "etc/libvirt/hooks"
PROGRAM = "usr/bin/virtksm"


def read_hooks(root: Root, daemon: Daemon | Unknown | None, *, now_s: float) -> Hooks:
    """Read QEMU's hooks; `now_s` is Unix time."""
    return Hooks(
        files=_read_files(_seen_by(root, daemon), now_s),
        program=_find_program(root.path(PROGRAM)),
        apparmor_is_on=root.text("sys/module/apparmor/parameters/enabled") == "Y\n",
        selinux_enforces=root.text("sys/fs/selinux/enforce") in ("1", "1\n"),
    )


def _seen_by(root: Root, daemon: Daemon | Unknown | None) -> Root:
    """Return the daemon's own file tree, which may be a container's; this process's where only root may look."""
    if isinstance(daemon, Daemon):
        its = Root(root.path(f"proc/{daemon.pid}/root"))
        if its.is_folder("etc") is True:
            return its
    return root


def _read_files(root: Root, now_s: float) -> tuple[HookFile, ...] | Unknown:
    names = root.names(f"{FOLDER}/qemu.d")
    if isinstance(names, Unknown):
        return names
    found = []
    for path in (f"{FOLDER}/qemu", *(f"{FOLDER}/qemu.d/{name}" for name in names)):
        try:
            status = os.stat(root.path(path))  # noqa: PTH116  # its errors are told apart
        except FileNotFoundError:
            continue
        except OSError as error:
            return Unknown(why=f"/{path}: {error.strerror}")
        found.append(
            HookFile(
                path=f"/{path}",
                is_executable=stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111),
                is_roots=status.st_uid == 0 and not status.st_mode & 0o022,
                changed_s=now_s - status.st_ctime,
                selinux_label=_read_label(root.path(path)),
            )
        )
    return tuple(found)


def _read_label(path: str) -> str | None:
    try:
        return os.getxattr(path, "security.selinux").decode("ascii", "replace").strip("\0")
    except OSError:  # not labelled, or no SELinux
        return None


def _find_program(path: str) -> str | None:
    real = os.path.realpath(path)
    return real if os.path.isfile(real) and os.access(real, os.X_OK) else None  # noqa: PTH113  # beside realpath
