"""The one error tree of virtksm.

Every error says what happened and what to do about it (`remedy`), so the outermost layer needs no table of its own.
Adapters translate what libvirt, the kernel and files say into these (`raise ... from`); nothing below the
command line or the agent's loop catches broadly.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """Exit codes of every virtksm command (documented in docs/commands.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4


class VirtksmError(Exception):
    """Any failure that virtksm expects; `remedy` is one sentence for the administrator, or empty."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


class LibvirtUnreachable(VirtksmError):
    """No connection, or the connection broke: transient, so the agent reconnects."""

    exit_code = ExitCode.UNREACHABLE


class LibvirtRefuses(LibvirtUnreachable):
    """libvirt answers, and lets nobody in: no right, no driver for the URI. The same until somebody changes it."""


class LibvirtTimeout(LibvirtUnreachable):
    """A libvirt call did not return within its limit: the daemon hangs or is stopped."""


class Unforeseen(VirtksmError):
    """An exception that nobody thought of, its `__cause__`, where what goes on says what could not be had."""


class GuestVanished(VirtksmError):
    """A guest ended between being listed and being looked at: skip it."""


class SensingFailed(VirtksmError):
    """The host's state could not be read; nothing may be written on the strength of it."""


class Unsupported(VirtksmError):
    """The hypervisor's driver cannot read or set KSM parameters at all: permanent."""

    exit_code = ExitCode.REFUSED


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
    OUT_OF_RANGE = "out_of_range"
    READ_ONLY = "read_only"
    NOT_AUTHORIZED = "not_authorized"
    UNSUPPORTED = "unsupported"
    UNKNOWN = "unknown"


class SettingsRefused(VirtksmError):
    """The kernel or libvirt refused a parameter; `parameter` is libvirt's name without "shm_"."""

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str, *, parameter: str, cause: Cause, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.parameter = parameter
        self.cause = cause


class Finding:
    """One fault in a configuration: where it is, what is wrong, what to do.

    No dataclass: a one-shot through the agent needs this module and not the 10 ms that importing dataclasses takes.
    """

    __slots__ = ("file", "key", "problem", "remedy")

    def __init__(self, *, file: str, key: str, problem: str, remedy: str) -> None:
        self.file = file
        self.key = key
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{self.file}: {self.key}" if self.key else self.file
        return f"{place}: {self.problem}; {self.remedy}"


class ConfigError(VirtksmError):
    """The configuration is invalid; carries every finding at once."""

    exit_code = ExitCode.USAGE

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = tuple(findings)
