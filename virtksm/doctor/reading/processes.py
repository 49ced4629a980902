"""Reads /proc: the names of root's processes, and libvirt's daemon behind a connection.

A process is found by its name (comm), which every user may read and choose; only those of root count, since no other
user could set KSM, and of vdsm, whose MOM has root's supervdsmd set it. A program with the setuid bit is its caller's.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.files import Root
from virtksm.host.proc_files import NUMBER, parse_stat

DAEMONS = ("virtqemud", "libvirtd")
KSM_FOLDER = "/sys/kernel/mm/ksm"
MAY_WRITE = ("root", "vdsm")


class ProcessSeen(NamedTuple):
    """A process of root's or vdsm's; `user_id` is its real and effective user, `parent` its parent's pid."""

    pid: int
    name: str
    user_id: int
    parent: int


class Daemon(NamedTuple):
    """libvirt's daemon behind the connection."""

    pid: int
    name: str


def read_processes(root: Root) -> list[ProcessSeen]:
    """Read the processes of root and of vdsm, by pid."""
    names = root.names("proc")
    if "1" not in names:
        raise CannotTell("/proc hides other users' processes, or is not mounted", "run as root on that host")
    users = {0} | {number for name, number in read_users(root).items() if name in MAY_WRITE}
    pids = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    found = (parse_process(pid, root.text_if_readable(f"proc/{pid}/status")) for pid in pids)
    return [one for one in found if one is not None and one.user_id in users]


def read_users(root: Root, file: str = "etc/passwd") -> dict[str, int]:
    """Read the accounts' numbers in /etc/passwd, by name; with etc/group those of groups."""
    text = root.text_if_readable(file)
    found = re.findall(rf"^([\w.-]{{1,64}}):[^:\n]*:({NUMBER}):", text, re.MULTILINE)
    return {name: int(number) for name, number in found}


def parse_process(pid: int, status: str) -> ProcessSeen | None:
    """Parse a /proc/PID/status; None for a zombie, and for a program that runs as another than its caller (setuid)."""
    name = re.match(r"Name:\t(.{1,64})\n", status)
    user = re.search(rf"^Uid:\t({NUMBER})\t\1\t", status, re.MULTILINE)
    parent = re.search(rf"^PPid:\t({NUMBER})$", status, re.MULTILINE)
    if not name or not user or re.search(r"^State:\t[ZX]", status, re.MULTILINE):
        return None
    return ProcessSeen(pid, name[1], int(user[1]), int(parent[1]) if parent else 0)


def has_daemon(uri: str) -> bool:
    """Return whether a daemon serves a connection, by whatever transport, and no driver within the client."""
    return urlsplit(uri).path in ("/system", "/session")


def find_daemon(processes: list[ProcessSeen]) -> int:
    """Return the pid of libvirt's daemon: root's, a child of init if there is such a one, modular before monolithic."""
    ours = [one for one in processes if one.name in DAEMONS and one.user_id == 0]
    if not ours:
        raise CannotTell(
            "no process of libvirt's daemon is found", "systemctl status libvirtd.service (or virtqemud.service)"
        )
    return min(ours, key=lambda one: (DAEMONS.index(one.name), one.parent != 1, one.pid)).pid


def find_peer(uri: str) -> int | None:
    """Return the process at the other end of this process's connection to libvirt's daemon; None where there is none.

    libvirt's own connection is searched among the open files: another one, closed without a word, would have the daemon
    log an error.
    """
    named = parse_qs(urlsplit(uri).query).get("socket", [""])[0]
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # names are all that is needed
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as client:
                peer = client.getpeername()
                if client.family != socket.AF_UNIX or not isinstance(peer, str):
                    continue
                if peer == named or re.search(r"/libvirt/[\w-]+-sock(-ro)?$", peer):  # as the daemon calls it
                    pid: int = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                    return pid
        except OSError:  # not connected, or closed meanwhile
            continue
    return None


def read_age_s(root: Root, pid: int) -> float:
    """Read how long ago a process began."""
    up = re.match(r"[0-9]{1,12}(\.[0-9]{1,6})?", root.text_if_readable("proc/uptime"))
    if up is None:
        raise CannotTell("/proc/uptime holds no time")
    found = parse_stat(_text_of(root, pid, "stat").encode())
    if found is None:
        raise CannotTell(f"/proc/{pid}/stat has no start time")
    return float(up[0]) - found.started / os.sysconf("SC_CLK_TCK")


def sees_sys_read_only(root: Root, pid: int) -> bool:
    """Read whether KSM's folder is on a read-only mount for a process."""
    seen = is_read_only(_text_of(root, pid, "mountinfo"), KSM_FOLDER)
    if seen is None:
        raise CannotTell(f"/proc/{pid}/mountinfo names no mount over {KSM_FOLDER}")
    return seen


def read_confinement(root: Root, pid: int) -> str:
    """Read a process's AppArmor profile or SELinux context; nothing for none."""
    return (root.text(f"proc/{pid}/attr/current") or "").strip("\0\n ")


def is_read_only(mountinfo: str, path: str) -> bool | None:
    """Return by a /proc/PID/mountinfo whether the mount of `path` is read-only; None where it names none.

    Source: proc_pid_mountinfo(5).
    """
    longest, found = -1, None
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) < 10 or "-" not in fields:
            continue
        point, options, super_options = fields[4], fields[5], fields[-1]
        is_above = point in ("/", path) or path.startswith(f"{point}/")
        if is_above and len(point) >= longest:  # of equal ones the last lies on top
            longest = len(point)
            found = "ro" in options.split(",") or "ro" in super_options.split(",")
    return found


def _text_of(root: Root, pid: int, name: str) -> str:
    text = root.text(f"proc/{pid}/{name}")
    if text is None:
        raise CannotTell(f"process {pid} has ended", "run this command again")
    return text
