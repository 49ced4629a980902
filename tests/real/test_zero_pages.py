"""What huge pages give back when ksmd splits them, which no counter of KSM's tells: what it is, and would be."""

import json
import re
from pathlib import Path

import psutil
import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory, RunningGuest
from tests.lab.guest_memory import mergeable_kib, zero_mapped_kib
from tests.lab.hang import HANG_S
from tests.lab.ksm import IDLE, Ksm, merging_pages, wait_agreed, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import SWEEPING_LAW, AgentFactory, AgentHome, AgentProcess, Line, wait_until_covered
from virtksm.host.local_facts import parse_vmstat
from virtksm.policy.adaptive.changes import OWN_PAGES

pytestmark = pytest.mark.real

MIB = 1 << 20
VMSTAT = Path("/proc/vmstat")
ZERO_MIB, OWN_MIB, GUESTS = 120, 40, 3


def scrubbed(number: int) -> PayloadGuest:
    return PayloadGuest(name=f"scrubbed{number}", memory_mib=192, zero_mib=ZERO_MIB, own_mib=OWN_MIB, seed=number)


def resident_bytes(running: list[RunningGuest]) -> int:
    return sum(psutil.Process(one.pid).memory_info().rss for one in running)


def zero_bytes(running: list[RunningGuest]) -> int:
    return sum(zero_mapped_kib(one.pid) * 1024 for one in running)


def collapsed() -> int:
    """Count the huge pages that khugepaged has made; each takes back the zero pages in it, whoever has freed them."""
    return parse_vmstat(VMSTAT.read_text(encoding="ascii"), "thp_collapse_alloc") or 0


def cover(ksm: Ksm, agent: AgentProcess, guest: GuestFactory) -> tuple[list[RunningGuest], Line, int]:
    """Start guests and wait until ksmd is idle again; return them, that pass, and the bytes that came free."""
    running = guest.together(*map(scrubbed, range(1, GUESTS + 1)))
    line = wait_until_covered(agent, GUESTS)
    full = max(one["sensed"]["committed_bytes"] for one in agent.lines("pass_completed"))
    wait_until(lambda: ksm.settings() == IDLE, HANG_S, "ksmd to be idle")
    came_free = full - resident_bytes(running)
    assert came_free >= 0.9 * GUESTS * ZERO_MIB * MIB, "nearly all zero pages"
    return running, line, came_free


