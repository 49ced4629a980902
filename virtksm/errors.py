"""The one error tree of virtksm.

Every error says what happened and what to do about it (`remedy`), so the outermost layer needs no table of its own;
remedies that are told in other places, too, are constants here.
Adapters translate the errors of libvirt, the kernel and files into these (`raise ... from`); nothing below the
command line or the agent's loop catches broadly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """Exit codes of every virtksm command (documented in docs/reference.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    TIMED_OUT = 5
    PAUSED = 6
    KSM_OFF = 7


class VirtksmError(Exception):
    """Any failure that virtksm expects; `remedy` is a command to type or a fact to check, or empty."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


class OnlyRoot(VirtksmError):
    """What was asked for is root's alone. The command line names the command to type."""

    def __init__(self) -> None:
        super().__init__("only root may do this")


class UsageError(VirtksmError):
    """A command line that cannot be understood."""

    exit_code = ExitCode.USAGE


def reason_of(error: Exception) -> str:
    """Return why a call failed, without the number and the names that Python puts into the text of an OSError."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class LibvirtUnreachable(VirtksmError):
    """No connection, or the connection broke: transient, so the agent reconnects."""

    exit_code = ExitCode.UNREACHABLE


class LibvirtRefuses(LibvirtUnreachable):
    """libvirt answers and refuses: no right, no driver for the URI. It stays so until an administrator changes it."""


class LibvirtTimeout(LibvirtUnreachable):
    """A libvirt call did not return within its limit: the daemon hangs or is stopped."""


class Unforeseen(VirtksmError):
    """An unforeseen exception, its `__cause__`, of a part whose absence the rest can report."""


class GuestVanished(VirtksmError):
    """A guest ended between being listed and being read: skip it."""


class SensingFailed(VirtksmError):
    """The host's state could not be read; nothing may be written."""


class Unsupported(VirtksmError):
    """The hypervisor's driver cannot read or set KSM parameters at all: permanent."""

    exit_code = ExitCode.REFUSED


class MonitorRefused(VirtksmError):
    """libvirt takes no monitor commands of this user or over this connection. It stays so until somebody changes it."""

    exit_code = ExitCode.REFUSED


class MonitorFailed(VirtksmError):
    """A guest's QEMU has not done what its monitor was asked for, or has answered with an error."""


class StateUnusable(VirtksmError):
    """The runtime folder cannot keep the baseline, so nothing may be written to the kernel."""


class TraceUnusable(VirtksmError):
    """A recorded trace cannot be written, or not be understood; the message names the file and the line."""


class AlreadyRunning(VirtksmError):
    """Another agent, or a pass that never ends, holds the lock."""


class Cause(Enum):
    """Why a setting was refused; libvirt reports all of them as "Operation not permitted"."""

    ADVISOR_ON = "advisor_on"
    PAGES_SHARED = "pages_shared"
    NOT_UNMERGED = "not_unmerged"
    OUT_OF_RANGE = "out_of_range"
    READ_ONLY = "read_only"
    NOT_AUTHORIZED = "not_authorized"
    UNSUPPORTED = "unsupported"
    UNKNOWN = "unknown"


NUMA_HIDES_PAGES = (
    "Linux 6.1 to 6.4 leaves pages merged, and counts them no more, that NUMA balancing has marked; on the host: "
    "sysctl kernel.numa_balancing=0, then start the guests anew"
)
REMEDIES: Mapping[Cause, str] = {
    Cause.ADVISOR_ON: "the kernel's KSM advisor owns pages_to_scan; switch it off on the host: "
    "echo none > /sys/kernel/mm/ksm/advisor_mode",
    Cause.PAGES_SHARED: "merge_across_nodes can only change while nothing is shared; on the host: "
    "virtksm unmerge --merge-across-nodes never (or always)",
    Cause.NOT_UNMERGED: NUMA_HIDES_PAGES,
    Cause.OUT_OF_RANGE: "correct the configuration: pages_to_scan and sleep_millisecs take 0..4294967295, "
    "merge_across_nodes 0 or 1",
    Cause.READ_ONLY: "connect read-write: a read-only libvirt connection cannot set node memory parameters",
    Cause.NOT_AUTHORIZED: "let this user manage libvirt by a polkit rule: org.libvirt.unix.manage, and with libvirt's "
    "access driver polkit org.libvirt.api.connect.write (docs/security.md)",
    Cause.UNSUPPORTED: "this kernel or libvirt driver does not offer the parameter",
    Cause.UNKNOWN: "see the libvirt daemon's log; on kernels from 6.8 the KSM advisor may be on "
    "(/sys/kernel/mm/ksm/advisor_mode on the host), or libvirt's daemon may not write to /sys: "
    "read-only in a container, or SELinux denies it (ausearch -m avc)",
}

SWITCH_UNIT = "virtksm-ksm.service"
SWITCH_ON = "echo 1 > /sys/kernel/mm/ksm/run"
STOP_KSMD = "echo 0 > /sys/kernel/mm/ksm/run"
UNMERGE = "echo 2 > /sys/kernel/mm/ksm/run"
START_AGENT = "systemctl start virtksm"
RUN_THERE = "run this command on that host"
USE_QEMU = "KSM needs a hypervisor driver on a Linux host, such as qemu:///system"
"""One remedy for one fact, wherever it is told: commands to type."""


def switch_ksm_on(*, has_unit: bool) -> str:
    """Return what switches KSM on; `has_unit`: this host has SWITCH_UNIT."""
    return f"systemctl restart {SWITCH_UNIT}" if has_unit else SWITCH_ON


class SettingsRefused(VirtksmError):
    """The kernel or libvirt refused a parameter; `parameter` is libvirt's name without "shm_"."""

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str, *, parameter: str, cause: Cause, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.parameter = parameter
        self.cause = cause


class ConfigFault:
    """One fault in a configuration: where it is, what is wrong, what to do.

    No dataclass: a one-shot through the agent needs this module and not the 10 ms that importing dataclasses takes.
    """

    __slots__ = ("file", "key", "problem", "remedy")

    def __init__(self, *, file: str, key: str, problem: str, remedy: str) -> None:
        self.file = file
        self.key = key
        self.problem = problem
        self.remedy = remedy

    @property
    def message(self) -> str:
        """Where it is, and what is wrong."""
        return f"{self.file}: {self.key}: {self.problem}" if self.key else f"{self.file}: {self.problem}"

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


class ConfigError(VirtksmError):
    """The configuration is invalid; carries every fault at once."""

    exit_code = ExitCode.USAGE

    def __init__(self, faults: Sequence[ConfigFault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)

    @classmethod
    def of(cls, file: str, problem: str, remedy: str, key: str = "") -> ConfigError:
        """Return the error for one fault."""
        return cls([ConfigFault(file=file, key=key, problem=problem, remedy=remedy)])
