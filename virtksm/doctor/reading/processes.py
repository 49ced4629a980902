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
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from virtksm.doctor.facts import Daemon, Unknown
from virtksm.doctor.reading.files import Root
from virtksm.host.proc_files import NUMBER

DAEMONS = ("virtqemud", "libvirtd")
KSM_FOLDER = "/sys/kernel/mm/ksm"
MAY_WRITE = ("root", "vdsm")
NO_DAEMON = Unknown(
    why="no process of libvirt's daemon is found", remedy="systemctl status libvirtd.service (or virtqemud.service)"
)
HIDDEN = Unknown(why="/proc hides other users' processes, or is not mounted", remedy="run as root on that host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of root's or vdsm's; `user_id` is its real and effective user, `parent` its parent's pid."""

    pid: int
    name: str
    user_id: int
    parent: int


def read_processes(root: Root) -> tuple[Process, ...] | Unknown:
    """Read the processes of root and of vdsm, by pid."""
    names = root.names("proc")
    if isinstance(names, Unknown):
        return names
    if "1" not in names:
        return HIDDEN
    users = {0} | {number for name, number in read_users(root).items() if name in MAY_WRITE}
    found = []
    for pid in sorted((name for name in names if name.isascii() and name.isdigit()), key=int):
        status = root.text(f"proc/{pid}/status")
        process = parse_process(int(pid), status) if isinstance(status, str) else None
        if process is not None and process.user_id in users:
            found.append(process)
    return tuple(found)


def read_users(root: Root) -> dict[str, int]:
    """Read the accounts' numbers in /etc/passwd, by name."""
    text = root.text("etc/passwd")
    found = re.findall(rf"^([\w.-]{{1,64}}):[^:\n]*:({NUMBER}):", text if isinstance(text, str) else "", re.MULTILINE)
    return {name: int(number) for name, number in found}


def parse_process(pid: int, status: str) -> Process | None:
    """Parse a /proc/PID/status; None for a zombie, and for a program that runs as another than its caller (setuid)."""
    name = re.match(r"Name:\t(.{1,64})\n", status)
    user = re.search(rf"^Uid:\t({NUMBER})\t\1\t", status, re.MULTILINE)
    parent = re.search(rf"^PPid:\t({NUMBER})$", status, re.MULTILINE)
    if not name or not user or re.search(r"^State:\t[ZX]", status, re.MULTILINE):
        return None
    return Process(pid=pid, name=name[1], user_id=int(user[1]), parent=int(parent[1]) if parent else 0)


def read_uptime_s(root: Root) -> float | Unknown:
    """Read how long ago this machine was booted."""
    text = root.text("proc/uptime")
    up = re.match(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) if isinstance(text, str) else None
    return Unknown(why="/proc/uptime holds no time") if up is None else float(up[0])


def read_daemon(
    root: Root,
    uri: str,
    processes: tuple[Process, ...] | Unknown,
    *,
    uptime_s: float | Unknown,
    peer_pid: int | None = None,
) -> Daemon | Unknown | None:
    """Read the facts of the daemon that serves `uri`, this machine's; None where none does.

    `peer_pid` is the process at the other end of libvirt's connection, None if there is none.
    """
    if not re.match(r"[a-z]+:///(system|session)\b", uri):
        return None
    pid = peer_pid
    if pid is None or pid == 1:  # systemd made the socket and handed it over
        if isinstance(processes, Unknown):
            return processes
        pid = find_daemon(processes)
    if pid is None:
        return NO_DAEMON
    name = root.text(f"proc/{pid}/comm")
    confined = root.text(f"proc/{pid}/attr/current")
    return Daemon(
        pid=pid,
        name=name.strip() if isinstance(name, str) else "libvirt's daemon",
        age_s=_read_age_s(root, pid, uptime_s),
        sees_sys_read_only=_read_sys(root, pid),
        confined_by=confined.strip("\0\n ") or None if isinstance(confined, str) else confined,
    )


def find_daemon(processes: tuple[Process, ...]) -> int | None:
    """Return the pid of libvirt's daemon: root's, a child of init if there is such a one, modular before monolithic."""
    ours = [one for one in processes if one.name in DAEMONS and one.user_id == 0]
    ours.sort(key=lambda one: (DAEMONS.index(one.name), one.parent != 1, one.pid))
    return ours[0].pid if ours else None


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


def parse_start_s(stat_text: str, ticks_per_s: int) -> float | None:
    """Return when after boot a process started, by its /proc/PID/stat; None for other text."""
    fields = stat_text.rpartition(")")[2].split()  # a name may hold spaces and brackets
    started = fields[19] if len(fields) > 19 else ""
    return int(started) / ticks_per_s if re.fullmatch("[0-9]{1,20}", started) else None


def _read_sys(root: Root, pid: int) -> bool | Unknown:
    mounts = root.text(f"proc/{pid}/mountinfo")
    if not isinstance(mounts, str):
        return _ended(pid, mounts)
    seen = is_read_only(mounts, KSM_FOLDER)
    return Unknown(why=f"/proc/{pid}/mountinfo names no mount over {KSM_FOLDER}") if seen is None else seen


def _read_age_s(root: Root, pid: int, uptime_s: float | Unknown) -> float | Unknown:
    if isinstance(uptime_s, Unknown):
        return uptime_s
    stat_text = root.text(f"proc/{pid}/stat")
    if not isinstance(stat_text, str):
        return _ended(pid, stat_text)
    started_s = parse_start_s(stat_text, os.sysconf("SC_CLK_TCK"))
    return Unknown(why=f"/proc/{pid}/stat has no start time") if started_s is None else uptime_s - started_s


def _ended(pid: int, fact: Unknown | None) -> Unknown:
    return fact if fact is not None else Unknown(why=f"process {pid} has ended", remedy="run this command again")