@pytest.mark.needs("ksm_zero_pages", "vmstat:thp_underused_split_page", "huge_pages")
def test_what_huge_pages_give_back_is_saved_gain_to_the_law_and_gone_with_its_guest(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    """Guests of which most is zero, as Windows leaves it, in QEMU's own huge pages."""
    ksm.write(use_zero_pages=1)
    collapsed_before = collapsed()
    agent = start_agent(SWEEPING_LAW)
    running, line, came_free = cover(ksm, agent, guest)
    assert line["decision"]["numbers"]["merge_ratio"] > 0.5, "it has merged more than was expected"

    def by_status() -> dict[str, int]:
        return dict(agent.home.told("status")["now"])

    def saved_and_freed() -> tuple[tuple[int, int], tuple[int, int]]:
        told, now = agent.home.told("guests", "--connect", agent.uri), by_status()
        freed = sum(one["freed_bytes"] for one in told["guests"])
        return (told["host"]["saved_bytes"], freed), (now["saved_bytes"], now["freed_bytes"])

    wait_agreed(saved_and_freed, HANG_S, "the status and the list of the guests to say the same")
    now = by_status()
    unmapped = now["freed_bytes"] + now["ksm_zero_pages"] * now["page_bytes"]
    assert now["saved_bytes"] == unmapped + now["pages_sharing"] * now["page_bytes"]
    taken_back = (collapsed() - collapsed_before) * 2 * MIB  # some of it perhaps since the last pass
    assert unmapped <= zero_bytes(running) + taken_back + MIB, "it is hardly too high"
    assert unmapped == pytest.approx(came_free, rel=0.05)

    running[0].domain.destroy()
    agent.step()
    left = agent.home.told("status")["now"]["freed_bytes"]
    assert left == pytest.approx(now["freed_bytes"] * (GUESTS - 1) / GUESTS, rel=0.05)

    assert agent.stop() == 0
    idle = resident_bytes(running[1:])
    ksm.merge_all()
    assert idle - resident_bytes(running[1:]) <= 0.02 * came_free, "flat out finds next to nothing more"
    alone = json.loads(agent.home.run("status", "--json", "--connect", agent.uri).stdout)["now"]["freed_bytes"]
    assert alone == pytest.approx(left, rel=0.02), "what is free stays free when the agent has gone"


@pytest.mark.needs("vmstat:thp_underused_split_page", "huge_pages")
def test_beside_the_agents_own_zero_pages_those_in_huge_pages_come_free_without_use_zero_pages(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    """Without those, about one huge page in a full scan."""
    ksm.write(use_zero_pages=0)
    agent = start_agent(SWEEPING_LAW)
    _, line, _ = cover(ksm, agent, guest)
    assert line["decision"]["numbers"]["other_processes_bytes"] == 0, "the agent's own are no other process's"
    assert agent.home.run("pause", "--connect", agent.uri).returncode == 0
    assert len(mergeable_kib(agent.pid)) == 1, "they keep their place before the guests"
    assert agent.home.run("resume", "--connect", agent.uri).returncode == 0
    agent.home.configure(SWEEPING_LAW.replace('"adaptive"', '"observe"'))
    agent.reload()
    assert mergeable_kib(agent.pid) == []


@pytest.mark.needs("ksm_zero_pages")
def test_once_use_zero_pages_is_off_again_the_agents_own_zero_pages_merge_again(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    """They had become the kernel's own, which KSM passes over."""
    ksm.write(use_zero_pages=1)
    agent = start_agent(SWEEPING_LAW)
    guest(scrubbed(1))
    wait_until_covered(agent, 1)
    ksm.write(use_zero_pages=0)
    agent.step()
    guest(scrubbed(2))
    wait_until_covered(agent, 2)
    assert merging_pages(agent.pid) == OWN_PAGES


@pytest.mark.needs("huge_pages")
def test_beside_guests_that_are_older_the_agent_takes_its_zero_pages_with_the_first_full_scan(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    """As after a boot. What that brings depends on where ksmd is at that moment (docs/benchmarks.md, huge)."""
    ksm.write(pages_to_scan=0)
    guest.together(*map(scrubbed, range(1, GUESTS + 1)))
    agent = start_agent(SWEEPING_LAW)
    wait_until_covered(agent, GUESTS)
    assert len(mergeable_kib(agent.pid)) == 1


@pytest.mark.needs("ksm_zero_pages", "vmstat:thp_underused_split_page", "huge_pages")
def test_doctor_as_root_measures_what_use_zero_pages_would_bring(
    ksm: Ksm, guest: GuestFactory, libvirtd: PrivateLibvirtd, agent_home: AgentHome
) -> None:
    ksm.write(pages_to_scan=0)
    running = guest.together(*map(scrubbed, range(1, GUESTS + 1)))

    def find(told: str) -> dict[str, str]:
        (found,) = [one for one in json.loads(told)["findings"] if one["check"] == "use_zero_pages"]
        return dict(found)

    command = ("doctor", "--connect", libvirtd.uri, "--json")
    found = find(agent_home.run(*command).stdout)
    assert found["verdict"] == "WARN", found
    zero_mib, present_mib = (float(mib) for mib in re.findall(r"([0-9.]+) MiB", found["detail"]))
    assert zero_mib == pytest.approx(GUESTS * ZERO_MIB, rel=0.2), "a sample: it is as far off once in a billion times"
    assert present_mib >= GUESTS * (ZERO_MIB + OWN_MIB)
    assert "USE_ZERO_PAGES=1" in found["remedy"]
    ksm.write(use_zero_pages=1)
    assert find(agent_home.run(*command).stdout)["verdict"] == "PASS"
    assert zero_bytes(running) < MIB, "it has read nothing that was not there"
