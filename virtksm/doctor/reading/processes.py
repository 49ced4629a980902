"""Reads /proc: the names of root's processes, and libvirt's daemon behind a connection.

A process is known by its name (comm), which everybody may read and choose; only root's count, since nobody else could
set KSM. A program that runs without systemd is seen like one that runs under it, so systemd is not asked who runs.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from virtksm.doctor.facts import Daemon, Unknown
from virtksm.doctor.reading.files import Root

DAEMONS = ("virtqemud", "libvirtd")
SOCKETS = ("run/libvirt/virtqemud-sock", "run/libvirt/libvirt-sock")
KSM_FOLDER = "/sys/kernel/mm/ksm"
CONNECT_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One of root's processes."""

    pid: int
    name: str


def read_processes(root: Root) -> tuple[Process, ...] | Unknown:
    """Read root's processes."""
    names = root.names("proc")
    if isinstance(names, Unknown):
        return names
    if "1" not in names:
        return Unknown(why="/proc hides other users' processes, or is not mounted")
    found = []
    for pid in (name for name in names if name.isascii() and name.isdigit()):
        status = root.text(f"proc/{pid}/status")
        if isinstance(status, str) and (name := parse_roots_name(status)) is not None:
            found.append(Process(pid=int(pid), name=name))
    return tuple(found)


def parse_roots_name(status: str) -> str | None:
    """Return the name in a /proc/PID/status, if the process is root's (effective user 0) and no zombie."""
    name = re.match(r"Name:\t(.{1,64})\n", status)
    is_roots = re.search(r"^Uid:\t\d+\t0\t", status, re.MULTILINE)
    is_over = re.search(r"^State:\t[ZX]", status, re.MULTILINE)
    return name[1] if name and is_roots and not is_over else None


def read_uptime_s(root: Root) -> float | Unknown:
    """Read how long ago this machine was booted."""
    text = root.text("proc/uptime")
    up = re.match(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) if isinstance(text, str) else None
    return Unknown(why="/proc/uptime holds no time") if up is None else float(up[0])


def read_daemon(
    root: Root, uri: str, processes: tuple[Process, ...] | Unknown, *, uptime_s: float | Unknown
) -> Daemon | Unknown | None:
    """Read what is known of the daemon that serves `uri`, this machine's; None where none does."""
    if not re.match(r"[a-z]+:///(system|session)\b", uri):
        return None
    pid = _find_peer(root, uri)
    if pid is None or pid == 1:  # systemd made the socket and handed it over
        if isinstance(processes, Unknown):
            return processes
        ours = {one.name: one.pid for one in processes if one.name in DAEMONS}
        pid = next((ours[name] for name in DAEMONS if name in ours), None)
    if pid is None:
        return Unknown(why="no process of libvirt's daemon is seen")
    name = root.text(f"proc/{pid}/comm")
    confined = root.text(f"proc/{pid}/attr/current")
    return Daemon(
        pid=pid,
        name=name.strip() if isinstance(name, str) else "libvirt's daemon",
        age_s=_read_age_s(root, pid, uptime_s),
        sees_sys_read_only=_read_sys(root, pid),
        confined_by=confined.strip("\0\n ") or None if isinstance(confined, str) else confined,
    )


def is_read_only(mountinfo: str, path: str) -> bool | None:
    """Tell by a /proc/PID/mountinfo whether the mount that `path` lies in is read-only; None where it names none.

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
    """Return when after boot a process started, by its /proc/PID/stat; None if that is not what it says."""
    fields = stat_text.rpartition(")")[2].split()  # a name may hold spaces and brackets
    started = fields[19] if len(fields) > 19 else ""
    return int(started) / ticks_per_s if re.fullmatch("[0-9]{1,20}", started) else None


def _read_sys(root: Root, pid: int) -> bool | Unknown:
    mounts = root.text(f"proc/{pid}/mountinfo")
    if not isinstance(mounts, str):
        return _gone(pid, mounts)
    seen = is_read_only(mounts, KSM_FOLDER)
    return Unknown(why=f"/proc/{pid}/mountinfo names no mount over {KSM_FOLDER}") if seen is None else seen


def _read_age_s(root: Root, pid: int, uptime_s: float | Unknown) -> float | Unknown:
    if isinstance(uptime_s, Unknown):
        return uptime_s
    stat_text = root.text(f"proc/{pid}/stat")
    if not isinstance(stat_text, str):
        return _gone(pid, stat_text)
    started_s = parse_start_s(stat_text, os.sysconf("SC_CLK_TCK"))
    return Unknown(why=f"/proc/{pid}/stat does not tell its start") if started_s is None else uptime_s - started_s


def _find_peer(root: Root, uri: str) -> int | None:
    """Return the pid behind libvirt's socket; None where nobody listens."""
    named = parse_qs(urlsplit(uri).query).get("socket")
    for path in named or [root.path(one) for one in SOCKETS]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
            client.settimeout(CONNECT_WITHIN_S)
            try:
                client.connect(path)
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            except (OSError, ValueError):
                continue
        pid: int = struct.unpack("3i", credentials)[0]
        return pid
    return None


def _gone(pid: int, fact: Unknown | None) -> Unknown:
    return fact if fact is not None else Unknown(why=f"process {pid} has ended")
