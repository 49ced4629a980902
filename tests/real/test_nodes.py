"""merge_across_nodes is changed on the real kernel, through a real libvirt, while guests share pages: they do so again.

systemd's part, which is to write KSM's switch, is the test's; tests/boot/units.py has it do that itself.
"""

from __future__ import annotations

import pytest

from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import HANG_S, STEPPING_LAW, SWEEPING_LAW, AgentFactory, AgentHome
from virtksm.cli.nodes import change_nodes, set_nodes
from virtksm.config.load import load
from virtksm.host.clock import boottime_s
from virtksm.host.libvirt_connection import open_host
from virtksm.host.local_facts import ProcFacts

pytestmark = pytest.mark.real

COMMON_MIB = 16
SCANNING_LAW = STEPPING_LAW.replace("npages_min = 1", "npages_min = 20000")
NEVER_LAW = f'{SWEEPING_LAW}merge_across_nodes = "never"\n'


@pytest.fixture
def libvirtd(small_pages_libvirtd: PrivateLibvirtd) -> PrivateLibvirtd:
    """Guests of small pages: merged pages are counted here."""
    return small_pages_libvirtd


@pytest.mark.parametrize(
    ("law", "has_agent"),
    [(SWEEPING_LAW, True), (NEVER_LAW, True), (SCANNING_LAW, True), (SCANNING_LAW, False)],
    ids=["adaptive", "adaptive-never", "ksmtuned", "ksmtuned-without-agent"],
)
def test_what_is_merged_is_unmerged_for_it_and_merges_again_under_either_policy_and_without_an_agent(
    ksm: Ksm,
    libvirtd: PrivateLibvirtd,
    guest: GuestFactory,
    start_agent: AgentFactory,
    agent_home: AgentHome,
    law: str,
    has_agent: bool,  # of the table
) -> None:
    ksm.write(use_zero_pages=0)
    guest.together(
        *(PayloadGuest(name=f"twin{seed}", memory_mib=32, common_mib=COMMON_MIB, seed=seed) for seed in (1, 2))
    )
    ksm.write(pages_to_scan=1000)
    wait_until(lambda: ksm.read("pages_shared") > 0, HANG_S, "a page to be shared")
    home, facts = start_agent(law).home if has_agent else agent_home, ProcFacts(boottime_s)
    home.configure(law)
    host = open_host(libvirtd.uri)
    unmerged = []

    def retune() -> None:
        done = home.run("retune", "--connect", libvirtd.uri)
        assert done.returncode == 0, done.stderr

    def have_merged() -> None:
        wait_until(lambda: ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB, HANG_S, "the twins to merge")

    def unmerge() -> None:
        ksm.write(run=2)
        unmerged.append(ksm.read("pages_shared"))

    def start(unit: str) -> int:
        assert unit == "virtksm-ksm.service"
        ksm.write(run=1)
        return 0

    def change(wanted: str) -> None:
        change_nodes(
            wanted,
            load(str(home.config), asks_groups=False).config,
            facts,
            unmerge=unmerge,
            retune=retune,
            set_value=lambda value: set_nodes(host, facts, value),
            start=start,
        )

    retune()
    have_merged()
    change("never")
    assert (ksm.read("merge_across_nodes"), ksm.read("run"), unmerged) == (0, 1, [0])
    have_merged()
    change("never")
    assert unmerged == [0], "it is so already"
