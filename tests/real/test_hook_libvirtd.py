"""The hook in a real libvirtd: guests live through everything with it in place, and each operation pokes as it should.

Listeners and one-shots are stand-ins here (tests/lab/hook.py); with the real agent and the real one-shot the hook is
tested in test_hook_agent.py. A spy hook tells which operations libvirt really called hooks for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from xml.etree import ElementTree as ET

import libvirt
import pytest

from demo.guests import PayloadGuest, memory_device_xml, wait_settled
from tests.lab.fixtures import GuestFactory
from tests.lab.hook import FrozenListener, Listener, read_records
from tests.lab.hooked_libvirtd import HookedLibvirtd, HookPlace, OtherHost, hooked_libvirtd, killed_when_hanging
from tests.lab.ksm import wait_until
from tests.lab.libvirtd import PrivateLibvirtd

pytestmark = pytest.mark.real

STARTING = ["prepare begin", "start begin", "started begin"]
STOPPING = ["stopped end", "release end"]
HANG_S = 30.0


@pytest.fixture(scope="module")
def hooked() -> Iterator[HookedLibvirtd]:
    with hooked_libvirtd() as lent:
        yield lent


@pytest.fixture
def libvirtd(hooked: HookedLibvirtd) -> Iterator[PrivateLibvirtd]:
    """Stand in for the session's libvirtd, for `guest` and `libvirt_conn` too."""
    if not hooked.daemon.running:
        hooked.daemon.stop()
        hooked.daemon.start()
    with killed_when_hanging(hooked.daemon):
        yield hooked.daemon


@pytest.fixture
def place(
    libvirtd: PrivateLibvirtd,
    guest: GuestFactory,  # noqa: ARG001 - its guests must still be there when this ends
    hooked: HookedLibvirtd,
    tmp_path: Path,
) -> Iterator[HookPlace]:
    lent = HookPlace(hooked, tmp_path)
    try:
        yield lent
    finally:
        lent.let_go()
        if libvirtd.running:
            destroy_all(libvirtd)  # restored ones run in processes that `guest` does not know


def destroy_all(libvirtd: PrivateLibvirtd) -> None:
    connection = libvirt.open(libvirtd.uri)
    try:
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            domain.destroy()
    finally:
        connection.close()


def tiny(name: str = "guest") -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=16, own_mib=1)


def assert_lives(libvirtd: PrivateLibvirtd, name: str, pid: int) -> None:
    """See that libvirt has the guest running in this very process, and that it takes orders."""
    connection = libvirt.open(libvirtd.uri)
    try:
        domain = connection.lookupByName(name)
        assert domain.isActive() == 1
        domain.suspend()  # waits for its turn where libvirt still takes the guest back
        domain.resume()
        assert libvirtd.guest_pid(name) == pid
        os.kill(pid, 0)
    finally:
        connection.close()


def end_calls(place: HookPlace, last: str) -> list[str]:
    """Wait until libvirt has called hooks for `last`, after an end of a guest that libvirt noticed by itself."""
    operations: list[str] = []

    def came() -> bool:
        operations.extend(place.hooked.read_operations())
        return last in operations

    wait_until(came, HANG_S, f"the hooks of {last!r}")
    return operations


def test_a_start_and_a_stop_poke_once_each(place: HookPlace, guest: GuestFactory) -> None:
    with Listener(place.fifo) as listener:
        running = guest(tiny(), settle=False)
        assert place.hooked.read_operations() == STARTING
        assert listener.read_pokes() == ["started"]
        running.domain.destroy()
        assert place.hooked.read_operations() == STOPPING
        assert listener.read_pokes() == ["release"]


def test_a_guest_that_powers_itself_off_pokes(place: HookPlace, guest: GuestFactory) -> None:
    with Listener(place.fifo) as listener:
        guest(PayloadGuest(name="guest", memory_mib=16, own_mib=1, off_after_s=1))
        assert end_calls(place, "release end") == [*STARTING, *STOPPING]
        assert listener.read_pokes() == ["started", "release"]


def test_a_crashed_guest_pokes(place: HookPlace, guest: GuestFactory) -> None:
    with Listener(place.fifo) as listener:
        guest(tiny(), settle=False).crash()
        assert end_calls(place, "release end") == [*STARTING, *STOPPING]
        assert listener.read_pokes() == ["started", "release"]


def test_a_guest_that_cannot_start_fails_as_without_the_hook_and_is_released(
    place: HookPlace, libvirt_conn: libvirt.virConnect, tmp_path: Path
) -> None:
    with Listener(place.fifo) as listener:
        with pytest.raises(libvirt.libvirtError, match="not-there"):
            libvirt_conn.createXML(tiny().domain_xml(tmp_path / "not-there", None))
        assert place.hooked.read_operations()[-1] == "release end"
        assert listener.read_pokes() == ["release"]


