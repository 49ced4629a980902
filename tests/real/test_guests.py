"""`virtksm guests` and `virtksm headroom` on real guests, with the kernel's own counters as witness."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import psutil
import pytest

from demo.guests import PayloadGuest, start_guest, wait_settled
from tests.lab.fixtures import QEMU_CACHE, GuestFactory, RunningGuest
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, merging_pages, merging_pages_of_others, wait_agreed
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import AgentHome
from virtksm.guests.process import ProcessKsm
from virtksm.guests.savings import ITEM_BYTES
from virtksm.host.local_facts import read_guest_process
from virtksm.host.proc_files import parse_memory_kib, read_process

pytestmark = pytest.mark.real

Json = dict[str, Any]
MIB = 1024 * 1024
PAGE = 4096
COMMON_MIB = 12
BACKINGS = {
    "shared": "<source type='memfd'/><access mode='shared'/>",
    "memfd": "<source type='memfd'/>",
    "vhost": "<source type='memfd'/><access mode='private'/>",
    "file": "<source type='file'/><access mode='private'/>",
    "switched": "",
}
SHARED_CELL = "<cpu><numa><cell id='0' cpus='0' memory='32' unit='MiB' memAccess='shared'/></numa></cpu>"
"""As vhost-user needs it."""
MEM_MERGE_OFF = (
    "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<q:arg value='-machine'/><q:arg value='mem-merge=off'/></q:commandline>"
)


SHARED = ("shared", "memfd", "vhost")
SLACK_MIB = 4
"""By how much the memory of QEMU itself differs."""


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged zero pages are counted here, and no counter tells of those of a split huge page."""
    return small_pages_libvirtd


def twin(number: int, **options: Any) -> PayloadGuest:  # noqa: ANN401  # PayloadGuest's own
    return PayloadGuest(name=f"twin{number}", memory_mib=32, common_mib=COMMON_MIB, seed=number, **options)


def of_ended(told: Json) -> int:
    """Return the merging bytes that are left over and of no process that runs."""
    left = told["left_over"]
    return int(left["merging_bytes"] - sum(one["merging_bytes"] for one in left["processes"]))


def by_name(told: Json) -> dict[str, Json]:
    return {one["name"]: one for one in told["guests"]}


def counted(pid: int) -> ProcessKsm:
    process = read_guest_process(pid)
    assert process is not None
    assert process.ksm is not None
    return process.ksm


@contextmanager
def backed(daemon: PrivateLibvirtd, connection: libvirt.virConnect, payload: Path) -> Iterator[None]:
    """Start guests whose RAM lies behind a memfd or a file."""
    domains = []
    try:
        for name, backing in BACKINGS.items():
            spec = PayloadGuest(name=name, memory_mib=32, common_mib=COMMON_MIB, seed=20)
            xml = spec.domain_xml(payload, daemon.root / f"console-{name}")
            xml = xml.replace("<vcpu>", f"<memoryBacking>{backing}</memoryBacking><vcpu>")
            if name == "vhost":
                xml = xml.replace("<vcpu>", f"{SHARED_CELL}<vcpu>")
            if name == "switched":
                xml = xml.replace("</domain>", f"{MEM_MERGE_OFF}</domain>")
            domains.append(connection.createXML(xml))
        for name in BACKINGS:
            wait_settled(daemon.root / f"console-{name}", HANG_S)
        yield
    finally:
        for domain in domains:
            domain.destroy()


@pytest.mark.needs("ksm_stat:ksm_process_profit", "ksm_stat:ksm_mergeable")
def test_what_each_guest_saves_or_why_not_is_shown_to_each_user(
    ksm: Ksm,
    guest: GuestFactory,
    libvirtd: PrivateLibvirtd,
    libvirt_conn: libvirt.virConnect,
    payload: Path,
    agent_home: AgentHome,
) -> None:
    agent_home.configure("")
    empty = agent_home.told("headroom", "--connect", libvirtd.uri)
    assert (empty["guests"], empty["growth_bytes"]) == (0, 0)
    with backed(libvirtd, libvirt_conn, payload):
        running = guest.together(
            twin(1),
            twin(2),
            PayloadGuest(name="big", memory_mib=256, common_mib=4, seed=3),
            PayloadGuest(name="apart", memory_mib=48, common_mib=COMMON_MIB, nosharepages=True),
        )
        ksm.merge_all()
        check_guests(agent_home, libvirtd.uri, running[:2])
        check_shared(libvirtd, [one.spec.name for one in running])
        check_headroom(ksm, agent_home, libvirtd.uri)
        check_without_root(ksm, agent_home, libvirtd)
        check_far(ksm, agent_home, libvirtd.far_uri, running[0])


