"""What the checks judge: libvirt's and virtksm's own answers, and this machine's files, read when a check asks.

A fact that could not be read is a CannotTell: raised, or kept in its place until a check asks for it. None is a value.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from virtksm.config.schema import Config
from virtksm.doctor.finding import CannotTell, DoesNotApply
from virtksm.doctor.reading.boot import QEMU_KVM_FILE, Boot, read_boot
from virtksm.doctor.reading.files import Root
from virtksm.doctor.reading.libvirt import Guests, LibvirtSeen, read_libvirt
from virtksm.doctor.reading.own import Status, read_config, read_state
from virtksm.doctor.reading.processes import Daemon, ProcessSeen, find_daemon, has_daemon, read_processes
from virtksm.doctor.reading.selinux import may_execute
from virtksm.doctor.reading.units import Tuned, Unit, read_enabled, read_tuned, read_unit
from virtksm.errors import VirtksmError
from virtksm.host.systemd import state_age_s
from virtksm.model.decision import Pause
from virtksm.paths import RuntimePaths
from virtksm.tuning.ownership import HostState
from virtksm.uri import is_alias
from virtksm.wiring import is_this_machine, make_switch

T = TypeVar("T")

KSM_UNIT = "ksm.service"
TUNED_UNIT = "tuned.service"
QEMU_KVM_UNIT = "qemu-kvm.service"
KSMTUNED_UNITS = ("ksmtuned.service",)
MOM_UNITS = ("mom-vdsm.service", "momd.service", "supervdsmd.service")
THROTTLER_UNITS = ("kata-ksm-throttler.service",)
JUDGED = {KSM_UNIT, TUNED_UNIT, QEMU_KVM_UNIT, *KSMTUNED_UNITS, *MOM_UNITS, *THROTTLER_UNITS}
"""Units that have checks of their own, whatever their files say of KSM."""


HOOKS = "etc/libvirt/hooks"


class HookFile(NamedTuple):
    """A file where libvirt looks for QEMU's hooks; `changed_at_s` is Unix time (ctime)."""

    path: str
    is_executable: bool
    is_roots: bool
    changed_at_s: float
    selinux_label: str = ""


def known(fact: T | CannotTell) -> T:
    """Return a fact; raises CannotTell if it could not be read."""
    if isinstance(fact, CannotTell):
        raise fact
    return fact