def test_a_saved_and_restored_guest_pokes_and_keeps_its_xml(
    place: HookPlace, guest: GuestFactory, libvirt_conn: libvirt.virConnect, tmp_path: Path
) -> None:
    with Listener(place.fifo) as listener:
        running = guest(tiny())
        xml = ET.canonicalize(running.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        place.hooked.read_operations()
        listener.read_pokes()

        running.domain.save(str(tmp_path / "saved"))
        assert place.hooked.read_operations() == STOPPING
        assert listener.read_pokes() == ["release"]

        libvirt_conn.restore(str(tmp_path / "saved"))
        assert place.hooked.read_operations() == ["restore begin", *STARTING]
        assert listener.read_pokes() == ["restore", "started"]
        restored = libvirt_conn.lookupByName("guest")
        assert ET.canonicalize(restored.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == xml


def test_a_managed_save_pokes_as_a_save_does(
    place: HookPlace, guest: GuestFactory, libvirt_conn: libvirt.virConnect
) -> None:
    running = guest(tiny())
    domain = libvirt_conn.defineXML(running.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    try:
        place.hooked.read_operations()
        with Listener(place.fifo) as listener:
            domain.managedSave()
            assert listener.read_pokes() == ["release"]
            domain.create()
            assert domain.isActive() == 1
            assert place.hooked.read_operations() == [*STOPPING, "restore begin", *STARTING]
            assert listener.read_pokes() == ["restore", "started"]
    finally:
        domain.undefine()  # a running one turns transient


def test_a_migrated_guest_pokes_on_both_hosts(
    place: HookPlace, guest: GuestFactory, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with hooked_libvirtd(OtherHost()) as elsewhere, killed_when_hanging(elsewhere.daemon):
        there = HookPlace(elsewhere, tmp_path / "there")
        guest(tiny())
        place.hooked.read_operations()
        with Listener(place.fifo) as source, Listener(there.fifo) as destination:
            move = ["migrate", "--live", "guest", elsewhere.daemon.uri, "--migrateuri", "tcp://127.0.0.1"]
            subprocess.run(["virsh", "-c", libvirtd.uri, *move], check=True, capture_output=True, timeout=HANG_S)
            assert_lives(elsewhere.daemon, "guest", elsewhere.daemon.guest_pid("guest"))
            assert place.hooked.read_operations() == STOPPING
            assert source.read_pokes() == ["release"]
            assert elsewhere.read_operations() == ["migrate begin", *STARTING]
            assert destination.read_pokes() == ["migrate", "started"]


def test_a_reboot_a_pause_and_new_memory_call_no_hook_that_pokes(place: HookPlace, guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="guest", memory_mib=64, own_mib=1, hotplug_mib=256))
    with Listener(place.fifo) as listener:
        place.hooked.read_operations()
        running.domain.reset()
        wait_settled(running.console, HANG_S, times=2)
        running.domain.suspend()
        running.domain.resume()
        running.domain.attachDevice(memory_device_xml(128))
        assert place.hooked.read_operations() == []
        assert listener.read_pokes() == []


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the hook finds: a listener ("reads", "stopped and full"), a FIFO without one, a virtksm."""

    listener: str = ""
    fifo: bool = True
    folder: bool = True
    virtksm: bool = False


AROUND = {
    "a listener": Around(listener="reads"),
    "a stopped listener whose FIFO is full": Around(listener="stopped and full"),
    "no listener, virtksm there": Around(virtksm=True),
    "no folder, virtksm missing": Around(fifo=False, folder=False),
}
LIFE = [
    *STARTING,
    *STOPPING,
    "restore begin",
    *STARTING,
    "reconnect begin",
    *STOPPING,
]
ACTED_UPON = ["started", "release", "restore", "started", "reconnect", "release"]


class Surroundings:
    """The surroundings of one `Around`, as a context manager."""

    def __init__(self, place: HookPlace, around: Around) -> None:
        self._place = place
        self._around = around
        self._stack = ExitStack()
        self._listener: Listener | None = None

    def __enter__(self) -> Self:
        place, around = self._place, self._around
        if around.virtksm:
            place.record_one_shots()
        if around.listener.startswith("stopped"):
            self._stack.enter_context(FrozenListener(place.fifo, full=True))
        elif around.listener:
            self._listener = self._stack.enter_context(Listener(place.fifo))
        elif around.fifo:
            os.mkfifo(place.fifo)
        if not around.folder:
            place.runtime.rmdir()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def assert_acted(self) -> None:
        """See that each operation to act upon has poked or started a one-shot, whichever these surroundings ask for."""
        if self._listener is not None:
            assert self._listener.read_pokes() == ACTED_UPON
        started = len(ACTED_UPON) if self._around.virtksm else 0
        wait_until(lambda: len(read_records(self._place.record)) >= started, HANG_S, f"{started} one-shots")
        assert len(read_records(self._place.record)) == started
        assert self._place.runtime.exists() == self._around.folder
        assert self._place.fifo.exists() == (self._around.fifo and self._around.folder)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND.keys())
def test_a_guest_lives_through_everything(
    place: HookPlace, guest: GuestFactory, libvirtd: PrivateLibvirtd, tmp_path: Path, around: Around
) -> None:
    with Surroundings(place, around) as surroundings:
        running = guest(tiny(), settle=False)
        assert_lives(libvirtd, "guest", running.pid)
        running.domain.save(str(tmp_path / "saved"))

        connection = libvirt.open(libvirtd.uri)
        connection.restore(str(tmp_path / "saved"))
        connection.close()
        pid = libvirtd.guest_pid("guest")
        assert_lives(libvirtd, "guest", pid)

        calls = place.hooked.read_operations()
        libvirtd.kill()
        libvirtd.start()
        calls += end_calls(place, "reconnect begin")
        assert_lives(libvirtd, "guest", pid)

        connection = libvirt.open(libvirtd.uri)
        connection.lookupByName("guest").destroy()
        assert connection.listAllDomains() == []
        connection.close()
        assert calls + place.hooked.read_operations() == LIFE
        surroundings.assert_acted()


def test_a_start_does_not_wait_for_the_pass_it_started(
    place: HookPlace, guest: GuestFactory, libvirtd: PrivateLibvirtd
) -> None:
    place.record_one_shots(hold=True)
    running = guest(tiny(), settle=False)
    assert_lives(libvirtd, "guest", running.pid)
    wait_until(lambda: read_records(place.record) != [], HANG_S, "the one-shot")
    running.domain.destroy()
    wait_until(lambda: len(read_records(place.record)) == 2, HANG_S, "the second one-shot")

    for record in read_records(place.record):
        os.kill(record.pid, 0)  # raises if it is over
        assert record.arguments == ["retune", "--direct", "--coalesce"]
        assert not Path("/proc", record.environment["VIRTKSM_HOOK_PID"], "fd").exists(), "the hook still runs"
        assert {number: record.descriptors[number] for number in range(3)} == dict.fromkeys(range(3), "/dev/null")
        inherited = [to for number, to in record.descriptors.items() if number > 2 and "/proc/" not in to]
        assert inherited == [], "libvirt or the hook let something through"


def test_passes_that_run_on_outlive_libvirtd(place: HookPlace, guest: GuestFactory, libvirtd: PrivateLibvirtd) -> None:
    place.record_one_shots(hold=True)
    running = guest(tiny(), settle=False)
    wait_until(lambda: read_records(place.record) != [], HANG_S, "the one-shot")
    (record,) = read_records(place.record)
    libvirtd.kill()
    libvirtd.start()
    end_calls(place, "reconnect begin")
    assert_lives(libvirtd, "guest", running.pid)
    os.kill(record.pid, 0)


def test_a_guest_whose_xml_does_not_fit_into_a_pipe_starts(
    place: HookPlace, libvirt_conn: libvirt.virConnect, payload: Path
) -> None:
    # libvirt writes all of it to the hook's stdin, which the hook never reads.
    domain = ET.fromstring(tiny().domain_xml(payload, None))  # noqa: S314 - our own text
    ET.SubElement(domain, "description").text = "x" * 300_000
    with Listener(place.fifo) as listener:
        created = libvirt_conn.createXML(ET.tostring(domain, encoding="unicode"))
        assert created.isActive() == 1
        assert listener.read_pokes() == ["started"]
        created.destroy()
        assert listener.read_pokes() == ["release"]


@pytest.mark.parametrize("name", ["-rf '; touch owned; ' $(touch owned)`touch owned`", '"two\nlines" ' + "x" * 200])
def test_a_hostile_guest_name_is_data(
    place: HookPlace, guest: GuestFactory, libvirtd: PrivateLibvirtd, name: str
) -> None:
    with Listener(place.fifo) as listener:
        guest(tiny(name), settle=False).domain.destroy()
        assert listener.read_pokes() == ["started", "release"]
    owned = [Path("/proc", str(libvirtd.pid), "cwd", "owned"), libvirtd.root / "owned"]
    assert [path for path in owned if path.exists()] == []
