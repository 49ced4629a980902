"""`virtksm guest` on real guests: the kernel's own files say what has come of it."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import psutil
import pytest

from demo.guests import PayloadGuest, memory_device_xml, wait_settled
from tests.lab.fixtures import GuestFactory
from tests.lab.guest_memory import merged_kib
from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import AgentHome
from virtksm.errors import GuestVanished, LibvirtUnreachable, VirtksmError
from virtksm.host.libvirt_connection import LibvirtHost, open_host
from virtksm.host.libvirt_monitor import LibvirtMonitor

pytestmark = pytest.mark.real

Json = dict[str, Any]
COMMON_MIB = 24
MEMORY_MIB = 64
DIMM_MIB = 128
BESIDE_KIB = 4096
"""More than what QEMU holds beside a guest's RAM: firmware, and no video memory in these guests."""
TAINTED = "custom monitor"
OCCUPIED = 2
"""VIR_DOMAIN_CONTROL_OCCUPIED: a command is on its way to QEMU."""
TWO_CELLS = "<cpu><numa>" + "".join(
    f"<cell id='{at}' cpus='{at}' memory='{MEMORY_MIB // 2}' unit='MiB'/>" for at in (0, 1)
) + "</numa></cpu>"  # fmt: skip
VIRTIO_MEM = (
    "<memory model='virtio-mem'><target><size unit='MiB'>128</size><node>0</node><block unit='MiB'>2</block>"
    "<requested unit='MiB'>64</requested></target></memory>"
)


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    return small_pages_libvirtd


def twin(name: str, seed: int, **options: Any) -> PayloadGuest:  # noqa: ANN401  # PayloadGuest's own
    return PayloadGuest(name=name, memory_mib=MEMORY_MIB, common_mib=COMMON_MIB, own_mib=4, seed=seed, **options)


def merged_bytes(pid: int) -> int | None:
    """Tell what is told as merged: before Linux 6.7 nobody knows it without looking at each page."""
    knows = "\nKSM:" in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return merged_kib(pid) * 1024 if knows else None


def taints(domain: libvirt.virDomain) -> str:
    return "\n".join(domain.messages(libvirt.VIR_DOMAIN_MESSAGE_TAINTING))


class Bench:
    """Commands over one libvirtd; each is held against what the kernel says."""

    def __init__(self, ksm: Ksm, home: AgentHome, daemon: PrivateLibvirtd) -> None:
        self._ksm, self._home, self._daemon = ksm, home, daemon
        home.configure(f"call_timeout_s = {20 * SLOWER}\n")

    def told(self, action: str, name: str, *options: str) -> Json:
        return self._home.told("guest", action, name, *options, "--connect", self._daemon.uri)

    def check(self, name: str, backends: int) -> None:
        """Take a guest out and let it back in, by each of its backends, as the kernel tells."""
        pid = self._daemon.guest_pid(name)
        self._ksm.merge_all()
        assert merged_kib(pid) >= COMMON_MIB * 1024
        shown = self.told("show", name, "--backends")
        assert len(shown["qemu"]["backends"]) == backends
        assert {one["merge"] for one in shown["qemu"]["backends"]} == {True}
        assert shown["merged_bytes"] == merged_bytes(pid)
        assert shown["needed_bytes"] // 1024 >= COMMON_MIB * 1024

        unmerged = self.told("unmerge", name)
        assert merged_kib(pid) < BESIDE_KIB
        assert unmerged["merged_bytes"] == merged_bytes(pid)
        assert {one["merge"] for one in unmerged["qemu"]["backends"]} == {False}
        ram_kib = sum(one["size_bytes"] for one in unmerged["qemu"]["backends"]) // 1024
        assert shown["mergeable_bytes"] - unmerged["mergeable_bytes"] == ram_kib * 1024
        self._ksm.merge_all()
        assert merged_kib(pid) < BESIDE_KIB, "ksmd merges nothing of it any more"

        merged = self.told("merge", name)
        assert merged["mergeable_bytes"] == shown["mergeable_bytes"]
        self._ksm.merge_all()
        assert merged_kib(pid) >= COMMON_MIB * 1024


@pytest.fixture
def bench(ksm: Ksm, agent_home: AgentHome, libvirtd: PrivateLibvirtd) -> Bench:
    return Bench(ksm, agent_home, libvirtd)


@contextmanager
def started(daemon: PrivateLibvirtd, spec: PayloadGuest, payload: Path, changes: Mapping[str, str]) -> Iterator[None]:
    """Start a guest whose XML is changed."""
    connection = libvirt.open(daemon.uri)
    console = daemon.root / f"console-{spec.name}"
    xml = spec.domain_xml(payload, console)
    for found, text in changes.items():
        xml = xml.replace(found, text, 1)
    domain = connection.createXML(xml)
    try:
        wait_settled(console, HANG_S)
        yield
    finally:
        domain.destroy()
        connection.close()


