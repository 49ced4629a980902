"""The laboratory itself: payload guests are exact to the page, and the private libvirtd is what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest

from bench.sim.real_memory import MergeableProcess
from demo.guests import PAGES_PER_MIB, PayloadFailed, PayloadGuest, memory_device_xml, wait_settled
from tests.lab.fixtures import QEMU_CACHE, REPO, GuestFactory, RunningGuest
from tests.lab.guest_memory import COMMON, OWN, page_identity, payload_pages
from tests.lab.ksm import Ksm, KsmState, merging_pages, merging_pages_of_others, wait_until
from tests.lab.libvirtd import LibvirtdFailed, PrivateLibvirtd, restarted_after_crashes

pytestmark = pytest.mark.real

# An image of this module's own: its common pages never merge with those of guests that others run meanwhile.
IMAGE = 20_260_002
# QEMU's own memory (device state, firmware) differs by a few pages from run to run; seen: 8.
OWN_MARGIN_PAGES = 24
MAX_PAGE_SHARING = 256


@pytest.fixture
def small_pages_guest(small_pages_libvirtd: PrivateLibvirtd, payload: Path) -> Iterator[GuestFactory]:
    """Guests without huge pages, where every page of theirs is one that KSM counts."""
    factory = GuestFactory(small_pages_libvirtd, payload)
    yield factory
    factory.close()


def merged_counts(ksm: Ksm, guests: list[RunningGuest]) -> tuple[list[int], int, int, int]:
    """Merge all there is: pages merged in each guest, pages_shared, pages_sharing, merged pages of other processes."""
    ksm.merge_all()
    each = [merging_pages(guest.pid) for guest in guests]
    others = merging_pages_of_others({guest.pid for guest in guests})
    return each, ksm.read("pages_shared"), ksm.read("pages_sharing"), others


@pytest.mark.parametrize(("common_mib", "zero_mib", "own_mib"), [(16, 4, 8), (5, 0, 0), (0, 0, 24)])
def test_two_guests_merge_to_exactly_their_common_and_zero_pages(
    ksm: Ksm, small_pages_guest: GuestFactory, common_mib: int, zero_mib: int, own_mib: int
) -> None:
    bare = PayloadGuest(name="", memory_mib=48, image=IMAGE)
    full = replace(bare, common_mib=common_mib, zero_mib=zero_mib, own_mib=own_mib)

    def start_two(name: str, spec: PayloadGuest) -> list[RunningGuest]:
        return [small_pages_guest(replace(spec, name=f"{name}{seed}", seed=seed)) for seed in (880, 881)]

    bare_each, bare_shared, bare_sharing, _ = merged_counts(ksm, start_two("bare", bare))
    small_pages_guest.end_all()
    ksm.start_afresh()
    each, shared, sharing, others = merged_counts(ksm, start_two("full", full))

    common, zero = common_mib * PAGES_PER_MIB, zero_mib * PAGES_PER_MIB
    for pages, bare_pages in zip(each, bare_each, strict=True):
        assert abs(pages - bare_pages - common - zero) <= OWN_MARGIN_PAGES
    # One copy is kept of each common page, and one of every 256 zero pages (max_page_sharing). What other processes
    # of this machine merge meanwhile can only add.
    zero_copies = 2 * zero // MAX_PAGE_SHARING
    extra_shared = shared - bare_shared - common - zero_copies
    extra_sharing = sharing - bare_sharing - common - (2 * zero - zero_copies)
    assert -OWN_MARGIN_PAGES <= extra_shared <= OWN_MARGIN_PAGES + others
    assert -OWN_MARGIN_PAGES <= extra_sharing <= OWN_MARGIN_PAGES + others


def test_a_guest_holds_the_pages_that_its_command_line_says(guest: GuestFactory) -> None:
    spec = PayloadGuest(name="content", memory_mib=24, common_mib=4, zero_mib=3, own_mib=5, seed=17, image=IMAGE)
    pages = list(payload_pages(guest(spec).pid, memory_mib=24, pages=12 * PAGES_PER_MIB))

    kinds = Counter(page_identity(page)[2:] if any(page) else "zero" for page in pages)
    assert kinds == {(IMAGE, COMMON): 4 * PAGES_PER_MIB, "zero": 3 * PAGES_PER_MIB, (17, OWN): 5 * PAGES_PER_MIB}
    assert len(set(pages)) == 9 * PAGES_PER_MIB + 1


def test_common_pages_are_equal_among_guests_and_own_ones_are_not(guest: GuestFactory) -> None:
    first, second = (
        set(
            payload_pages(
                guest(PayloadGuest(name=f"pair{seed}", memory_mib=16, common_mib=2, own_mib=3, seed=seed)).pid,
                memory_mib=16,
                pages=5 * PAGES_PER_MIB,
            )
        )
        for seed in (1, 2)
    )
    assert len(first & second) == 2 * PAGES_PER_MIB


def rewritten(running: RunningGuest) -> int:
    spec = running.spec
    pages = payload_pages(running.pid, memory_mib=spec.memory_mib, pages=spec.content_mib * PAGES_PER_MIB)
    return sum(page_identity(page)[1] for page in pages if any(page))


def test_own_pages_are_rewritten_again_and_again(guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="rewrite", memory_mib=16, common_mib=1, own_mib=2, seed=3, rewrite_per_s=400))
    wait_until(lambda: rewritten(running) >= 800, 60.0, "800 rewritten pages")
    assert {page_identity(page)[1] for page in payload_pages(running.pid, memory_mib=16, pages=PAGES_PER_MIB)} == {0}, (
        "common pages are left alone"
    )


def test_rewritten_common_pages_stay_equal_among_guests(guest: GuestFactory) -> None:
    def start(name: str) -> RunningGuest:
        return guest(PayloadGuest(name=name, memory_mib=16, common_mib=2, image=IMAGE, rewrite_common_per_s=256))

    def generations(running: RunningGuest) -> dict[int, tuple[int, bytes]]:
        pages = list(payload_pages(running.pid, memory_mib=16, pages=2 * PAGES_PER_MIB))
        return {i: (page_identity(page)[1], page) for i, page in enumerate(pages)}

    first, second = start("thrash1"), start("thrash2")
    wait_until(lambda: rewritten(first) > 0 and rewritten(second) > 0, 30.0, "both to rewrite")

    def equal_and_new() -> bool:
        one, other = generations(first), generations(second)
        return sum(one[i] == other[i] and one[i][0] > 0 for i in one) >= PAGES_PER_MIB

    wait_until(equal_and_new, 30.0, "256 pages rewritten to the same content in both")
    one, other = generations(first), generations(second)
    assert all(one[i][1] == other[i][1] for i in one if one[i][0] == other[i][0] > 0)


def test_memory_grows_until_it_is_full(guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="grow", memory_mib=16, own_mib=1, seed=4, grow_mib_per_min=240))

    def filled() -> int:
        return sum(any(page) for page in payload_pages(running.pid, memory_mib=16, pages=13 * PAGES_PER_MIB))

    wait_until(lambda: filled() == 13 * PAGES_PER_MIB, 60.0, "13 MiB to fill")
    assert running.domain.isActive() == 1


def test_a_guest_can_reboot_and_power_itself_off(guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="reboots", memory_mib=16, own_mib=1, reboot_after_s=1))
    wait_settled(running.console, 30.0, times=3)
    assert running.domain.isActive() == 1

    ends = guest(PayloadGuest(name="ends", memory_mib=16, own_mib=1, off_after_s=1))
    wait_until(lambda: not Path(f"/proc/{ends.pid}").exists(), 30.0, "the guest to power itself off")


@pytest.mark.parametrize(
    "name",
    ["two words", 'it\'s "quoted"', "$(reboot) `id`", "<&>;|,=,", "two\nlines", "a\tb", "ünïcode ☃", "-rf"],
)
def test_hostile_names_are_data(guest: GuestFactory, libvirt_conn: libvirt.virConnect, name: str) -> None:
    running = guest(PayloadGuest(name=name, memory_mib=16, own_mib=1))
    assert running.domain.name() == name
    assert name in {domain.name() for domain in libvirt_conn.listAllDomains()}


def test_names_and_paths_cannot_break_out_of_the_xml() -> None:
    evil = "</name><os><kernel>/bin/sh</kernel></os><name> ]]> <!-- \" '"
    spec = PayloadGuest(name=evil, memory_mib=16)
    domain = ET.fromstring(spec.domain_xml(Path("/a&b/<x>.elf"), Path('/tmp/"c"')))  # noqa: S314 - our own text
    assert domain.findtext("name") == evil
    assert domain.findtext("os/kernel") == "/a&b/<x>.elf"
    source = domain.find("devices/serial/source")
    assert source is not None
    assert source.get("path") == '/tmp/"c"'


def test_content_that_does_not_fit_is_refused_here_and_by_the_payload(guest: GuestFactory) -> None:
    with pytest.raises(ValueError, match="do not fit into 16 MiB"):
        PayloadGuest(name="big", memory_mib=16, own_mib=14)
    with pytest.raises(PayloadFailed, match="bad or too large number: slow=100001"):
        guest(PayloadGuest(name="fast", memory_mib=16, slow_mib_per_s=100_001))


def test_a_memory_module_can_be_plugged_in(guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="plug", memory_mib=64, own_mib=1, hotplug_mib=256))
    running.domain.attachDevice(memory_device_xml(128))
    assert running.domain.info()[1] == (64 + 128) * 1024


EMBEDDED_WITH_BALLOON = """
import sys, threading
from pathlib import Path
from demo.embedded import embedded_libvirt, qemu_processes
from demo.guests import PayloadGuest, start_guest, wait_settled

