"""systemd, without its libraries: notifications, whether a unit is installed, and its environment.

A notification (sd_notify(3)) is one datagram of KEY=value lines: READY, STATUS, WATCHDOG, STOPPING. The manual page
calls the protocol stable and free to implement, which saves a dependency on libsystemd. Does nothing where
NOTIFY_SOCKET is not set.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

from virtksm.errors import SWITCH_UNIT, LibvirtTimeout, switch_ksm_on
from virtksm.text import printable
from virtksm.uri import DEFAULT_URI, at_host

UNIT_DIRS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""Where systemd looks for units (systemd.unit(5))."""
LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")
ANSWER_WITHIN_S = 3.0


def has_unit(name: str, unit_dirs: Iterable[str] = UNIT_DIRS, booted: str = "/run/systemd/system") -> bool:
    """Return whether systemd runs here (sd_booted(3)) and has a unit of that name that is not masked."""
    return os.path.isdir(booted) and _is_startable(name, unit_dirs)


def _is_startable(name: str, unit_dirs: Iterable[str]) -> bool:
    place = next((place for folder in unit_dirs if os.path.lexists(place := f"{folder}/{name}")), None)
    return place is not None and os.path.isfile(place) and not is_mask(place)


def is_mask(place: str) -> bool:
    """Return whether a unit's file masks it: /dev/null does, and any file without a byte (systemd.unit(5))."""
    try:
        return os.stat(place).st_size == 0
    except OSError:
        return False


def switch_on_here() -> str:
    """Return what switches KSM on, on this host."""
    return switch_ksm_on(has_unit=has_unit(SWITCH_UNIT))


def libvirt_daemon(unit_dirs: Sequence[str] = UNIT_DIRS) -> str:
    """Return the name of the daemon for QEMU on this host: the modular virtqemud where it is enabled, or alone."""
    has = {name: _is_startable(f"{name}.socket", unit_dirs) for name in LIBVIRT_DAEMONS}
    enabled = any(os.path.lexists(f"{folder}/sockets.target.wants/virtqemud.socket") for folder in unit_dirs)
    return "virtqemud" if enabled or (has["virtqemud"] and not has["libvirtd"]) else "libvirtd"


def libvirt_hangs(message: str, uri: str = DEFAULT_URI) -> LibvirtTimeout:
    """Return the error for a call that the libvirt behind `uri` does not answer, with what mends its daemon."""
    return LibvirtTimeout(message, remedy=at_host(uri, f"systemctl restart {libvirt_daemon()} (guests go on running)"))


def unit_variable(
    unit: str,
    name: str,
    *,
    unit_dirs: Iterable[str] = UNIT_DIRS,
    booted: str = "/run/systemd/system",
    show: Callable[..., str] | None = None,
) -> str | None:
    """Return a variable that an administrator gives a unit's programs; None without one or without an answer.

    systemd is asked (`show` answers in its place) only where it runs and the unit has drop-ins, or is in /etc.
    """
    places = [f"{folder}/{unit}.d" for folder in unit_dirs] + [f"/etc/systemd/system/{unit}"]
    if not os.path.isdir(booted) or not any(map(os.path.exists, places)):
        return None
    said = (show or show_units)("--property=Environment", "--value", unit, within_s=ANSWER_WITHIN_S)
    return parse_environment(said).get(name)


def parse_environment(text: str) -> dict[str, str]:
    """Take what `systemctl show --property=Environment --value` prints; unprintable values are left out."""
    import shlex

    try:
        words = shlex.split(text)
    except ValueError:
        return {}
    named = (word.partition("=") for word in words)
    return {name: value for name, _, value in named if value and value.isprintable() and " " not in value}


def state_age_s(unit: str) -> float | None:
    """Return how long ago a unit's state changed, also by a reload; None without an answer."""
    import time

    ask = ("--property=StateChangeTimestampMonotonic", "--value", unit)
    microseconds = show_units(*ask, within_s=ANSWER_WITHIN_S).strip()
    return time.monotonic() - int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None


def show_units(*arguments: str, within_s: float, program: str = "systemctl") -> str:
    """Return what `systemctl show` prints; nothing without an answer."""
    import subprocess  # only where there is something to ask

    ask = (program, "show", *arguments)
    try:
        answer = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, timeout=within_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.decode("utf-8", "replace")


class Notifier:
    """Sends notifications to the socket that `environ` names."""

    def __init__(self, environ: Mapping[str, str] = os.environ, *, pid: int | None = None) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_usec = environ.get("WATCHDOG_USEC", "")
        watched_pid = environ.get("WATCHDOG_PID", "")
        self._unsent: dict[str, str] = {}
        self._is_watched = not watched_pid or watched_pid == str(pid if pid is not None else os.getpid())

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to send WATCHDOG=1: half of what systemd allows; None without a watchdog."""
        if not self._address or not self._is_watched or not self._watchdog_usec.isdigit():
            return None
        return int(self._watchdog_usec) / 2_000_000 or None

    def send(self, **values: str) -> bool:
        """Send one datagram of KEY=value lines; return whether it was taken. A manager that is gone is no failure.

        Never waits: lines that a busy manager does not take, or for which no descriptor is left, are sent with the
        next, unless that replaces them.
        """
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        self._unsent |= values
        text = "\n".join(f"{key}={printable(' '.join(value.splitlines()))}" for key, value in self._unsent.items())
        try:
            sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError:
            return False
        is_taken = True
        with sender:
            try:
                sender.sendto(text.encode(), socket.MSG_DONTWAIT, address)
            except BlockingIOError:
                return False
            except OSError:
                is_taken = False
        self._unsent.clear()
        return is_taken
