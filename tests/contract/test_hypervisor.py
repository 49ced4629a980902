"""The port Hypervisor: the fake does what the real libvirt does with the real kernel, case by case."""

import mmap
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from demo.guests import PAGES_PER_MIB, PayloadGuest, memory_device_xml
from tests.fakes import FakeHypervisor
from tests.lab.fixtures import GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from virtksm.agent.dirty_rates import Measures
from virtksm.errors import Cause, GuestVanished, LibvirtUnreachable, SettingsRefused, Unsupported
from virtksm.guests.ports import Descriptions
from virtksm.guests.xml import GuestXml, parse_guest_xml
from virtksm.host.libvirt_connection import LibvirtHost, open_host
from virtksm.model.snapshot import PARAMETERS, Guest
from virtksm.tuning.ports import Hypervisor
from virtksm.values import replace

PAGES = 64
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A hypervisor, what its kernel holds, and how to bring about what only a kernel can."""

    hypervisor: Hypervisor
    descriptions: Descriptions
    measures: Measures
    kernel: Callable[[str], int]
    switch_advisor_on: Callable[[], None]
    share_pages: Callable[[], None]
    start_guest: Callable[[PayloadGuest], None]
    end_guest: Callable[[str], None]
    start_from_disk: Callable[[str], None]
    """Start a guest whose firmware reads the first sector of its disk, and finds nothing there."""
    await_dirty_rate: Callable[[str], None]
    """Wait until a guest's measurement is over."""


def fake_host() -> Host:
    fake = FakeHypervisor()

    def switch_advisor_on() -> None:
        fake.advisor_on = True

    def share_pages() -> None:
        fake.pages_shared = PAGES

    def start_guest(spec: PayloadGuest) -> None:
        name = spec.name
        uuid, domain_id, max_kib = f"uuid of {name}", len(fake.running) + 1, 16 * 1024
        fake.xml[uuid] = spec.domain_xml(Path("/payload"), None)
        fake.dirty_mib_per_s[uuid] = spec.rewrite_per_s // PAGES_PER_MIB
        fake.running += (Guest(uuid=uuid, name=name, domain_id=domain_id, max_kib=max_kib),)
        fake.measured += (Guest(uuid=uuid, name=name, domain_id=domain_id, rss_kib=24 * 1024, max_kib=max_kib),)

    def end_guest(name: str) -> None:
        fake.running = tuple(guest for guest in fake.running if guest.name != name)
        del fake.xml[f"uuid of {name}"], fake.dirty_mib_per_s[f"uuid of {name}"]

    def start_from_disk(name: str) -> None:
        start_guest(small(name))
        fake.read_bytes[f"uuid of {name}"] = 512

    return Host(
        hypervisor=fake,
        descriptions=fake,
        measures=fake,
        await_dirty_rate=lambda uuid: void(fake.measuring.pop(uuid)),
        kernel=lambda name: fake.values[name],
        switch_advisor_on=switch_advisor_on,
        share_pages=share_pages,
        start_guest=start_guest,
        end_guest=end_guest,
        start_from_disk=start_from_disk,
    )


def real_host(ksm: Ksm, connection: libvirt.virConnect, guest: GuestFactory, stack: ExitStack) -> Host:
    def switch_advisor_on() -> None:
        ksm.write(advisor_mode="scan-time")

    def share_pages() -> None:
        memory = stack.enter_context(mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        memory.madvise(12)  # MADV_MERGEABLE, which Python names only where it was built with it
        memory.write(b"virtksm contract".ljust(PAGE_BYTES, b"!") * PAGES)
        ksm.merge_all()

    def start_from_disk(name: str) -> None:
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "disk"
        disk.write_bytes(bytes(1 << 20))
        device = f'<disk type="file"><source file="{disk}"/><target dev="vda" bus="virtio"/></disk></devices>'
        xml = re.sub("<kernel>.*</cmdline>", "", small(name).domain_xml(disk, None)).replace("</devices>", device)
        stack.callback(connection.createXML(xml).destroy)

    host = LibvirtHost(connection)

    def await_dirty_rate(uuid: str) -> None:
        wait_until(lambda: host.changes(uuid, is_measured=True)[0] is not None, HANG_S, "a dirty rate to be measured")

    return Host(
        hypervisor=host,
        descriptions=host,
        measures=host,
        await_dirty_rate=await_dirty_rate,
        kernel=ksm.read,
        switch_advisor_on=switch_advisor_on,
        share_pages=share_pages,
        start_guest=lambda spec: void(guest(spec)),
        end_guest=lambda name: void(connection.lookupByName(name).destroy()),
        start_from_disk=start_from_disk,
    )


def small(name: str, *, nosharepages: bool = False) -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=16, own_mib=8, nosharepages=nosharepages)


