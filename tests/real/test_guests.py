"""`virtksm guests` and `virtksm headroom` on real guests, with the kernel's own counters as witness."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import psutil
import pytest

from demo.guests import PayloadGuest, start_guest, wait_settled
from tests.lab.fixtures import QEMU_CACHE, GuestFactory
from tests.lab.ksm import Ksm, merging_pages, merging_pages_of_others
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import run_as_nobody
from tests.real.agent_process import AgentHome
from virtksm.guests.process import ProcessKsm
from virtksm.guests.savings import ITEM_BYTES
from virtksm.host.local_facts import read_guest_process

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

Json = dict[str, Any]
MIB = 1024 * 1024
PAGE = 4096
COMMON_MIB = 16
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
    """Count the merging pages that are left over and of no process that runs."""
    left = told["left_over"]
    return int(left["merging_pages"] - sum(one["merging_pages"] for one in left["processes"]))


def by_name(told: Json) -> dict[str, Json]:
    return {one["name"]: one for one in told["guests"]}


def counted(pid: int) -> ProcessKsm:
    process = read_guest_process(pid)
    assert process is not None
    assert process.ksm is not None
    return process.ksm


@pytest.fixture
def backed(libvirtd: PrivateLibvirtd, libvirt_conn: libvirt.virConnect, payload: Path) -> Iterator[dict[str, int]]:
    """Lend guests whose RAM lies behind a memfd or a file; return their pids."""
    domains, pids = [], {}
    try:
        for name, backing in BACKINGS.items():
            spec = PayloadGuest(name=name, memory_mib=32, common_mib=COMMON_MIB, seed=20)
            console = libvirtd.root / f"console-{name}"
            console.unlink(missing_ok=True)
            xml = spec.domain_xml(payload, console)
            xml = xml.replace("<vcpu>", f"<memoryBacking>{backing}</memoryBacking><vcpu>")
            domains.append(libvirt_conn.createXML(xml))
            wait_settled(console, 60.0)
            pids[name] = libvirtd.guest_pid(name)
        yield pids
    finally:
        for domain in domains:
            domain.destroy()


def test_twins_save_alike_and_each_guest_that_cannot_merge_says_why(
    ksm: Ksm, guest: GuestFactory, backed: dict[str, int], libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    running = [guest(twin(1)), guest(twin(2))]
    guest(PayloadGuest(name="apart", memory_mib=32, common_mib=COMMON_MIB, nosharepages=True))
    ksm.merge_all()
    told = run(agent_home, "guests", "--connect", libvirtd.uri)
    found = by_name(told)
    assert set(found) == {"twin1", "twin2", "apart", *backed}
    few = run(agent_home, "guests", "twin2", found["apart"]["uuid"], "--connect", libvirtd.uri)
    assert by_name(few) == {name: found[name] for name in ("twin2", "apart")}
    missed = agent_home.run("guests", "twin2", "gone", "--connect", libvirtd.uri)
    assert (missed.returncode, missed.stdout) == (1, "")
    assert "no running guest is called gone" in missed.stderr

    for name in ("twin1", "twin2", "file"):
        one = found[name]
        assert (one["can_merge"], one["obstacles"]) == (True, [])
        assert one["merged_bytes"] >= COMMON_MIB * MIB
        assert one["saved_bytes"] >= COMMON_MIB * MIB / 2
        assert one["profit_bytes"] == one["saved_bytes"] - one["cost_bytes"]
    assert abs(found["twin1"]["saved_bytes"] - found["twin2"]["saved_bytes"]) < MIB
    for started in running:
        rss_bytes = psutil.Process(started.pid).memory_info().rss
        assert abs(found[started.spec.name]["rss_bytes"] - rss_bytes) <= 8 * MIB
    assert (found["twin1"]["memory_bytes"], found["twin1"]["maximum_bytes"]) == (32 * MIB, 32 * MIB)

    apart = found["apart"]
    assert (apart["can_merge"], apart["obstacles"]) == (False, ["nosharepages"])
    assert (apart["merged_bytes"], apart["saved_bytes"], apart["kernel"]["ksm_mergeable"]) == (0, 0, False)
    for name in ("shared", "memfd"):
        assert (found[name]["can_merge"], found[name]["obstacles"]) == (False, ["shared_memory"])
        assert found[name]["merged_bytes"] < 4 * MIB, "only what lies beside its RAM merges"


def test_the_sums_are_the_kernels_own_counters_to_the_page(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    ksm.write(use_zero_pages=1)
    guests = [guest(twin(number, own_mib=4, zero_mib=2)) for number in (1, 2, 3)]
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
    assert left["merging_pages"] == sum(one["merging_pages"] for one in left["processes"]) == others
    if not others:  # nobody else on this machine offers memory to KSM
        assert (left["zero_pages"], left["cost_bytes"]) == (0, 0)
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


def test_what_an_ended_guest_leaves_is_left_over_until_ksmd_comes_by(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    guest(twin(1))
    ended = guest(twin(2))
    ksm.merge_all()
    pages = merging_pages(ended.pid)
    ended.domain.destroy()
    text = agent_home.run("guests", "--connect", libvirtd.uri).stdout
    told = run(agent_home, "guests", "--connect", libvirtd.uri)
    assert list(by_name(told)) == ["twin1"]
    assert pages >= COMMON_MIB * MIB // PAGE
    assert of_ended(told) >= pages
    assert "of processes that have exited" in text
    ksm.merge_all()
    assert of_ended(run(agent_home, "guests", "--connect", libvirtd.uri)) < pages


def test_another_process_that_merges_is_named(ksm: Ksm, libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    program = (
        "import mmap; m = mmap.mmap(-1, 128 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); "
        "m.madvise(12); m.madvise(15); m.write(b'virtksm!' * (1 << 24)); print('up', flush=True); input()"
    )
    with subprocess.Popen(["python3", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        ksm.merge_all()
        told = run(agent_home, "guests", "--connect", libvirtd.uri)
        text = agent_home.run("guests", "--connect", libvirtd.uri).stdout
        other.kill()
    (found,) = [one for one in told["left_over"]["processes"] if one["pid"] == other.pid]
    assert found["merging_pages"] == 32768
    assert f"32768 of python3 (pid {other.pid})" in text
    assert text.startswith("no guest runs\n")


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ((), ["twin1", "big", "apart"]),
        (("--sort", "saved"), ["twin1", "big", "apart"]),
        (("--sort", "memory"), ["big", "apart", "twin1"]),
        (("--sort", "name"), ["apart", "big", "twin1"]),
    ],
)
def test_guests_stand_in_the_order_asked_for(
    ksm: Ksm,
    guest: GuestFactory,
    libvirtd: PrivateLibvirtd,
    agent_home: AgentHome,
    order: tuple[str, ...],
    names: list[str],
) -> None:
    for number in (1, 2):  # so that each saves clearly more than the big one
        guest(twin(number))
    guest(PayloadGuest(name="big", memory_mib=64, common_mib=8, seed=2))
    guest(PayloadGuest(name="apart", memory_mib=48, common_mib=8, seed=3, nosharepages=True))
    ksm.merge_all()
    done = agent_home.run("guests", *order, "--connect", libvirtd.uri)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *lines = done.stdout.split("\n\n")[0].splitlines()
    assert heading.split() == [
        *("GUEST", "MEMORY", "MAXIMUM", "RSS", "MERGED", "UNMERGED", "SAVED", "COST", "PROFIT", "CAN", "MERGE"),
    ]
    shown = [line.split()[0] for line in lines]
    assert "twin2" in shown
    assert [name for name in shown if name != "twin2"] == names
    (apart,) = [line for line in lines if line.startswith("apart")]
    assert apart.endswith("no: nosharepages in its XML")
    assert "48.0 MiB" in apart
    assert "host " in done.stdout


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


def test_without_root_the_kernels_word_is_missing_and_the_rest_is_told(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    guest(twin(1))
    ksm.merge_all()
    libvirtd.root.chmod(0o711)
    uri = libvirtd.uri.replace("libvirt-sock", "libvirt-sock-ro")
    agent_home.folder.chmod(0o755)
    options = agent_home.command("--config", str(agent_home.config))[1:]
    done = run_as_nobody(*options, "guests", "--json", "--connect", uri)
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
    assert "1 guest is for root to read" in run_as_nobody(*options, "guests", "--connect", uri).stdout
    assert json.loads(run_as_nobody(*options, "headroom", "--json", "--connect", uri).stdout)["guests"] == 1


def test_of_another_machine_it_tells_what_libvirt_tells(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    running = guest(twin(1))
    ksm.merge_all()
    remote = libvirtd.far_uri
    told = run(agent_home, "guests", "--connect", remote)
    (one,) = told["guests"]
    assert told["source"] == "libvirt"
    assert abs(one["rss_bytes"] - psutil.Process(running.pid).memory_info().rss) <= 8 * MIB
    assert (one["memory_bytes"], one["can_merge"], one["kernel"], one["saved_bytes"]) == (32 * MIB, True, None, None)
    assert told["host"]["pages_sharing"] == ksm.read("pages_sharing")
    assert [told["host"][name] for name in ("ksm_run", "ksm_zero_pages", "profit_bytes")] == [None] * 3
    assert "run this command there" in told["notes"][0]
    agent_home.configure("")
    headroom = run(agent_home, "headroom", "--connect", remote)
    assert headroom["risk"]["swap_free_kib"] is None
    assert headroom["room_kib"]["safe"] > 0


def test_headroom_is_what_the_host_has_less_what_runs_may_take(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    agent_home.configure("")
    empty = run(agent_home, "headroom", "--connect", libvirtd.uri)
    assert (empty["guests"], empty["growth_kib"]) == (0, 0)
    guest(twin(1))
    guest(twin(2))
    guest(PayloadGuest(name="grows", memory_mib=256, own_mib=4))
    ksm.merge_all()
    told = run(agent_home, "headroom", "--connect", libvirtd.uri)
    room, risk = told["room_kib"], told["risk"]
    assert told["guests"] == 3
    assert 128 * 1024 < told["growth_kib"] < 256 * 1024
    assert 0 < told["merge_ratio"] < 0.5
    merged_kib = (ksm.read("pages_shared") + ksm.read("pages_sharing")) * 4
    assert risk["unmerging_kib"] == merged_kib
    assert room["safe"] == told["available_kib"] - told["reserve_kib"] - told["growth_kib"] - merged_kib
    assert room["unmerged"] == room["safe"] + merged_kib
    assert room["at_ratio"] > room["unmerged"]
    assert risk["needed_kib"] == merged_kib + told["growth_kib"] + room["at_ratio"]
    text = agent_home.run("headroom", "--connect", libvirtd.uri).stdout
    assert "ksmd is idle" in text
    assert "(safe)" in text


@pytest.mark.parametrize("command", ["guests", "headroom"])
def test_no_libvirt_is_exit_code_3_and_no_ksm_is_4(agent_home: AgentHome, command: str) -> None:
    done = agent_home.run(command, "--connect", f"qemu:///system?socket={agent_home.folder}/none")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert agent_home.run(command, "--connect", "test:///default").returncode == 4


def test_the_reserve_is_that_of_the_policy_in_force(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    total_kib = psutil.virtual_memory().total // 1024
    for config, reserve_kib in (
        ("[adaptive]\nreserve_percent = 10\n", total_kib // 10),
        ('policy = "ksmtuned"\n[ksmtuned]\nthres_coef = 0\nthres_const = 4096\n', 4096),
    ):
        agent_home.configure(config)
        assert run(agent_home, "headroom", "--connect", libvirtd.uri)["reserve_kib"] == reserve_kib


def test_nosharepages_that_systemds_memoryksm_overrules_is_seen(ksm: Ksm, payload: Path, agent_home: AgentHome) -> None:
    daemon = PrivateLibvirtd(cache=QEMU_CACHE)
    # As MemoryKSM= does: PR_SET_MEMORY_MERGE before the daemon is executed, for it and all that it starts.
    merging = "import ctypes, os, sys; ctypes.CDLL(None).prctl(67, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    daemon._reaper = [sys.executable, "-c", merging, *daemon._reaper]
    with daemon:
        connection = libvirt.open(daemon.uri)
        for number in (1, 2):
            console = daemon.root / f"console{number}"
            start_guest(connection, twin(number, nosharepages=True), kernel=payload, console=console)
            wait_settled(console, 60.0)
        ksm.merge_all()
        told = run(agent_home, "guests", "--connect", daemon.uri)
        connection.close()
    for one in told["guests"]:
        assert (one["can_merge"], one["kernel"]["ksm_merge_any"]) == (True, True)
        assert one["merged_bytes"] >= COMMON_MIB * MIB
    assert [note for note in told["notes"] if "nosharepages is overruled for 2 guests" in note]
