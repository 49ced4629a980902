"""Which process is which guest: by marks that a user without rights cannot forge, and without waiting for strangers.

1. A process that cannot be QEMU by its name (/proc/PID/comm) is skipped; that name decides nothing more.
2. A process belongs to the guest that its control group names. libvirt makes one for each guest, through
   systemd-machined below slices, or itself below /machine, with the domain's id and name in its name. A user without
   rights can make groups only below a service or scope of his own, whose name then comes first.
3. Where no group names the guest (libvirt's cgroup_controllers = [], no hierarchy), a process of root, of this
   program's own user or of the user that libvirt runs QEMU as belongs to the guest whose `-uuid` is on its command
   line. The parent does not count: every process becomes init's child when its own parent ends. Only
   these command lines are read, with a limit.
4. If two processes claim one guest, neither counts.

All processes are searched only while a guest has none: at once for one that was not missing before, then after
pauses that grow to half a minute, as libvirt lists a guest a moment before it executes QEMU. Reads only.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise

from virtksm.host.proc_files import (
    INIT,
    MAX_BYTES,
    LimitedReads,
    Process,
    allow_descriptors,
    identify,
    list_pids,
    parse_owner,
    read_process,
)
from virtksm.model.snapshot import Guest
from virtksm.tuning.ports import Clock

MIN_PAUSE_S = 1.0
MAX_PAUSE_S = 32.0
QEMU_HOME = "/var/lib/libvirt/qemu"
"""Belongs to the user that libvirt runs QEMU as: its daemon sets the owner at each start (`user` in qemu.conf)."""
COMM = re.compile(rb"qemu(?!-(pr-helper|nbd|img|ga|io|storage-d|bridge-hel))|kvm(-spice)?$")
"""QEMU's names: qemu-system-ARCH, qemu-kvm, kvm, qemu:GUEST. Not those of helpers, which are in the guests' groups."""
_GROUP = re.compile(
    r"^[0-9]+:[^:\n]*:(?:"
    r"(?!/user\.slice/)(?:/[^/\n]+\.slice)+/machine-qemu\\x2d(?P<scope_id>[0-9]+)\\x2d(?P<scope>[^/\n]*)\.scope|"
    r"/machine(?:/[^/\n]+\.partition)*/qemu-(?P<folder_id>[0-9]+)-(?P<folder>[^/\n]*)\.libvirt-qemu"
    r")(?:/.*)?$",
    re.MULTILINE,
)
HIDDEN = (
    "guests' processes are hidden, as /proc is mounted with hidepid: the guests' memory counts as unread until this "
    "user is in the group that the mount names (docs/security.md, What is read)"
)
_CUT = 20
"""libvirt cuts the name in a group's name; a name this long may have been cut."""