def void(_result: object) -> None:
    """Take a result that nobody needs."""


@pytest.fixture(params=["fake", pytest.param("real", marks=[pytest.mark.real, pytest.mark.ksm])])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param == "fake":
        yield fake_host()
        return
    ksm, connection, guest = (request.getfixturevalue(name) for name in ("ksm", "libvirt_conn", "guest"))
    with ExitStack() as stack:
        yield real_host(ksm, connection, guest, stack)


def test_it_tells_settings_counters_and_memory_and_leaves_local_facts_unknown(host: Host) -> None:
    ksm, memory = host.hypervisor.ksm_state(), host.hypervisor.host_memory()
    assert memory is not host.hypervisor.host_memory(), "each reading is told by it"
    assert dict(ksm.settings.items()) == {name: host.kernel(name) for name in PARAMETERS}
    assert (ksm.settings.pages_to_scan, ksm.settings.sleep_millisecs) == (100, 20)
    counters = (ksm.pages_shared, ksm.pages_sharing, ksm.pages_unshared, ksm.pages_volatile, ksm.full_scans)
    assert all(isinstance(counter, int) and counter >= 0 for counter in counters)
    assert (ksm.run, ksm.advisor_mode, ksm.ksmd_cpu_seconds) == (None, None, None)
    assert memory.total_kib > 512 * 1024
    assert 0 < memory.free_kib < memory.total_kib
    assert 0 <= memory.free_kib + memory.buffers_kib + memory.cached_kib <= memory.total_kib
    assert memory.available_kib is None
    assert (host.hypervisor.cpus() or 0) >= 1
    assert host.hypervisor.running_guests(with_max=True) == host.hypervisor.measured_guests() == ()


def test_what_is_set_arrives_and_what_is_out_of_range_or_unknown_is_refused_whole(host: Host) -> None:
    for pages, sleep_ms in ((0, 10_000), (2**32 - 1, 2**32 - 1), (345, 67)):
        host.hypervisor.set_parameters({"pages_to_scan": pages, "sleep_millisecs": sleep_ms})
        assert (host.kernel("pages_to_scan"), host.kernel("sleep_millisecs")) == (pages, sleep_ms)
    settings = host.hypervisor.ksm_state().settings
    assert (settings.pages_to_scan, settings.sleep_millisecs) == (345, 67)
    for name, value in (("nonsense", 1), ("pages_to_scan", -1), ("pages_to_scan", 2**32), ("pages_to_scan", 2**70)):
        with pytest.raises(SettingsRefused) as refused:
            host.hypervisor.set_parameters({"sleep_millisecs": 5, name: value})
        assert refused.value.cause is (Cause.UNSUPPORTED if name == "nonsense" else Cause.OUT_OF_RANGE)
        assert (host.kernel("pages_to_scan"), host.kernel("sleep_millisecs")) == (345, 67)


@pytest.mark.needs("advisor_mode")
def test_with_the_advisor_on_pages_are_refused_what_comes_before_has_arrived_and_the_rest_is_not_reached(
    host: Host,
) -> None:
    host.switch_advisor_on()
    with pytest.raises(SettingsRefused) as refused:
        host.hypervisor.set_parameters({"pages_to_scan": 345, "sleep_millisecs": 67})
    assert (refused.value.parameter, refused.value.cause) == ("pages_to_scan", Cause.UNKNOWN)
    assert host.kernel("pages_to_scan") != 345
    assert host.kernel("sleep_millisecs") == 20
    with pytest.raises(SettingsRefused):
        host.hypervisor.set_parameters({"sleep_millisecs": 67, "pages_to_scan": 345})
    assert host.kernel("sleep_millisecs") == 67


