"""merge_across_nodes is changed on the real kernel, through a real libvirt, while guests share pages: they do so again.

systemd's part, which is to write KSM's switch, is the test's; tests/boot/units.py has it do that itself.
"""

from subprocess import CompletedProcess

import pytest

from demo.guests import PAGES_PER_MIB, PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import STEPPING_LAW, SWEEPING_LAW, AgentFactory, AgentHome
from virtksm.cli.layout import to_lines
from virtksm.cli.main import parse
from virtksm.cli.nodes import change_here
from virtksm.host.local_facts import ProcFacts, boottime_s

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
    [(NEVER_LAW, True), (SCANNING_LAW, True), (SCANNING_LAW, False)],
    ids=["adaptive", "ksmtuned", "without-agent"],
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

    def have_merged() -> None:
        wait_until(lambda: ksm.read("pages_sharing") >= COMMON_MIB * PAGES_PER_MIB, HANG_S, "the twins to merge")

    have_merged()  # a single shared page may be written to before the agent looks
    home = start_agent(law).home if has_agent else agent_home
    home.configure(law)
    unmerged = []

    def run(*arguments: str) -> CompletedProcess[str]:
        done = home.run(*arguments, "--connect", libvirtd.uri)
        assert done.returncode == 0, done.stderr
        return done

    def unmerge() -> None:
        ksm.write(run=2)
        unmerged.append(ksm.read("pages_shared"))

    def start(unit: str) -> int:
        assert unit == "virtksm-ksm.service"
        ksm.write(run=1)
        return 0

    _, *command = home.command("unmerge", "--merge-across-nodes", "never", "--connect", libvirtd.uri)
    run("retune")
    have_merged()
    told = to_lines(change_here(parse(command), ProcFacts(boottime_s), unmerge=unmerge, start=start))
    assert (ksm.read("merge_across_nodes"), ksm.read("run"), unmerged) == (0, 1, [0])
    assert told[0] == "NUMA       merge_across_nodes is 0: each NUMA node merges its own pages"
    assert told[-1] == "KSM        on: memory merges again"
    have_merged()
    assert run("unmerge", "--merge-across-nodes", "never").stdout.splitlines()[0] == told[0], "it is so already"


def test_where_nothing_is_merged_it_is_set_at_once_and_what_is_merged_stays_where_no_systemd_unmerges_it(
    ksm: Ksm, libvirtd: PrivateLibvirtd, guest: GuestFactory, agent_home: AgentHome
) -> None:
    agent_home.configure(SCANNING_LAW)
    done = agent_home.run("unmerge", "--merge-across-nodes", "never", "--connect", libvirtd.uri)
    assert (done.returncode, ksm.read("merge_across_nodes"), ksm.read("run")) == (0, 0, 1)
    assert "Note       until the next boot; a line of tmpfiles.d keeps it" in done.stdout
    guest.together(*(PayloadGuest(name=f"twin{seed}", memory_mib=24, common_mib=8, seed=seed) for seed in (1, 2)))
    ksm.merge_all()
    merged = ksm.read("pages_sharing")
    assert merged > 0
    done = agent_home.run("unmerge", "--merge-across-nodes", "always", "--connect", libvirtd.uri)
    assert (done.returncode, ksm.read("merge_across_nodes"), ksm.read("run")) == (1, 0, 1)
    assert "this host has no virtksm-unmerge.service" in done.stderr
    assert ksm.read("pages_sharing") >= merged