class GuestSearch:
    """Finds the guests' processes, and keeps them from pass to pass."""

    def __init__(self, clock: Clock, reads: LimitedReads, *, qemu_home: str = QEMU_HOME) -> None:
        self._clock = clock
        self._reads = reads
        self._qemu_home = qemu_home
        self._found: dict[str, Process] = {}
        self._missing: frozenset[str] = frozenset()
        self._walked_s = 0.0
        self._pause_s = MIN_PAUSE_S
        self._trouble: dict[str, str] = {}
        self._is_hidden = False

    @property
    def trouble(self) -> tuple[str, ...]:
        """Why guests of the last call were not found, each with its remedy."""
        return (*self._trouble.values(), *([HIDDEN] if self._is_hidden and self._missing else []))

    def find(self, running: tuple[Guest, ...]) -> Mapping[str, Process]:
        """Return the processes of running guests by the guests' keys; a guest that has none is not in it."""
        wanted = {guest.key: guest for guest in running}
        self._found = {key: one for key, one in self._found.items() if key in wanted and one.lives()}
        missing = [guest for key, guest in wanted.items() if key not in self._found]
        if self._is_due({guest.key for guest in missing}):
            self._trouble = {}
            self._walk(missing)
        self._missing = frozenset(guest.key for guest in missing if guest.key not in self._found)
        self._trouble = {key: text for key, text in self._trouble.items() if key in self._missing}
        return self._found

    def _is_due(self, missing: set[str]) -> bool:
        now_s = self._clock()
        is_new = not missing <= self._missing
        if not missing or (not is_new and 0 <= now_s - self._walked_s < self._pause_s):
            return False
        self._walked_s, self._pause_s = now_s, MIN_PAUSE_S if is_new else min(self._pause_s * 2, MAX_PAUSE_S)
        return True

    def _walk(self, missing: list[Guest]) -> None:
        taken = {process.pid for process in self._found.values()}
        by_id = {guest.domain_id: guest for guest in missing}
        claims: defaultdict[str, list[Process]] = defaultdict(list)
        unnamed: dict[int, Process] = {}
        owners = self._owners()
        allow_descriptors()
        pids = list_pids()
        self._is_hidden = INIT not in pids
        for pid in pids:
            if pid in taken or not COMM.match(read_process(pid, "comm")) or (process := identify(pid)) is None:
                continue
            named = parse_guest_group(read_process(pid, "cgroup").decode("utf-8", "replace"))
            guest = None if named is None else by_id.get(named[0])
            if named is not None and guest is not None and is_named(named[1], guest.name):
                claims[guest.key].append(process)
            elif parse_owner(read_process(pid, "status")) in owners:
                unnamed[pid] = process
        if unnamed and any(guest.key not in claims for guest in missing):
            by_uuid = {guest.uuid: guest.key for guest in missing if guest.key not in claims}
            for pid, uuid in self._reads.read(unnamed, _read_uuid).items():
                if uuid in by_uuid:
                    claims[by_uuid[uuid]].append(unnamed[pid])
        for guest in missing:
            self._settle(guest, claims[guest.key])

    def _settle(self, guest: Guest, claims: list[Process]) -> None:
        if len(claims) == 1:
            self._found[guest.key] = claims[0]
        elif claims:
            pids = " and ".join(str(claim.pid) for claim in claims)
            self._trouble[guest.key] = (
                f"processes {pids} each claim to be guest {guest.name!r}: neither counts, and the guest's memory "
                "counts as unread until only libvirt's is left (see the command lines: ps -ww -p PID)"
            )

    def _owners(self) -> set[int | None]:
        owners: set[int | None] = {0, os.geteuid()}
        with suppress(OSError):  # no libvirt with guests of its own here
            owners.add(os.stat(self._qemu_home).st_uid)
        return owners


def _read_uuid(pid: int) -> str | None:
    return parse_guest_uuid(read_process(pid, "cmdline", MAX_BYTES))


def parse_guest_uuid(command_line: bytes) -> str | None:
    """Return what follows -uuid on the command line of a guest's process, None if it is none."""
    arguments = command_line.split(b"\0")
    return next((value.decode("ascii", "replace") for name, value in pairwise(arguments) if name == b"-uuid"), None)


def parse_guest_group(text: str) -> tuple[int, str] | None:
    """Return the domain's id and name as a control group of /proc/PID/cgroup (cgroups(7)) has them in its name.

    None where none is a guest's. Sources: libvirt's virDomainDriverGenerateMachineName,
    virSystemdMakeScopeName and virCgroupNewDomainPartition.
    """
    found = _GROUP.search(text)
    if found is None:
        return None
    if found["scope_id"] is None:
        return int(found["folder_id"]), found["folder"]
    return int(found["scope_id"]), re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), found["scope"])


def is_named(in_group: str, name: str) -> bool:
    """Tell whether a control group's name has this guest's in it: libvirt keeps letters, digits and some of "-."."""
    cut, whole = (re.sub("[^A-Za-z0-9]", "", text) for text in (in_group, name))
    return cut == whole or (len(cut) >= _CUT and whole.startswith(cut))