def test_merge_across_nodes_takes_0_and_1_while_nothing_is_shared(host: Host) -> None:
    for value in (0, 1):
        host.hypervisor.set_parameters({"merge_across_nodes": value})
        assert host.kernel("merge_across_nodes") == value
    with pytest.raises(SettingsRefused, match="merge_across_nodes"):
        host.hypervisor.set_parameters({"merge_across_nodes": 2})
    host.share_pages()
    assert host.hypervisor.ksm_state().pages_shared
    host.hypervisor.set_parameters({"merge_across_nodes": 1})
    with pytest.raises(SettingsRefused) as refused:
        host.hypervisor.set_parameters({"merge_across_nodes": 0})
    assert (refused.value.parameter, refused.value.cause) == ("merge_across_nodes", Cause.UNKNOWN)
    assert host.kernel("merge_across_nodes") == 1


def test_it_lists_and_measures_the_running_guests(host: Host) -> None:
    for name in ("one", "two"):
        host.start_guest(small(name))
    running = sorted(host.hypervisor.running_guests(with_max=True), key=lambda guest: guest.name)
    measured = sorted(host.hypervisor.measured_guests(), key=lambda guest: guest.name)
    assert [guest.name for guest in running] == [guest.name for guest in measured] == ["one", "two"]
    assert [guest.uuid for guest in running] == [guest.uuid for guest in measured]
    assert len({guest.domain_id for guest in running}) == 2
    assert [guest.key for guest in measured] == [f"{guest.uuid}/{guest.domain_id}" for guest in running]
    assert {guest.max_kib for guest in host.hypervisor.running_guests(with_max=False)} == {None}
    assert [guest.max_kib for guest in running] == [guest.max_kib for guest in measured] == [16 * 1024] * 2
    assert all(guest.rss_kib is not None and guest.rss_kib > 8 * 1024 for guest in measured)


def test_what_a_guest_may_grow_to_can_be_forgotten_of_one_and_of_all(host: Host) -> None:
    host.start_guest(small("one"))
    (running,) = host.hypervisor.running_guests(with_max=True)
    for uuid in (running.uuid, "nobody's", None):
        host.hypervisor.forget_max(uuid)
        assert host.hypervisor.running_guests(with_max=True) == (running,)


def test_a_guests_xml_is_its_own_and_gone_with_it(host: Host) -> None:
    host.start_guest(small("open"))
    host.start_guest(small("apart", nosharepages=True))
    uuids = {guest.name: guest.uuid for guest in host.hypervisor.running_guests(with_max=False)}
    xml = {name: host.descriptions.guest_xml(uuid) for name, uuid in uuids.items()}
    assert "<name>open</name>" in xml["open"]
    found, apart = parse_guest_xml(xml["open"]), parse_guest_xml(xml["apart"])
    assert replace(found, memory_kib=None, current_kib=None) == GuestXml(image=found.image)
    assert apart.is_kept_out
    assert apart.image == found.image is not None, "they boot one kernel"
    host.end_guest("open")
    with pytest.raises(GuestVanished):
        host.descriptions.guest_xml(uuids["open"])
    assert host.descriptions.guest_xml(uuids["apart"])


def test_what_a_guest_reads_from_disk_is_told_and_nothing_without_a_disk(host: Host) -> None:
    host.start_from_disk("disk")
    host.start_guest(small("none"))
    uuids = {guest.name: guest.uuid for guest in host.hypervisor.running_guests(with_max=False)}

    def reads(name: str, *, is_measured: bool = False) -> int | None:
        return host.measures.changes(uuids[name], is_measured=is_measured)[1]

    wait_until(lambda: (reads("disk") or 0) >= 512, HANG_S, "a sector to be read")
    host.measures.start_dirty_rate(uuids["disk"], 1)
    assert (reads("disk", is_measured=True) or 0) >= 512, "while it is measured, too"
    host.await_dirty_rate(uuids["disk"])
    assert (reads("disk", is_measured=True) or 0) >= 512, "and after that"
    assert reads("none") is None
    host.end_guest("none")
    with pytest.raises(GuestVanished):
        reads("none")


