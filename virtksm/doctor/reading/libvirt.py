"""Reads one libvirt connection, within a limit: a hanging daemon must not hang the doctor."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from virtksm.config.schema import Config
from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.processes import find_peer
from virtksm.doctor.reading.zero_pages import ZeroPages, sample_zero_pages
from virtksm.errors import Cause, LibvirtUnreachable, Unsupported, VirtksmError
from virtksm.guests.process import GuestProcess
from virtksm.guests.xml import UNKNOWN, GuestXml, read_guests
from virtksm.host.bounded import BoundedCalls
from virtksm.host.libvirt_connection import LibvirtHost, client_version, open_host
from virtksm.host.local_facts import ProcFacts
from virtksm.model.snapshot import Guest, KsmState, OtherProcesses
from virtksm.paths import RuntimePaths
from virtksm.store.choices import read_unmerged
from virtksm.uri import at_host, is_local
from virtksm.wiring import is_this_machine

T = TypeVar("T")

ANSWER_WITHIN_S = 10.0


class GuestSeen(NamedTuple):
    """A running guest; `xml` is UNKNOWN and `process` None where they cannot be read."""

    guest: Guest
    xml: GuestXml = UNKNOWN
    process: GuestProcess | None = None
    is_unmerged: bool = False
    """Whether it was unmerged while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """The running guests by name.

    `unread` names guests whose XML could not be read, and why: they count as able to merge. `other_processes` is None
    where it is unknown. `zero_pages` are of those whose memory could be sampled, None where that is root's to do.
    """

    running: tuple[GuestSeen, ...]
    unread: tuple[str, ...] = ()
    zero_pages: tuple[ZeroPages, ...] | None = None
    other_processes: OtherProcesses | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtSeen:
    """One connection. Versions are libvirt's numbers (9.0.0 is 9,000,000).

    `refused` is why this user may not set parameters, None if allowed; `ksm` is None where the driver offers nothing.
    """

    uri: str
    version: int
    client_version: int
    refused: Cause | CannotTell | None
    ksm: KsmState | CannotTell | None
    guests: Guests | CannotTell


def read_libvirt(uri: str, paths: RuntimePaths, config: Config) -> tuple[LibvirtSeen | VirtksmError, int | None]:
    """Open `uri` and read the checks' facts; return them, and the pid of the process that serves the connection."""

    def unanswered(_call: str) -> VirtksmError:
        return LibvirtUnreachable(
            f"{uri} does not answer within {ANSWER_WITHIN_S:g} s",
            remedy=at_host(uri, "systemctl status libvirtd (or virtqemud); its log"),
        )

    opened: list[LibvirtHost] = []  # it stays open until its other end is known
    found: LibvirtSeen | VirtksmError
    try:
        found = BoundedCalls(unanswered).run(uri, lambda: _read(uri, paths, config, opened), ANSWER_WITHIN_S)
    except VirtksmError as error:
        found = error
    return found, find_peer(uri)


def _read(uri: str, paths: RuntimePaths, config: Config, opened: list[LibvirtHost]) -> LibvirtSeen:
    host, may_manage = _open(uri)
    opened.append(host)
    # Root always may (libvirt does not ask polkit), so this asks only for other users: the daemon logs it.
    is_roots = os.geteuid() == 0 and is_local(host.uri)
    refused = None if is_roots else _value_or_doubt(host.setting_refused)
    return LibvirtSeen(
        uri=host.uri,
        version=host.version(),
        client_version=client_version(),
        refused=refused if may_manage else Cause.NOT_AUTHORIZED,
        ksm=_value_or_doubt(lambda: _read_ksm(host)),
        guests=_value_or_doubt(lambda: _read_guests(host, paths, config)),
    )


def _open(uri: str) -> tuple[LibvirtHost, bool]:
    """Open read-write, or read-only where that is all that this user may; returns whether it is read-write."""
    try:
        return open_host(uri), True
    except LibvirtUnreachable:
        with suppress(LibvirtUnreachable):
            return open_host(uri, read_only=True), False
        raise


def _read_ksm(host: LibvirtHost) -> KsmState | None:
    try:
        return host.ksm_state()
    except Unsupported:
        return None


def _read_guests(host: LibvirtHost, paths: RuntimePaths, config: Config) -> Guests:
    seen, failures = read_guests(host, host.running_guests(with_max=False))
    described = sorted(
        ((guest, xml) for guest, xml in seen if xml is not None), key=lambda one: (one[0].name, one[0].uuid)
    )
    running = tuple(guest for guest, _ in described)
    processes: tuple[GuestProcess | None, ...] = (None,) * len(running)
    other_processes = zero_pages = None
    unmerged = frozenset[str]()
    if is_this_machine(host.uri, config):
        facts = ProcFacts()
        running = facts.guests(running)
        processes, unmerged = facts.processes(running), read_unmerged(paths, facts, running)
        other_processes = facts.other_processes_memory(running)
        if os.geteuid() == 0:
            sampled = facts.read_each(running, sample_zero_pages)
            zero_pages = tuple(one for one in sampled if one is not None)
    return Guests(
        running=tuple(
            GuestSeen(guest, xml, process, guest.key in unmerged)
            for guest, (_, xml), process in zip(running, described, processes, strict=True)
        ),
        unread=tuple(error.message for error in failures),
        other_processes=other_processes,
        zero_pages=zero_pages,
    )


def _value_or_doubt(ask: Callable[[], T]) -> T | CannotTell:
    try:
        return ask()
    except VirtksmError as error:
        return CannotTell(error.message)