kernel, cache = map(Path, sys.argv[1:])
with embedded_libvirt(cache=cache) as root:
    import libvirt

    libvirt.virEventRegisterDefaultImpl()
    over = threading.Event()

    def pump():
        while not over.is_set():
            libvirt.virEventRunDefaultImpl()

    pumping = threading.Thread(target=pump)
    pumping.start()
    connection = libvirt.open(root.uri)
    heard, sizes = threading.Event(), []

    def on_balloon(connection, domain, size, opaque):
        sizes.append(size)
        heard.set()

    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE, on_balloon, None)
    domain = start_guest(
        connection,
        PayloadGuest(name="balloon", memory_mib=64, own_mib=1, balloon=True),
        kernel=kernel,
        console=root.path / "console",
    )
    wait_settled(root.path / "console", 30)
    domain.setMemory(40 * 1024)
    heard.wait(30)
    print(root.path, qemu_processes(root.path)[0], sizes[0])
    del domain
    connection.close()
    over.set()
    libvirt.virEventAddTimeout(0, lambda *_: None, None)
    pumping.join()
"""


def test_an_embedded_libvirt_hears_balloons_and_leaves_nothing_behind(payload: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED_WITH_BALLOON, payload, QEMU_CACHE],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    root, pid, size_kib = done.stdout.split()
    assert int(size_kib) == 40 * 1024
    assert done.stderr == ""
    assert not Path(root).exists()
    # Ended, not yet buried where this machine's init is slow.
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_guests_survive_the_daemon_being_killed_and_restarted(libvirtd: PrivateLibvirtd, guest: GuestFactory) -> None:
    running = guest(PayloadGuest(name="survivor", memory_mib=16, own_mib=1))
    first = libvirtd.pid
    assert Path(f"/proc/{first}/comm").read_text().strip() == "libvirtd"
    libvirtd.kill()
    with pytest.raises(libvirt.libvirtError):
        libvirt.open(libvirtd.uri)
    libvirtd.start()
    libvirtd.restart()

    assert libvirtd.pid != first
    connection = libvirt.open(libvirtd.uri)
    try:
        assert [domain.name() for domain in connection.listAllDomains()] == ["survivor"]
        assert libvirtd.guest_pid("survivor") == running.pid
    finally:
        connection.close()


def test_a_daemon_that_crashes_is_started_again(libvirtd: PrivateLibvirtd) -> None:
    crashed = libvirtd.pid
    with restarted_after_crashes(libvirtd):
        os.kill(crashed, signal.SIGSEGV)
        wait_until(lambda: not Path(f"/proc/{crashed}").exists(), 20.0, "its end")
    assert libvirtd.pid != crashed
    libvirt.open(libvirtd.uri).close()


def test_the_private_libvirtd_is_local_and_its_uri_reaches_it_from_another_process(
    libvirtd: PrivateLibvirtd, libvirt_conn: libvirt.virConnect
) -> None:
    assert libvirt_conn.getURI() == libvirtd.uri
    answer = subprocess.run(["virsh", "-c", libvirtd.uri, "uri"], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == libvirtd.uri


def test_closing_leaves_no_process_and_no_file(payload: Path) -> None:
    daemon = PrivateLibvirtd(cache=QEMU_CACHE)
    daemon.start()
    running = GuestFactory(daemon, payload)(PayloadGuest(name="left", memory_mib=16), paused=True)
    assert running.pid in daemon.processes()
    pid = daemon.pid
    daemon.pause()
    daemon.close()
    assert daemon.processes() == []
    assert not daemon.root.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{running.pid}").exists()


def test_a_daemon_that_cannot_start_is_reported_with_its_words() -> None:
    daemon = PrivateLibvirtd(cache=QEMU_CACHE)
    try:
        (daemon.root / "etc" / "libvirtd.conf").write_text("nonsense\n")
        with pytest.raises(LibvirtdFailed, match=r"ended: .*nonsense|libvirtd\.conf"):
            daemon.start()
        assert not daemon.running
    finally:
        daemon.close()


def test_ksm_is_restored_to_the_last_value(ksm: Ksm) -> None:
    ksm.write(run=0, pages_to_scan=123, sleep_millisecs=45)
    state = KsmState.save()
    ksm.write(run=1, pages_to_scan=7, sleep_millisecs=8, merge_across_nodes=1, use_zero_pages=1, smart_scan=0)
    if (ksm.root / "advisor_mode").exists():
        ksm.write(advisor_mode="scan-time")
    state.restore()
    assert KsmState.save() == state
    assert (ksm.read("run"), ksm.read("pages_to_scan"), ksm.read("sleep_millisecs")) == (0, 123, 45)


def test_ksmd_is_at_rest_once_all_is_merged(ksm: Ksm) -> None:
    ksm.write(smart_scan=0)
    with MergeableProcess(PayloadGuest(name="", memory_mib=80, image=IMAGE, own_mib=64)):
        for _ in range(8):  # without waiting for it, ksmd is in a batch most of the times
            ksm.merge_all()
            scanned = ksm.read("pages_scanned")
            time.sleep(0.1)
            assert ksm.read("pages_scanned") == scanned