def said_by(daemon: PrivateLibvirtd) -> str:
    """Return a daemon's log, with all that has come before this call."""
    connection = libvirt.open(daemon.uri)
    with pytest.raises(libvirt.libvirtError):
        connection.defineXML("<domain type='qemu'/>")
    connection.close()
    return daemon.log.read_text()


def test_a_command_closes_its_connection_as_the_daemon_logs_an_error_for_one_that_does_not(
    libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    agent_home.configure("")
    before = len(said_by(libvirtd))
    for command in ("guests", "headroom", "status"):
        agent_home.run(command, "--connect", libvirtd.uri)
    said = said_by(libvirtd)[before:]
    assert "missing name information" in said
    assert "End of file" not in said


def check_guests(home: AgentHome, uri: str, twins: list[RunningGuest]) -> None:
    """Twins save alike, and each guest that cannot merge says why."""
    found = by_name(home.told("guests", "--connect", uri))
    assert set(found) == {"twin1", "twin2", "big", "apart", *BACKINGS}

    def two_and_of_all() -> tuple[Json, Json]:
        few = home.told("guests", "twin2", found["apart"]["uuid"], "--connect", uri)
        all_of_them = by_name(home.told("guests", "--connect", uri))
        return by_name(few), {name: all_of_them[name] for name in ("twin2", "apart")}

    wait_agreed(two_and_of_all, HANG_S, "two guests to be told of as among all")
    missed = home.run("guests", "twin2", "gone", "--connect", uri)
    assert (missed.returncode, missed.stdout) == (1, "")
    assert "no running guest is called gone" in missed.stderr

    for name in ("twin1", "twin2", "file"):
        one = found[name]
        assert (one["can_merge"], one["obstacles"]) == (True, [])
        assert one["merged_bytes"] >= COMMON_MIB * MIB
        assert one["saved_bytes"] >= COMMON_MIB * MIB / 2
        assert one["profit_bytes"] == one["saved_bytes"] - one["cost_bytes"]
    assert abs(found["twin1"]["saved_bytes"] - found["twin2"]["saved_bytes"]) < MIB
    for started in twins:
        rss_bytes = psutil.Process(started.pid).memory_info().rss
        assert abs(found[started.spec.name]["rss_bytes"] - rss_bytes) <= 8 * MIB
    assert (found["twin1"]["memory_bytes"], found["twin1"]["maximum_bytes"]) == (32 * MIB, 32 * MIB)

    apart = found["apart"]
    assert (apart["can_merge"], apart["obstacles"]) == (False, ["nosharepages"])
    assert (apart["merged_bytes"], apart["saved_bytes"], apart["kernel"]["ksm_mergeable"]) == (0, 0, False)
    switched = found["switched"]
    assert (switched["obstacles"], switched["kernel"]["ksm_mergeable"]) == (["mem_merge_off"], False)
    for name in (*SHARED, "apart", "switched"):
        assert found[name]["mergeable_bytes"] == 0
    for name in ("twin1", "twin2", "file"):
        assert COMMON_MIB * MIB <= found[name]["mergeable_bytes"] < found[name]["rss_bytes"]
    for name in SHARED:
        assert (found[name]["can_merge"], found[name]["obstacles"]) == (False, ["shared_memory"])
        assert found[name]["merged_bytes"] < 4 * MIB, "only what lies beside its RAM merges"


def check_shared(daemon: PrivateLibvirtd, ordinary: Sequence[str]) -> None:
    """The kernel counts shared RAM as shared, and what a guest has written to a private mapping of a file as its own.

    QEMU's program and libraries are files, too: some 40 MiB.
    """
    own_mib, shared_mib = {}, {}
    for name in (*ordinary, *BACKINGS):
        memory = parse_memory_kib(read_process(daemon.guest_pid(name), "statm"), 4)
        assert memory is not None
        own_mib[name], shared_mib[name] = (memory[0] - memory[1]) / 1024, memory[1] / 1024
    plain_mib = shared_mib["twin1"]
    for name in SHARED:
        assert shared_mib[name] > plain_mib + COMMON_MIB - SLACK_MIB
        assert own_mib[name] < own_mib["twin1"] - COMMON_MIB + SLACK_MIB
    for name in ("file", "switched", "apart"):
        assert abs(shared_mib[name] - plain_mib) < SLACK_MIB
        assert own_mib[name] > own_mib["twin1"] - SLACK_MIB


def check_headroom(ksm: Ksm, home: AgentHome, uri: str) -> None:
    """Headroom is what the host has, less what the guests that run may take."""
    told = home.told("headroom", "--connect", uri)
    room, risk = told["room_bytes"], told["risk"]
    assert told["guests"] == 4 + len(BACKINGS)
    assert 128 * MIB < told["growth_bytes"] < 512 * MIB
    assert 0 < told["merge_ratio"] < 0.5
    merged_bytes = (ksm.read("pages_shared") + ksm.read("pages_sharing")) * PAGE
    assert risk["unmerging_bytes"] == merged_bytes
    assert room["safe"] == told["available_bytes"] - told["reserve_bytes"] - told["growth_bytes"] - merged_bytes
    assert room["unmerged"] == room["safe"] + merged_bytes
    assert room["at_ratio"] > room["unmerged"]
    assert risk["needed_bytes"] == merged_bytes + told["growth_bytes"] + room["at_ratio"]
    text = home.run("headroom", "--connect", uri).stdout
    assert "ksmd is idle" in text
    assert ": safe, even if" in text


def check_without_root(ksm: Ksm, home: AgentHome, libvirtd: PrivateLibvirtd) -> None:
    """Without root the kernel's word is missing and the rest is told."""
    libvirtd.root.chmod(0o711)
    uri = f"{libvirtd.uri}-ro"
    home.folder.chmod(0o755)
    options = home.command("--config", str(home.config))[1:]
    done = run_as_nobody(*options, "guests", "twin1", "--json", "--connect", uri)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    (one,) = told["guests"]
    assert one["rss_bytes"] > 16 * MIB
    assert (one["can_merge"], one["obstacles"]) == (True, [])
    assert [one[name] for name in ("merged_bytes", "saved_bytes", "cost_bytes", "profit_bytes", "kernel")] == [None] * 5
    assert told["left_over"] is None
    assert told["host"]["pages_shared"] == ksm.read("pages_shared")
    (note,) = told["notes"]
    assert "run this as root" in note
    count = 4 + len(BACKINGS)
    assert f"of {count} guests are for root to read" in run_as_nobody(*options, "guests", "--connect", uri).stdout
    assert json.loads(run_as_nobody(*options, "headroom", "--json", "--connect", uri).stdout)["guests"] == count


def check_far(ksm: Ksm, home: AgentHome, uri: str, running: RunningGuest) -> None:
    """Of another machine it tells what libvirt tells."""
    told = home.told("guests", "twin1", "--connect", uri)
    (one,) = told["guests"]
    assert told["source"] == "libvirt"
    assert abs(one["rss_bytes"] - psutil.Process(running.pid).memory_info().rss) <= 8 * MIB
    assert (one["memory_bytes"], one["can_merge"], one["kernel"], one["saved_bytes"]) == (32 * MIB, True, None, None)
    assert told["host"]["pages_sharing"] == ksm.read("pages_sharing")
    assert [told["host"][name] for name in ("ksm_run", "ksm_zero_pages", "profit_bytes")] == [None] * 3
    assert "run this command there" in told["notes"][0]
    headroom = home.told("headroom", "--connect", uri)
    assert headroom["risk"]["swap_free_bytes"] is None
    assert headroom["room_bytes"]["safe"] > 0


@pytest.mark.needs("general_profit", "ksm_zero_pages", "ksm_stat:ksm_process_profit")
def test_the_sums_are_the_kernels_own_counters_to_the_page_and_what_an_ended_guest_leaves_is_left_over(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    ksm.write(use_zero_pages=1)
    guests = guest.together(*(twin(number, own_mib=4, zero_mib=2) for number in (1, 2, 3)))
    ksm.merge_all()
    pids = {one.pid for one in guests}
    shared, sharing = ksm.read("pages_shared"), ksm.read("pages_sharing")
    others = merging_pages_of_others(pids)
    assert sum(map(merging_pages, pids)) + others == shared + sharing

    told = agent_home.told("guests", "--connect", libvirtd.uri)
    left, host = told["left_over"], told["host"]
    assert (host["pages_shared"], host["pages_sharing"]) == (shared, sharing)
    assert host["saved_bytes"] == (sharing + ksm.read("ksm_zero_pages")) * PAGE
    assert host["profit_bytes"] == ksm.read("general_profit")
    assert left["merging_bytes"] == sum(one["merging_bytes"] for one in left["processes"]) == others * PAGE
    if not others:  # nobody else on this machine offers memory to KSM
        assert (left["zero_bytes"], left["cost_bytes"]) == (0, 0)
        assert 0 <= left["saved_bytes"] <= len(guests)
    saved_bytes = sum(one["saved_bytes"] for one in told["guests"])
    assert saved_bytes + left["saved_bytes"] == host["saved_bytes"]
    for one in map(counted, pids):
        assert one.profit_bytes is not None
        assert one.rmap_items is not None
        assert one.merging_pages is not None
        assert one.zero_pages is not None
        cost_bytes = (one.merging_pages + one.zero_pages) * PAGE - one.profit_bytes
        assert cost_bytes == one.rmap_items * ITEM_BYTES
        assert one.zero_pages > 0

    pages = merging_pages(guests[0].pid)
    guests[0].domain.destroy()
    text = agent_home.run("guests", "--connect", libvirtd.uri).stdout
    told = agent_home.told("guests", "--connect", libvirtd.uri)
    assert set(by_name(told)) == {"twin2", "twin3"}
    assert pages >= COMMON_MIB * MIB // PAGE
    assert of_ended(told) >= pages * PAGE
    assert "of processes that have exited" in text
    ksm.merge_all()
    assert of_ended(agent_home.told("guests", "--connect", libvirtd.uri)) < pages * PAGE


@pytest.mark.needs("ksm_stat:ksm_merge_any")
def test_nosharepages_that_systemds_memoryksm_overrules_is_seen_also_by_doctor(
    ksm: Ksm, payload: Path, agent_home: AgentHome
) -> None:
    daemon = PrivateLibvirtd(cache=QEMU_CACHE)
    # As MemoryKSM= does: PR_SET_MEMORY_MERGE before the daemon is executed, for it and all that it starts.
    merging = "import ctypes, os, sys; ctypes.CDLL(None).prctl(67, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    daemon._reaper = [sys.executable, "-c", merging, *daemon._reaper]
    with daemon:
        connection = libvirt.open(daemon.uri)
        consoles = [daemon.root / f"console{number}" for number in (1, 2)]
        for number, console in enumerate(consoles):
            start_guest(connection, twin(number, nosharepages=True), kernel=payload, console=console)
        for console in consoles:
            wait_settled(console, HANG_S)
        ksm.merge_all()
        told = agent_home.told("guests", "--connect", daemon.uri)
        connection.close()
        agent_home.configure('private_guests = ["twin1"]\n')
        judged = json.loads(agent_home.run("doctor", "--json", "--connect", daemon.uri).stdout)["findings"]
    assert [
        (one["verdict"], one["detail"].endswith(": twin1")) for one in judged if one["check"] == "private_guests"
    ] == [("FAIL", True)]
    for one in told["guests"]:
        assert (one["can_merge"], one["kernel"]["ksm_merge_any"]) == (True, True)
        assert one["merged_bytes"] >= COMMON_MIB * MIB
    assert [note for note in told["notes"] if "nosharepages is overruled for 2 guests" in note]