class Here:
    """The files of this machine; `clock` is Unix time, `peer_pid` the process that serves libvirt's connection.

    `state_age_s` tells how long ago a unit's state changed, `may_execute` what SELinux lets a domain execute.
    """

    def __init__(
        self,
        root: Root,
        uri: str,
        *,
        clock: Callable[[], float] = time.time,
        peer_pid: int | None = None,
        state_age_s: Callable[[str], float | None] = state_age_s,
    ) -> None:
        self.root = root
        self.clock = clock
        self.state_age_s = state_age_s
        self.may_execute: Callable[[str, str], bool] = partial(may_execute, root)
        self._uri = uri
        self._peer_pid = peer_pid

    def number(self, name: str) -> int | None:
        """Return one of KSM's numbers, None where the kernel has no such file."""
        return self.root.number(f"sys/kernel/mm/ksm/{name}")

    @cached_property
    def processes(self) -> list[ProcessSeen]:
        """Those of root, and of vdsm."""
        return read_processes(self.root)

    @cached_property
    def daemon(self) -> Daemon | None:
        """libvirt's; None where there is none: the embedded driver."""
        if not has_daemon(self._uri):
            return None
        pid = self._peer_pid
        if pid in (None, 1):  # systemd made the socket and handed it over
            pid = find_daemon(self.processes)
        return Daemon(pid, self.root.text_if_readable(f"proc/{pid}/comm").strip() or "libvirt's daemon")

    @cached_property
    def hooks(self) -> list[HookFile]:
        """QEMU's, in the file tree of the daemon, which may be a container's; in ours where only root may look."""
        root = self.root
        with suppress(CannotTell):
            its = root if self.daemon is None else Root(root.path(f"proc/{self.daemon.pid}/root"))
            root = its if its.is_folder("etc") else root
        return read_hooks(root)

    @cached_property
    def booted(self) -> bool:
        """Whether systemd runs here."""
        return Path(self.root.path("run/systemd/system")).is_dir()

    @cached_property
    def _enabled(self) -> set[str]:
        return read_enabled(self.root)

    def unit(self, name: str) -> Unit:
        return read_unit(self.root, name, self._enabled)

    @cached_property
    def tuned(self) -> Tuned:
        return read_tuned(self.root)

    @cached_property
    def boot(self) -> Boot:
        """What sets KSM at boot, besides virtksm and the units that are judged."""
        return read_boot(self.root, {one for one in self._enabled - JUDGED if not one.startswith("virtksm")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts; `here` is a DoesNotApply where the connection leads to another machine.

    `configuration` is it, or its faults, and `keys_set` the keys that its files set; `agents_files` are the files that
    the agent reads. `known_agent` is the agent's status, None where none runs. `folder` is for what virtksm does at run
    time, `state` the host's state in it; `faults`: what is wrong with the folders.
    """

    here: Here | DoesNotApply
    libvirt: LibvirtSeen | VirtksmError
    configuration: Config | tuple[str, ...]
    keys_set: frozenset[str] = frozenset()
    agents_files: tuple[str, ...] = ()
    paused: Pause | None
    known_agent: Status | CannotTell | None
    folder: str
    faults: tuple[str, ...]
    state: HostState | CannotTell

    @property
    def config(self) -> Config:
        """The configuration in force; the defaults where it has faults, which is a finding of its own."""
        return self.configuration if isinstance(self.configuration, Config) else Config()

    @property
    def this_machine(self) -> Here:
        """Raises DoesNotApply on another machine."""
        if isinstance(self.here, DoesNotApply):
            raise self.here
        return self.here

    @property
    def connection(self) -> LibvirtSeen:
        """Raises DoesNotApply where there is none."""
        if isinstance(self.libvirt, VirtksmError):
            raise DoesNotApply("no connection to libvirt")
        return self.libvirt

    @property
    def guests(self) -> Guests:
        return known(self.connection.guests)

    @property
    def daemon(self) -> Daemon:
        """Return libvirt's; raises DoesNotApply where there is none, or none that answers, and CannotTell."""
        try:
            daemon = self.this_machine.daemon
        except CannotTell:
            self.connection  # noqa: B018  # without one that is the reason
            raise
        if daemon is None:
            raise DoesNotApply("no daemon: the driver is embedded")
        return daemon

    @property
    def agent(self) -> Status | None:
        """The agent's status, None where none runs; raises CannotTell."""
        return known(self.known_agent)

    @property
    def agent_seen(self) -> Status | None:
        """The agent's status, None also where it is not known."""
        return None if isinstance(self.known_agent, CannotTell) else self.known_agent


def read_facts(
    asked_uri: str, config_file: str | None, paths: RuntimePaths, agent: Status | CannotTell | None
) -> Facts:
    """Read the facts about the host behind `asked_uri`; `agent` is its own answer."""
    configuration, keys_set, files = read_config(config_file)
    config = configuration if isinstance(configuration, Config) else Config()
    libvirt, peer_pid = read_libvirt(asked_uri, paths, config)
    uri = libvirt.uri if isinstance(libvirt, LibvirtSeen) else asked_uri
    here: Here | DoesNotApply = Here(Root(), uri, peer_pid=peer_pid)
    if is_alias(uri):
        here = DoesNotApply(f"libvirt did not say which machine {uri} is")
    elif not is_this_machine(uri, config):
        here = DoesNotApply("another machine: run this command there")
    if isinstance(here, DoesNotApply) and (agent is None or isinstance(agent, CannotTell) or agent["uri"] != uri):
        agent = None  # this machine's
    state, faults = read_state(uri, paths, config)
    return Facts(
        here=here,
        libvirt=libvirt,
        configuration=configuration,
        keys_set=keys_set,
        agents_files=files if config_file is None else (),
        paused=None if is_alias(uri) else make_switch(uri, config, paths).read(),
        known_agent=agent,
        folder=paths.root,
        faults=faults,
        state=state,
    )


def read_hooks(root: Root) -> list[HookFile]:
    """Read QEMU's hooks."""
    found = []
    for path in (f"{HOOKS}/qemu", *(f"{HOOKS}/qemu.d/{name}" for name in root.names(f"{HOOKS}/qemu.d"))):
        status = root.status(path)
        if status is None:
            continue
        is_executable = stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)
        is_roots = status.st_uid == 0 and not status.st_mode & 0o022
        found.append(HookFile(f"/{path}", is_executable, is_roots, status.st_ctime, _read_label(root.path(path))))
    return found


def _read_label(path: str) -> str:
    try:
        return os.getxattr(path, "security.selinux").decode("ascii", "replace").strip("\0")
    except OSError:  # not labelled, or no SELinux
        return ""


def find_kept_off(here: Here) -> str | None:
    """Return why this host keeps KSM off, so that nothing of virtksm switches it on; None for nothing.

    Only an administrator's declaration counts: tuned's profile, a masked ksm.service, a file that declares KSM's
    switch at boot. A line of a script or a unit may run before or after; the check `boot` reports it.
    """
    try:
        if here.tuned.keeps_off and here.unit(TUNED_UNIT).is_at_work:
            return f"tuned's profile {', '.join(here.tuned.profiles)} switches it off ({here.tuned.ksm_in})"
    except CannotTell:  # a finding of its own
        pass
    if here.unit(KSM_UNIT).is_masked:
        return f"{KSM_UNIT} is masked"
    for one in here.boot.settings:
        is_read = one.file != QEMU_KVM_FILE or here.unit(QEMU_KVM_UNIT).is_at_work
        if one.name == "run" and one.value in ("0", "2") and one.is_declared and is_read:
            return f"{one.file} switches it off at boot"
    return None
