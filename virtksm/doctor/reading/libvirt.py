"""Reads one libvirt connection, within a limit: a hanging daemon must not hang the doctor."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from virtksm.doctor.facts import Guests, Libvirt, Unknown, Unreachable
from virtksm.doctor.reading.processes import find_peer
from virtksm.errors import Cause, LibvirtUnreachable, Unsupported, VirtksmError
from virtksm.guests.process import GuestProcess
from virtksm.guests.xml import read_guests
from virtksm.host.bounded import BoundedCalls
from virtksm.host.clock import boottime_s
from virtksm.host.libvirt_connection import LibvirtHost, client_version, open_host
from virtksm.host.local_facts import ProcFacts
from virtksm.model.snapshot import Guest, KsmState, OtherProcesses
from virtksm.uri import is_local

T = TypeVar("T")

ANSWER_WITHIN_S = 10.0


def read_libvirt(uri: str) -> tuple[Libvirt | Unreachable, int | None]:
    """Open `uri` and read the checks' facts; return them, and the pid of the process that serves the connection."""

    def unanswered(_call: str) -> VirtksmError:
        return LibvirtUnreachable(
            f"{uri} does not answer within {ANSWER_WITHIN_S:g} s",
            remedy="systemctl status libvirtd (or virtqemud); its log",
        )

    opened: list[LibvirtHost] = []  # it stays open until its other end is known
    found: Libvirt | Unreachable
    try:
        found = BoundedCalls(unanswered).run(uri, lambda: _read(uri, opened), ANSWER_WITHIN_S)
    except VirtksmError as error:
        found = Unreachable(why=error.message, remedy=error.remedy)
    return found, find_peer(uri)


def _read(uri: str, opened: list[LibvirtHost]) -> Libvirt:
    host, may_manage = _open(uri)
    opened.append(host)
    return Libvirt(
        uri=host.uri,
        version=host.version(),
        client_version=client_version(),
        refused=_refused(host) if may_manage else Cause.NOT_AUTHORIZED,
        ksm=_read_ksm(host),
        guests=_value_or_unknown(lambda: _read_guests(host)),
    )


def _open(uri: str) -> tuple[LibvirtHost, bool]:
    """Open read-write, or read-only where that is all that this user may; returns whether it is read-write."""
    try:
        return open_host(uri), True
    except LibvirtUnreachable:
        try:
            return open_host(uri, read_only=True), False
        except LibvirtUnreachable:
            pass
        raise


def _refused(host: LibvirtHost) -> Cause | Unknown | None:
    """Root always may (libvirt does not ask polkit), so this asks only for other users: the daemon logs it."""
    if os.geteuid() == 0 and is_local(host.uri):
        return None
    return _value_or_unknown(host.setting_refused)


def _read_ksm(host: LibvirtHost) -> KsmState | Unknown | None:
    try:
        return host.ksm_state()
    except Unsupported:
        return None
    except VirtksmError as error:
        return Unknown(why=error.message)


def _read_guests(host: LibvirtHost) -> Guests:
    seen, failures = read_guests(host, host.running_guests(with_max=False))
    described = [(guest, xml) for guest, xml in seen if xml is not None]
    running = tuple(guest for guest, _ in described)
    processes, other_processes = _read_processes(running) if is_local(host.uri) else ({}, None)
    return Guests(
        running=running,
        xml={guest.key: xml for guest, xml in described},
        processes=processes,
        unread=tuple(error.message for error in failures),
        other_processes=other_processes,
    )


def _read_processes(running: tuple[Guest, ...]) -> tuple[dict[str, GuestProcess], OtherProcesses | None]:
    facts = ProcFacts(boottime_s)
    processes = zip(running, facts.processes(running), strict=True)
    found = {guest.key: process for guest, process in processes if process is not None}
    return found, facts.other_processes_memory(running)


def _value_or_unknown(ask: Callable[[], T]) -> T | Unknown:
    try:
        return ask()
    except VirtksmError as error:
        return Unknown(why=error.message)
