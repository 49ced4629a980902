"""libvirt's events: the loop thread, and the translation of lifecycle events into triggers.

libvirt's default loop runs in one thread of its own; its callbacks only hand a frozen value over to the listener, in
the listener's own thread. Which event is a trigger is a table: a guest's reboot, pause or guest-side
wake-up is none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt

from virtksm.errors import LibvirtUnreachable
from virtksm.guests.xml import NAMESPACE
from virtksm.host.libvirt_connection import keep_alive
from virtksm.model.decision import Trigger

Value = TypeVar("Value")

MEMORY_ALIASES = ("dimm", "nvdimm", "virtiomem", "virtiopmem", "mem", "ua-")
"""Aliases that libvirt gives to memory devices; a user's own alias (ua-) names no kind, so it counts as one.

The event of a device added names its backend instead (libvirt 9.0: "memdimm0" for dimm0, "memua-x" for ua-x).
"""

STARTS = {
    libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED: "booted",
    libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED: "migrated in",
    libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED: "restored",
    libvirt.VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT: "from snapshot",
}
STOPS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "shut down",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: "migrated out",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "saved",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "failed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: "replaced by snapshot",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainEvent:
    """A libvirt event that asks for a pass. `heard_s` is CLOCK_MONOTONIC at its delivery."""

    trigger: Trigger
    guest: str
    uuid: str
    detail: str
    heard_s: float


def parse_lifecycle(event: int, detail: int) -> tuple[Trigger, str] | None:
    """Return the trigger and the words for a lifecycle event, None for those that change no memory."""
    if event == libvirt.VIR_DOMAIN_EVENT_STARTED and detail != libvirt.VIR_DOMAIN_EVENT_STARTED_WAKEUP:
        return Trigger.STARTED, STARTS.get(detail, "started")
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        return Trigger.STOPPED, STOPS.get(detail, "stopped")
    return None


def parse_device(alias: str) -> tuple[Trigger, str] | None:
    """Return the trigger and the words for a device that has come or gone, None for one that is no memory."""
    return (Trigger.MEMORY_DEVICE, alias) if alias.startswith(MEMORY_ALIASES) else None


EVENTS: Mapping[int, Callable[..., tuple[Trigger, str] | None]] = {
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: parse_lifecycle,
    libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE: lambda actual_kib: (Trigger.BALLOON, f"balloon {actual_kib} KiB"),
    libvirt.VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE: lambda alias, kib: (
        Trigger.MEMORY_DEVICE,
        f"{alias} {kib} KiB",
    ),
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: lambda _kind, uri: (
        (Trigger.METADATA, "") if uri == NAMESPACE else None
    ),
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: parse_device,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: parse_device,
}
"""By the events that are heard, what makes of what one says the trigger and the words; None for none."""


class EventLoop:
    """libvirt's default event loop in a daemon thread; start it before opening any connection."""

    def __init__(self) -> None:
        self._stopping = False
        self._answered = threading.Event()
        self._answered.set()
        self._thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)

    def start(self) -> None:
        libvirt.virEventRegisterDefaultImpl()
        self._thread.start()

    def stop(self, wait_s: float = 2.0) -> None:
        """End the loop: a flag, and a timer that wakes it to see the flag."""
        self._stopping = True
        libvirt.virEventAddTimeout(0, _answer, self._answered)
        self._thread.join(wait_s)

    def check(self) -> bool:
        """Return whether the loop runs and has answered the last check; asks it again, which wakes it once."""
        is_well = self._answered.is_set() and self._thread.is_alive()
        if is_well:
            self._answered.clear()
            libvirt.virEventAddTimeout(0, _answer, self._answered)
        return is_well

    def _run(self) -> None:
        while not self._stopping:
            libvirt.virEventRunDefaultImpl()


def _event_name(event_id: int) -> str:
    prefix = "VIR_DOMAIN_EVENT_ID_"
    names = (name for name, number in vars(libvirt).items() if name.startswith(prefix) and number == event_id)
    return next(names).removeprefix(prefix).lower()


def _answer(timer: int, answered: threading.Event) -> None:
    libvirt.virEventRemoveTimeout(timer)
    answered.set()


class Subscription:
    """The callbacks of one connection.

    `heard` and `closed` are called by way of `call_soon`, which must only enqueue: an asyncio loop's
    `call_soon_threadsafe`.
    """

    def __init__(
        self,
        connection: libvirt.virConnect,
        heard: Callable[[DomainEvent], None],
        closed: Callable[[str], None],
        call_soon: Callable[..., object],
    ) -> None:
        self._connection = connection
        self._heard = heard
        self._closed = closed
        self._call_soon = call_soon
        self._callbacks: list[int] = []
        self.unheard: list[str] = []
        """The events that this libvirt does not offer, by libvirt's names."""

    def register(self, keepalive_s: int) -> None:
        """Register for lifecycle, balloon, memory device and metadata events and for the connection's end.

        Closes the connection and raises LibvirtUnreachable when it breaks meanwhile.
        """
        connection = self._connection
        try:
            connection.registerCloseCallback(self._on_close, None)
            for event_id in EVENTS:
                self._register_event(event_id)
            keep_alive(connection, keepalive_s)
        except libvirt.libvirtError as error:
            self.close()
            raise LibvirtUnreachable(f"registering for events: {error.get_error_message()}") from error

    def _register_event(self, event_id: int) -> None:
        """Register for an event, or do without it: a daemon refuses one that came with a later libvirt.

        It answers VIR_ERR_INTERNAL_ERROR, "unsupported event ID" (remote_daemon_dispatch.c), which says nothing of its
        own. All have lifecycle events.
        """
        connection = self._connection
        try:
            self._callbacks.append(connection.domainEventRegisterAny(None, event_id, self._on_event, event_id))
        except libvirt.libvirtError:
            if event_id == libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE or not connection.isAlive():
                raise
            self.unheard.append(_event_name(event_id))

    def close(self) -> None:
        """Take the callbacks back and close the connection; a dead connection may refuse, which changes nothing."""
        for step in (
            self._connection.unregisterCloseCallback,
            *(lambda c=c: self._connection.domainEventDeregisterAny(c) for c in self._callbacks),
            self._connection.close,
        ):
            try:
                step()
            except libvirt.libvirtError:
                continue
        self._callbacks.clear()

    def _on_close(self, _connection: libvirt.virConnect, reason: int, _opaque: Any) -> None:
        names = {
            libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "error",
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "end of file",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "keepalive timeout",
            libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "closed by us",
        }
        self._hand_over(self._closed, names.get(reason, str(reason)))

    def _on_event(self, _connection: libvirt.virConnect, domain: libvirt.virDomain, *said: Any) -> None:
        *facts, event_id = said
        if (found := EVENTS[event_id](*facts)) is not None:
            trigger, detail = found
            guest, uuid, heard_s = domain.name(), domain.UUIDString(), time.monotonic()
            event = DomainEvent(trigger=trigger, guest=guest, uuid=uuid, detail=detail, heard_s=heard_s)
            self._hand_over(self._heard, event)

    def _hand_over(self, sink: Callable[[Value], None], value: Value) -> None:
        try:
            self._call_soon(sink, value)
        except RuntimeError:  # the listener's loop has ended
            return