def test_a_plain_guest_goes_out_and_in_and_its_taint_is_seen(
    bench: Bench, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    _, one = guest.together(twin("other", 1), twin("one", 2))
    assert TAINTED not in "\n".join(bench.told("show", "one")["taints"])
    assert TAINTED not in taints(one.domain), "showing it sends QEMU nothing"
    bench.check("one", 1)
    assert TAINTED in taints(one.domain)
    assert TAINTED in "\n".join(bench.told("show", "one")["taints"])
    text = agent_home.run("guest", "unmerge", "one", "--connect", libvirtd.uri).stdout
    for part in ("Cost ", "stands still for about", "tainted", "Kernel ", "Lasts ", "nosharepages"):
        assert part in text
    far = agent_home.run("guest", "merge", "one", "--connect", libvirtd.far_uri)
    assert (far.returncode, far.stderr) == (0, "")
    assert "of another machine libvirt does not tell it" in far.stdout


def test_so_does_one_with_two_numa_cells(
    bench: Bench, guest: GuestFactory, libvirtd: PrivateLibvirtd, payload: Path
) -> None:
    guest(twin("other", 1))
    xml = {"<vcpu>1<": "<vcpu>2<", "<os>": f"{TWO_CELLS}<os>"}
    with started(libvirtd, twin("cells", 2), payload, xml):
        bench.check("cells", 2)


def test_so_does_one_with_a_memory_module(bench: Bench, guest: GuestFactory) -> None:
    _, plug = guest.together(twin("other", 1), twin("plug", 2, hotplug_mib=256))
    plug.domain.attachDevice(memory_device_xml(DIMM_MIB))
    bench.check("plug", 2)


def test_so_does_one_with_virtio_mem(
    bench: Bench, guest: GuestFactory, libvirtd: PrivateLibvirtd, payload: Path
) -> None:
    guest(twin("other", 1))
    with started(libvirtd, twin("grows", 2, hotplug_mib=256), payload, {"<devices>": f"<devices>{VIRTIO_MEM}"}):
        bench.check("grows", 2)


def test_guests_that_cannot_merge_are_left_alone(
    bench: Bench, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    apart, shared = guest.together(twin("apart", 1, nosharepages=True), twin("shared", 2, is_shared=True))
    for one in (apart, shared):
        assert bench.told("unmerge", one.spec.name)["qemu"] is None
        refused = agent_home.run("guest", "merge", one.spec.name, "--connect", libvirtd.uri)
        assert (refused.returncode, "cannot merge" in refused.stderr) == (1, True)
        assert TAINTED not in taints(one.domain)


class StopsFirst(LibvirtMonitor):
    """Freezes QEMU before it is told to switch a backend, so that the call is on its way for as long as wanted."""

    def __init__(self, host: LibvirtHost, pid: int) -> None:
        super().__init__(host)
        self._pid = pid

    def _ask(self, domain: libvirt.virDomain, command: str, **arguments: object) -> object:
        if command == "qom-set":
            os.kill(self._pid, signal.SIGSTOP)
        return super()._ask(domain, command, **arguments)


def unmerge_until(daemon: PrivateLibvirtd, pid: int, uuid: str, happens: Callable[[], object]) -> VirtksmError:
    """Return the error of unmerging a guest when something happens in the middle of it."""
    monitor, errors = StopsFirst(open_host(daemon.uri), pid), list[VirtksmError]()

    def switch() -> None:
        try:
            monitor.set_merging(uuid, merge=False)
        except VirtksmError as error:
            errors.append(error)

    thread = threading.Thread(target=switch)
    thread.start()
    watching = libvirt.open(daemon.uri)
    domain = watching.lookupByUUIDString(uuid)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, HANG_S, "QEMU to be frozen")
    wait_until(lambda: domain.controlInfo()[0] == OCCUPIED, HANG_S, "its monitor to be asked")
    happens()
    thread.join(HANG_S)
    (error,) = errors
    return error


@pytest.mark.usefixtures("ksm")
def test_a_guest_that_is_killed_in_the_middle_has_vanished(guest: GuestFactory, libvirtd: PrivateLibvirtd) -> None:
    one = guest(twin("one", 1))
    error = unmerge_until(libvirtd, one.pid, one.domain.UUIDString(), one.crash)
    assert isinstance(error, GuestVanished)


def test_a_libvirtd_that_is_killed_in_the_middle_leaves_a_guest_that_can_be_unmerged_again(
    bench: Bench, guest: GuestFactory, libvirtd: PrivateLibvirtd
) -> None:
    _, one = guest.together(twin("other", 1), twin("one", 2))
    error = unmerge_until(libvirtd, one.pid, one.domain.UUIDString(), libvirtd.kill)
    assert isinstance(error, LibvirtUnreachable)
    os.kill(one.pid, signal.SIGCONT)
    libvirtd.start()
    bench.told("unmerge", "one")
    bench.told("merge", "one")
    bench.check("one", 1)


@pytest.mark.usefixtures("ksm")
def test_a_qemu_that_hangs_keeps_the_command_no_longer_than_its_limit(
    guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    one = guest(twin("one", 1))
    agent_home.configure(f"call_timeout_s = {SLOWER}\n")
    os.kill(one.pid, signal.SIGSTOP)
    done = agent_home.run("guest", "unmerge", "one", "--connect", libvirtd.uri)
    os.kill(one.pid, signal.SIGCONT)
    assert done.returncode == 3
    assert f"no answer within {SLOWER} s" in done.stderr


@pytest.mark.usefixtures("ksm")
def test_a_user_without_rights_is_told_which_right_lacks(
    guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    guest(twin("one", 1))
    agent_home.configure("")
    libvirtd.root.chmod(0o711)
    agent_home.folder.chmod(0o755)
    options = agent_home.command("--config", str(agent_home.config))[1:]
    read_only = f"{libvirtd.uri}-ro"  # it ends with the socket
    shown = run_as_nobody(*options, "guest", "show", "one", "--connect", read_only)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "CAP_SYS_PTRACE" in shown.stdout
    told = json.loads(run_as_nobody(*options, "guest", "show", "one", "--json", "--connect", read_only).stdout)
    assert (told["merged_bytes"], told["mergeable_bytes"], told["zero_bytes"]) == (None, None, None)
    for uri, text in ((read_only, "connect read-write"), (libvirtd.uri, "this user may not connect")):
        denied = run_as_nobody(*options, "guest", "unmerge", "one", "--connect", uri)
        assert (denied.returncode, text in denied.stderr) == (4 if uri == read_only else 3, True), denied.stderr
