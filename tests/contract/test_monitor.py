"""The port Monitor: the fake does what a guest's real QEMU does behind the real libvirt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import libvirt
import pytest

from demo.guests import PayloadGuest
from tests.fakes import FakeMonitor, merging_guest
from tests.lab.fixtures import GuestFactory
from tests.lab.libvirtd import PrivateLibvirtd
from virtksm.errors import GuestVanished, LibvirtUnreachable, MonitorRefused, Unsupported
from virtksm.guests.ports import Monitor
from virtksm.host.libvirt_connection import LibvirtHost, open_host
from virtksm.host.libvirt_monitor import LibvirtMonitor

MEMORY_MIB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A guest, and the monitor of its QEMU."""

    monitor: Monitor
    uuid: str
    end: Callable[[], object]


@pytest.fixture(params=["fake", pytest.param("real", marks=[pytest.mark.real, pytest.mark.ksm])])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    if request.param == "fake":
        fake = FakeMonitor({"one": merging_guest(MEMORY_MIB)})
        yield Watched(monitor=fake, uuid="one", end=fake.guests.clear)
        return
    for name in ("ksm", "libvirt_conn"):
        request.getfixturevalue(name)
    connection: libvirt.virConnect = request.getfixturevalue("libvirt_conn")
    guest: GuestFactory = request.getfixturevalue("guest")
    running = guest(PayloadGuest(name="one", memory_mib=MEMORY_MIB, own_mib=1))
    yield Watched(
        monitor=LibvirtMonitor(LibvirtHost(connection)), uuid=running.domain.UUIDString(), end=running.domain.destroy
    )


def test_qemu_tells_its_version_and_backends_and_each_of_them_is_switched(watched: Watched) -> None:
    told = watched.monitor.merging(watched.uuid)
    assert told.qemu >= (5, 0, 0)
    assert [(one.size_kib, one.merges) for one in told.backends] == [(MEMORY_MIB * 1024, True)]
    for merge in (False, False, True):
        watched.monitor.set_merging(watched.uuid, merge=merge)
        assert [one.merges for one in watched.monitor.merging(watched.uuid).backends] == [merge]
    assert [one.name for one in watched.monitor.merging(watched.uuid).backends] == [one.name for one in told.backends]


def test_a_guest_that_has_ended_has_vanished(watched: Watched) -> None:
    watched.end()
    with pytest.raises(GuestVanished):
        watched.monitor.merging(watched.uuid)
    with pytest.raises(GuestVanished):
        watched.monitor.set_merging(watched.uuid, merge=False)


@pytest.mark.real
def test_a_read_only_connection_says_so(libvirtd: PrivateLibvirtd, guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="one", memory_mib=16, own_mib=1))
    monitor = LibvirtMonitor(open_host(f"{libvirtd.uri}-ro", read_only=True))
    with pytest.raises(MonitorRefused) as refused:
        monitor.set_merging(running.domain.UUIDString(), merge=False)
    assert refused.value.remedy == "connect read-write"


@pytest.mark.real
def test_a_broken_connection_and_a_driver_that_is_not_qemus_say_so(
    libvirtd: PrivateLibvirtd, guest: GuestFactory
) -> None:
    running = guest(PayloadGuest(name="one", memory_mib=16, own_mib=1))
    monitor = LibvirtMonitor(open_host(libvirtd.uri))
    libvirtd.kill()
    with pytest.raises(LibvirtUnreachable):
        monitor.merging(running.domain.UUIDString())
    test_driver = open_host("test:///default")
    domain = test_driver.connection.lookupByName("test")
    with pytest.raises(Unsupported):
        LibvirtMonitor(test_driver).set_merging(domain.UUIDString(), merge=False)
