"""Which of libvirt's events are triggers: the whole table, callbacks included."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, cast

import libvirt
import pytest

from tests.lab.hang import HANG_S
from virtksm.errors import LibvirtUnreachable
from virtksm.guests.xml import NAMESPACE
from virtksm.host.libvirt_events import EVENTS, DomainEvent, Subscription, parse_lifecycle
from virtksm.model.decision import Trigger

OTHER_EVENTS = [0, 1, 3, 4, 6, 7, 8]
"""Defined, undefined, suspended, resumed, shutdown (still running), suspended by the guest, crashed but kept."""


class NamedDomain:
    """What the callbacks ask of a domain."""

    def name(self) -> str:
        return "guest"

    def UUIDString(self) -> str:  # noqa: N802  # libvirt's name
        return "uuid of guest"


@pytest.fixture
def heard() -> list[DomainEvent]:
    return []


@pytest.fixture
def subscription(heard: list[DomainEvent]) -> Subscription:
    return Subscription(
        cast("libvirt.virConnect", None),
        heard=heard.append,
        closed=lambda _reason: None,
        call_soon=lambda sink, value: sink(value),
    )


@pytest.mark.parametrize(
    ("event", "trigger", "words"),
    [
        (libvirt.VIR_DOMAIN_EVENT_STARTED, Trigger.STARTED, "booted, migrated in, restored, from snapshot"),
        (
            libvirt.VIR_DOMAIN_EVENT_STOPPED,
            Trigger.STOPPED,
            "shut down, destroyed, crashed, migrated out, saved, failed, replaced by snapshot",
        ),
    ],
)
def test_every_start_and_every_stop_is_one(event: int, trigger: Trigger, words: str) -> None:
    for detail, word in [*enumerate(words.split(", ")), (99, trigger.value)]:
        assert parse_lifecycle(event, detail) == (trigger, word)


def test_what_changes_no_memory_is_none() -> None:
    assert parse_lifecycle(libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_WAKEUP) is None
    assert [parse_lifecycle(event, detail) for event in OTHER_EVENTS for detail in range(10)] == [None] * 70


def test_what_changes_a_guests_memory_is_heard_and_other_devices_are_not(
    subscription: Subscription, heard: list[DomainEvent]
) -> None:
    connection, domain = cast("libvirt.virConnect", None), cast("libvirt.virDomain", NamedDomain())
    subscription._on_event(connection, domain, 4096, libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE)
    size_change = libvirt.VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE
    subscription._on_event(connection, domain, "virtiomem0", 8192, size_change)
    assert [(event.trigger, event.guest, event.uuid, event.detail) for event in heard] == [
        (Trigger.BALLOON, "guest", "uuid of guest", "balloon 4096 KiB"),
        (Trigger.MEMORY_DEVICE, "guest", "uuid of guest", "virtiomem0 8192 KiB"),
    ]
    heard.clear()
    for uri in (NAMESPACE, "urn:another", None):
        subscription._on_event(connection, domain, 2, uri, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE)
    assert [(event.trigger, event.detail) for event in heard] == [(Trigger.METADATA, "")]
    heard.clear()
    for alias in ("dimm0", "memvirtiomem0", "nvdimm1", "virtiopmem0", "ua-mine", "virtio-disk0", ""):
        subscription._on_event(connection, domain, alias, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED)
    assert [event.detail for event in heard] == ["dimm0", "memvirtiomem0", "nvdimm1", "virtiopmem0", "ua-mine"]
    assert {event.trigger for event in heard} == {Trigger.MEMORY_DEVICE}


def failed(code: int) -> libvirt.libvirtError:
    """Return an error as libvirt raises it."""
    error: Any = libvirt.libvirtError("failed")
    error.err = (code, libvirt.VIR_FROM_RPC, "failed", 2, None, None, None, 0, 0)
    return cast("libvirt.libvirtError", error)


@dataclass
class Daemon:
    """The calls of one connection that register, of a daemon that refuses some events, and maybe keepalive."""

    refuses: tuple[int, ...] = ()
    keepalive_fails: int | None = None
    alive: int = 1
    registered: list[int] = field(default_factory=list)
    is_closed: bool = False

    def registerCloseCallback(self, _callback: object, _opaque: object) -> None:  # noqa: N802  # libvirt's name
        pass

    def unregisterCloseCallback(self) -> None:  # noqa: N802  # libvirt's name
        pass

    def domainEventRegisterAny(self, _domain: None, event_id: int, _callback: object, _opaque: int) -> int:  # noqa: N802
        if event_id in self.refuses:
            raise failed(libvirt.VIR_ERR_INTERNAL_ERROR)
        self.registered.append(event_id)
        return event_id

    def domainEventDeregisterAny(self, event_id: int) -> None:  # noqa: N802  # libvirt's name
        self.registered.remove(event_id)

    def setKeepAlive(self, _interval_s: int, _count: int) -> None:  # noqa: N802  # libvirt's name
        if self.keepalive_fails is not None:
            raise failed(self.keepalive_fails)

    def isAlive(self) -> int:  # noqa: N802  # libvirt's name
        return self.alive

    def close(self) -> None:
        self.is_closed = True

    def subscribe(self) -> Subscription:
        connection = cast("libvirt.virConnect", self)
        found = Subscription(connection, heard=lambda _: None, closed=lambda _: None, call_soon=lambda *_: None)
        found.register(5)
        return found


@pytest.mark.parametrize("keepalive_fails", [None, libvirt.VIR_ERR_NO_SUPPORT])
def test_an_older_daemon_is_heard_as_far_as_it_tells(keepalive_fails: int | None) -> None:
    size_change = libvirt.VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE
    daemon = Daemon(refuses=(size_change,), keepalive_fails=keepalive_fails)
    subscription = daemon.subscribe()
    assert subscription.unheard == ["memory_device_size_change"]
    assert set(daemon.registered) == EVENTS.keys() - {size_change}
    assert not daemon.is_closed
    subscription.close()
    assert daemon.registered == []


@pytest.mark.parametrize(
    "daemon",
    [
        Daemon(refuses=(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,)),
        Daemon(refuses=(libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,), alive=0),
        Daemon(keepalive_fails=libvirt.VIR_ERR_RPC),
    ],
)
def test_a_connection_without_lifecycle_events_or_that_breaks_is_closed(daemon: Daemon) -> None:
    with pytest.raises(LibvirtUnreachable):
        daemon.subscribe()
    assert (daemon.is_closed, daemon.registered) == (True, [])


LOOP = """
import threading
import libvirt
from virtksm.guests.xml import NAMESPACE
from virtksm.host.libvirt_events import EventLoop

loop = EventLoop()
loop.start()
def until_well():
    while not loop.check():
        pass
assert loop.check()
until_well()
until_well()
hangs, held = threading.Event(), threading.Event()
def hang(timer, _opaque):
    libvirt.virEventRemoveTimeout(timer)
    held.set()
    hangs.wait()
libvirt.virEventAddTimeout(0, hang, None)
held.wait()
loop.check()
print("hangs:", loop.check(), loop.check())
hangs.set()
until_well()
loop.stop()
print("ended:", loop.check(), loop.check())
"""


def test_an_event_loop_that_hangs_or_has_ended_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True, check=False, timeout=HANG_S)
    assert (done.stdout, done.stderr) == ("hangs: False False\nended: False False\n", "")