def test_how_fast_a_guest_s_memory_changes_is_told_once_measured_and_nothing_before(host: Host) -> None:
    host.start_guest(small("still"))
    host.start_guest(PayloadGuest(name="busy", memory_mib=64, own_mib=56, rewrite_per_s=20_000))
    uuids = {guest.name: guest.uuid for guest in host.hypervisor.running_guests(with_max=False)}
    rates = {}
    for name, uuid in uuids.items():
        assert host.measures.changes(uuid, is_measured=True) == (None, None), "it never was"
        host.measures.start_dirty_rate(uuid, 1)
        host.await_dirty_rate(uuid)
        assert host.measures.changes(uuid, is_measured=False) == (None, None), "nobody asks"
        rates[name], _ = host.measures.changes(uuid, is_measured=True)
    assert rates["still"] == 0
    assert 0 < (rates["busy"] or 0) <= 100, "MiB a second, of 64 MiB"
    host.end_guest("busy")
    with pytest.raises(GuestVanished):
        host.measures.start_dirty_rate(uuids["busy"], 1)


def test_guests_on_chains_that_libvirt_writes_are_of_their_innermost_image() -> None:
    """libvirt's own driver test, which runs nothing, writes XML as all do."""
    connection = libvirt.open("test:///default")
    images = {}
    for name, base in (("one", "/base"), ("two", "/base"), ("other", "/others")):
        chain = f"<source file='{base}'/><backingStore/>"
        for file in (f"/{name}-below", f"/{name}"):
            chain = f"<source file='{file}'/><backingStore type='file'><format type='qcow2'/>{chain}</backingStore>"
        disk = f"<disk type='file'><driver type='qcow2'/>{chain}<target dev='vda'/></disk>"
        xml = f"<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os>"
        domain = connection.createXML(f"{xml}<devices>{disk}</devices></domain>")
        images[name] = parse_guest_xml(LibvirtHost(connection).guest_xml(domain.UUIDString())).image
    connection.close()
    assert images["one"] == images["two"] is not None
    assert images["other"] not in (None, images["one"])


@pytest.mark.real
def test_a_memory_module_counts_once_the_guest_is_named(libvirt_conn: libvirt.virConnect, guest: GuestFactory) -> None:
    host = LibvirtHost(libvirt_conn)
    running = guest(PayloadGuest(name="plug", memory_mib=64, own_mib=1, hotplug_mib=256))
    assert [one.max_kib for one in host.running_guests(with_max=True)] == [64 * 1024]
    running.domain.attachDevice(memory_device_xml(128))
    assert [one.max_kib for one in host.running_guests(with_max=True)] == [64 * 1024]
    host.forget_max(running.domain.UUIDString())
    assert [one.max_kib for one in host.running_guests(with_max=True)] == [192 * 1024]


@pytest.mark.real
def test_every_call_over_a_broken_connection_says_that_libvirt_is_unreachable(libvirtd: PrivateLibvirtd) -> None:
    host = open_host(libvirtd.uri)
    libvirtd.kill()
    calls: tuple[Callable[[], object], ...] = (
        host.ksm_state,
        host.host_memory,
        lambda: host.running_guests(with_max=True),
        host.measured_guests,
        lambda: host.guest_xml("00000000-0000-0000-0000-000000000001"),
        lambda: host.changes("00000000-0000-0000-0000-000000000001", is_measured=False),
        lambda: host.set_parameters({"pages_to_scan": 345}),
    )
    for call in calls:
        with pytest.raises(LibvirtUnreachable):
            call()


@pytest.mark.real
def test_a_driver_without_ksm_is_unsupported() -> None:
    host = open_host("test:///default")
    with pytest.raises(Unsupported):
        host.ksm_state()
    with pytest.raises(Unsupported):
        host.set_parameters({"pages_to_scan": 345})
