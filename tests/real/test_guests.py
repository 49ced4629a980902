"""`virtksm guests` and `virtksm headroom` on real guests, with the kernel's own counters as witness."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import psutil
import pytest

from demo.guests import PayloadGuest, start_guest, wait_settled
from tests.lab.fixtures import QEMU_CACHE, GuestFactory, RunningGuest
from tests.lab.ksm import Ksm, merging_pages, merging_pages_of_others
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import AgentHome
from virtksm.guests.process import ProcessKsm
from virtksm.guests.savings import ITEM_BYTES
from virtksm.host.local_facts import read_guest_process

pytestmark = pytest.mark.real

Json = dict[str, Any]
MIB = 1024 * 1024
PAGE = 4096
COMMON_MIB = 12
BACKINGS = {
    "shared": "<source type='memfd'/><access mode='shared'/>",
    "memfd": "<source type='memfd'/>",
    "file": "<source type='file'/><access mode='private'/>",
}


def twin(number: int, **options: Any) -> PayloadGuest:  # noqa: ANN401  # PayloadGuest's own
    return PayloadGuest(name=f"twin{number}", memory_mib=32, common_mib=COMMON_MIB, seed=number, **options)


def run(home: AgentHome, *arguments: str) -> Json:
    done = home.run(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


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
            domains.append(connection.createXML(xml))
        for name in BACKINGS:
            wait_settled(daemon.root / f"console-{name}", 60.0)
        yield
    finally:
        for domain in domains:
            domain.destroy()


def test_what_each_guest_saves_or_why_not_is_shown_to_each_user(
    ksm: Ksm,
    guest: GuestFactory,
    libvirtd: PrivateLibvirtd,
    libvirt_conn: libvirt.virConnect,
    payload: Path,
    agent_home: AgentHome,
) -> None:
    agent_home.configure("")
    empty = run(agent_home, "headroom", "--connect", libvirtd.uri)
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
        check_order(agent_home, libvirtd.uri)
        check_headroom(ksm, agent_home, libvirtd.uri)
        check_without_root(ksm, agent_home, libvirtd)
        check_far(ksm, agent_home, libvirtd.far_uri, running[0])


def check_guests(home: AgentHome, uri: str, twins: list[RunningGuest]) -> None:
    """Twins save alike, and each guest that cannot merge says why."""
    found = by_name(run(home, "guests", "--connect", uri))
    assert set(found) == {"twin1", "twin2", "big", "apart", *BACKINGS}
    few = run(home, "guests", "twin2", found["apart"]["uuid"], "--connect", uri)
    assert by_name(few) == {name: found[name] for name in ("twin2", "apart")}
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
    for name in ("shared", "memfd"):
        assert (found[name]["can_merge"], found[name]["obstacles"]) == (False, ["shared_memory"])
        assert found[name]["merged_bytes"] < 4 * MIB, "only what lies beside its RAM merges"


def check_order(home: AgentHome, uri: str) -> None:
    """Guests stand in the order asked for, by default by what they save."""
    orders: dict[tuple[str, ...], list[str]] = {
        (): ["twin1", "big", "apart"],
        ("--sort", "memory"): ["big", "apart", "twin1"],
        ("--sort", "name"): ["apart", "big", "twin1"],
    }
    for order, names in orders.items():
        done = home.run("guests", *order, "--connect", uri)
        assert (done.returncode, done.stderr) == (0, "")
        heading, *lines = done.stdout.split("\n\n")[0].splitlines()
        assert heading.split() == ["NAME", "MEMORY", "RSS", "SAVED", "PROFIT", "CAN", "MERGE"]
        shown = [line.split()[0] for line in lines]
        assert [name for name in shown if name in names] == names
        (apart,) = [line for line in lines if line.startswith("apart")]
        assert apart.endswith("no: nosharepages in its XML")
        assert "48.0 MiB" in apart
        assert "Host " in done.stdout


def check_headroom(ksm: Ksm, home: AgentHome, uri: str) -> None:
    """Headroom is what the host has, less what the guests that run may take."""
    told = run(home, "headroom", "--connect", uri)
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
    uri = libvirtd.uri.replace("libvirt-sock", "libvirt-sock-ro")
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
    told = run(home, "guests", "twin1", "--connect", uri)
    (one,) = told["guests"]
    assert told["source"] == "libvirt"
    assert abs(one["rss_bytes"] - psutil.Process(running.pid).memory_info().rss) <= 8 * MIB
    assert (one["memory_bytes"], one["can_merge"], one["kernel"], one["saved_bytes"]) == (32 * MIB, True, None, None)
    assert told["host"]["pages_sharing"] == ksm.read("pages_sharing")
    assert [told["host"][name] for name in ("ksm_run", "ksm_zero_pages", "profit_bytes")] == [None] * 3
    assert "run this command there" in told["notes"][0]
    headroom = run(home, "headroom", "--connect", uri)
    assert headroom["risk"]["swap_free_bytes"] is None
    assert headroom["room_bytes"]["safe"] > 0


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

    told = run(agent_home, "guests", "--connect", libvirtd.uri)
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
    told = run(agent_home, "guests", "--connect", libvirtd.uri)
    assert set(by_name(told)) == {"twin2", "twin3"}
    assert pages >= COMMON_MIB * MIB // PAGE
    assert of_ended(told) >= pages * PAGE
    assert "of processes that have exited" in text
    ksm.merge_all()
    assert of_ended(run(agent_home, "guests", "--connect", libvirtd.uri)) < pages * PAGE


def test_another_process_that_merges_is_named(ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    program = (
        "import mmap; m = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); "
        "m.madvise(12); m.madvise(15); m.write(b'virtksm!' * (1 << 22)); print('up', flush=True); input()"
    )
    with subprocess.Popen(["python3", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        ksm.merge_all()
        told = run(agent_home, "guests", "--connect", libvirtd.uri)
        text = agent_home.run("guests", "--connect", libvirtd.uri).stdout
        other.kill()
    (found,) = [one for one in told["left_over"]["processes"] if one["pid"] == other.pid]
    assert found["merging_bytes"] == 32 * MIB
    assert f"8192 of python3 (pid {other.pid})" in text
    assert text.startswith("no guest runs\n")


def test_ksm_that_is_off_is_every_guests_obstacle(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    guest(twin(1), settle=False)
    ksm.write(run=2)
    (one,) = run(agent_home, "guests", "--connect", libvirtd.uri)["guests"]
    assert (one["can_merge"], one["obstacles"]) == (False, ["ksm_off"])
    assert "KSM is off" in agent_home.run("headroom", "--connect", libvirtd.uri).stdout


def test_mem_merge_off_on_qemus_own_command_line_is_seen(
    libvirtd: PrivateLibvirtd, libvirt_conn: libvirt.virConnect, payload: Path, agent_home: AgentHome
) -> None:
    qemu = "http://libvirt.org/schemas/domain/qemu/1.0"
    arguments = "".join(f"<q:arg value='{value}'/>" for value in ("-machine", "mem-merge=off"))
    xml = twin(1).domain_xml(payload, None)
    xml = xml.replace("</domain>", f"<q:commandline xmlns:q='{qemu}'>{arguments}</q:commandline></domain>")
    domain = libvirt_conn.createXML(xml)
    try:
        for uri in (libvirtd.uri, libvirtd.far_uri):
            (one,) = run(agent_home, "guests", "--connect", uri)["guests"]
            assert one["obstacles"] == ["mem_merge_off"]
            assert one["kernel"] is None or one["kernel"]["ksm_mergeable"] is False
    finally:
        domain.destroy()


@pytest.mark.parametrize("command", ["guests", "headroom"])
def test_no_libvirt_is_exit_code_3_and_no_ksm_is_4(agent_home: AgentHome, command: str) -> None:
    done = agent_home.run(command, "--connect", f"qemu:///system?socket={agent_home.folder}/none")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 2
    assert agent_home.run(command, "--connect", "test:///default").returncode == 4


def test_the_reserve_is_that_of_the_policy_in_force(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    total_kib = psutil.virtual_memory().total // 1024
    for config, reserve_kib in (
        ("[adaptive]\nreserve_percent = 10\n", total_kib // 10),
        ('policy = "ksmtuned"\n[ksmtuned]\nthres_coef = 0\nthres_const = 4096\n', 4096),
    ):
        agent_home.configure(config)
        assert run(agent_home, "headroom", "--connect", libvirtd.uri)["reserve_bytes"] == reserve_kib * 1024


def test_nosharepages_that_systemds_memoryksm_overrules_is_seen(ksm: Ksm, payload: Path, agent_home: AgentHome) -> None:
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
            wait_settled(console, 60.0)
        ksm.merge_all()
        told = run(agent_home, "guests", "--connect", daemon.uri)
        connection.close()
    for one in told["guests"]:
        assert (one["can_merge"], one["kernel"]["ksm_merge_any"]) == (True, True)
        assert one["merged_bytes"] >= COMMON_MIB * MIB
    assert [note for note in told["notes"] if "nosharepages is overruled for 2 guests" in note]
