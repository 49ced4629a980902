"""The facts that checks judge: plain values. One that could not be read is `Unknown` and says why; None is a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from virtksm.config.schema import Config
from virtksm.doctor.finding import CannotTell, DoesNotApply
from virtksm.errors import Cause
from virtksm.guests.process import GuestProcess
from virtksm.guests.xml import GuestXml
from virtksm.model.decision import SwitchedOff
from virtksm.model.snapshot import Guest, HostMemory, KsmState, OtherProcesses
from virtksm.tuning.ownership import HostState

T = TypeVar("T")

CHECK_FILE = "see that this file exists, is readable (as root) and has the kernel's format"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """A fact that could not be read, and what to do about it."""

    why: str
    remedy: str = CHECK_FILE


def known(fact: T | Unknown) -> T:
    """Return a fact; raises CannotTell if it could not be read."""
    if isinstance(fact, Unknown):
        raise CannotTell(fact.why, fact.remedy)
    return fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """SwapTotal and SwapFree of /proc/meminfo."""

    total_kib: int
    free_kib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel of this machine. `has_ksm`: /sys/kernel/mm/ksm is there; `numbers` are those in its files, by name.

    A number is None where the kernel has no such file. `huge_pages` is the choice in transparent_hugepage/enabled.
    """

    release: str
    has_ksm: bool | Unknown
    numbers: Mapping[str, int | Unknown | None]
    advisor_mode: str | Unknown | None
    huge_pages: str | Unknown | None
    memory_nodes: int | Unknown
    memory: HostMemory | Unknown
    swap: Swap | Unknown
    page_kib: int

    def number(self, name: str) -> int | None:
        """Return one of KSM's numbers; raises CannotTell."""
        return known(self.numbers[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What the files of systemd's unit folders say: enabled is wanted or required by another unit that is.

    `is_running`: there are processes in its control group.
    """

    is_installed: bool
    is_enabled: bool
    is_running: bool = False
    is_masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """tuned's active profiles, and the first of their files that mentions KSM; `keeps_off`: it switches KSM off.

    `unknown_includes`: what they include by a variable or function of tuned's that is not understood.
    """

    profiles: tuple[str, ...]
    ksm_in: str | None
    keeps_off: bool = False
    unknown_includes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BootSetting:
    """A file that sets one of KSM's own values at boot, to `value`, None where that is unknown.

    `is_declared`: in a file whose every line is a setting (tmpfiles.d, sysfs.conf), not by a program.
    """

    file: str
    name: str
    value: str | None
    is_declared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What sets KSM at boot besides virtksm; `unread` says why of files that could not be read."""

    settings: tuple[BootSetting, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """libvirt's daemon behind the connection. `confined_by`: its AppArmor profile or SELinux context, None for none."""

    pid: int
    name: str
    age_s: float | Unknown
    sees_sys_read_only: bool | Unknown
    confined_by: str | Unknown | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFile:
    """A file where libvirt looks for QEMU's hooks; `changed_s` is how long ago it was (ctime)."""

    path: str
    is_executable: bool
    is_roots: bool
    changed_s: float
    selinux_label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What is in libvirt's folder of hooks, as its daemon sees it.

    `program` is where /usr/bin/virtksm, which the hook starts, leads to; None if it is missing or not executable.
    """

    files: tuple[HookFile, ...] | Unknown
    program: str | None
    apparmor_is_on: bool
    selinux_enforces: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The facts of this machine's own files. `processes`: the names (comm) of root's processes, and of vdsm's.

    `units` by name; `booted`: whether systemd runs here. `daemon` is None where there is none: the embedded driver.
    `agent_rule` is a file of polkit's that names the user virtksm, None where none does; `has_agent_user`: it exists.
    """

    kernel: Kernel
    processes: frozenset[str] | Unknown
    booted: bool
    units: Mapping[str, Unit]
    tuned: Tuned | Unknown
    boot: Boot
    daemon: Daemon | Unknown | None
    hooks: Hooks
    has_agent_user: bool
    agent_rule: str | Unknown | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """The running guests, their XML and, where readable, their processes, by the guests' keys.

    `unread` names guests whose XML could not be read, and why: they count as able to merge. `other_processes` is None
    where it is unknown.
    """

    running: tuple[Guest, ...]
    xml: Mapping[str, GuestXml]
    processes: Mapping[str, GuestProcess] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    other_processes: OtherProcesses | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Libvirt:
    """One connection. Versions are libvirt's numbers (9.0.0 is 9,000,000).

    `refused` is why this user may not set parameters, None if allowed; `ksm` is None where the driver offers nothing.
    """

    uri: str
    version: int
    client_version: int
    refused: Cause | Unknown | None
    ksm: KsmState | Unknown | None
    guests: Guests | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreachable:
    """No connection, and why, with the remedy."""

    why: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeen:
    """An agent's own status (`virtksm status --json`).

    `silence`: since when and why libvirt does not answer, None if it does. `outcome` is the last pass's, `refusal` why
    a setting was refused, or empty. `other_processes_kib` is their memory that it counts, None if its policy does not;
    `guests_unread` of its `guests` are those whose memory it could not read.
    """

    uri: str
    silence: str | None
    is_stranded: bool | None
    worst_core_percent: float | None
    outcome: str | None
    refusal: str
    other_processes_kib: int | None = None
    guests: int = 0
    guests_unread: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """virtksm's runtime folder `root`: what is wrong with it or with the state folder, each a sentence.

    `state` is the host's state in it.
    """

    root: str
    faults: tuple[str, ...]
    state: HostState | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """virtksm itself. `configuration`, or the faults of it, and the keys that its files set; `agent`: None for none."""

    configuration: Config | tuple[str, ...]
    off: SwitchedOff | None
    agent: AgentSeen | Unknown | None
    folders: Folders
    keys_set: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts. `here` is Unknown where the connection leads to another machine."""

    here: Here | Unknown
    libvirt: Libvirt | Unreachable
    own: Own

    @property
    def this_machine(self) -> Here:
        """Raises DoesNotApply on another machine."""
        if isinstance(self.here, Unknown):
            raise DoesNotApply(self.here.why)
        return self.here

    @property
    def daemon(self) -> Daemon:
        """Return libvirt's; raises DoesNotApply where there is none, or none that answers, and CannotTell."""
        daemon = self.this_machine.daemon
        if daemon is None:
            raise DoesNotApply("no daemon: the driver is embedded")
        if isinstance(daemon, Unknown) and isinstance(self.libvirt, Unreachable):
            raise DoesNotApply("no connection to libvirt")
        return known(daemon)

    @property
    def connection(self) -> Libvirt:
        """Raises DoesNotApply where there is none."""
        if isinstance(self.libvirt, Unreachable):
            raise DoesNotApply("no connection to libvirt")
        return self.libvirt

    @property
    def config(self) -> Config:
        """The configuration in force; the defaults where it has faults, which is a finding of its own."""
        return self.own.configuration if isinstance(self.own.configuration, Config) else Config()
