"""What people see in a terminal of 80 columns, and some of it in one of 120: tests/terminal has the recordings.

As root, as a member of the group and as nobody; with an agent, without one, without libvirt.
"""

import grp
import shlex
from collections.abc import Callable

import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.forked import Start
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.nobody import NOBODY
from tests.lab.pseudo_terminal import PseudoTerminal
from tests.lab.terminal_recording import find_differences
from tests.real.agent_process import UNSETTLED_LAW, AgentFactory, AgentHome

pytestmark = pytest.mark.real

GROUP = "daemon"
LAW = f'status_group = "{GROUP}"\n{UNSETTLED_LAW}'
WITH_AGENT = {
    "status": "status",
    "status-verbose": "status --verbose",
    "guests": "guests --sort name",
    "guests-all": "guests --sort name --output all",
    "guests-names": "guests --sort name --output name --no-header",
    "headroom": "headroom",
    "explain": "explain --last 1",
    "explain-verbose": "explain --last 1 --verbose",
    "doctor-group": "doctor --only guests --all",
    "doctor-typo": "doctor --only gests",
}
FOR_NOBODY = {"status": "status", "guests": "guests --sort name", "headroom": "headroom", "explain": "explain"}
FOR_GROUP = {"status": "status", "explain": "explain --last 1", "wait": "wait --settled --timeout 0"}
WITHOUT_AGENT = {
    "status": "status",
    "explain": "explain --last 1",
    "guests": "guests --sort name",
    "headroom": "headroom",
    "wait": "wait --settled --timeout 0",
    "record": "trace record /dev/null",
}
WITHOUT_LIBVIRT = {
    "status": "status",
    "guests": "guests",
    "headroom": "headroom",
    "explain": "explain",
    "retune": "retune",
    "restore": "restore",
    "wait": "wait --settled --timeout 0",
    "doctor-group": "doctor --only libvirt",
}
ELSEWHERE = {"doctor": "doctor", "fleet": "fleet status"}
ACTING = {
    "pause": "pause",
    "verify-off": "verify-off",
    "unmerge-check": "unmerge --check",
    "unmerge": "unmerge",
    "resume": "resume",
    "restore": "restore",
}
HELP = {
    "help": "help",
    "pause": "help pause",
    "config": "help config",
    "replay": "help trace replay",
    "nothing": "",
    "typo": "stauts",
    "option": "status --al",
}
NOT_FOR_NOBODY = {"pause": "pause", "retune": "retune", "restore": "restore", "unmerge": "unmerge"}
BOTH_WIDTHS = ("root", "help")
"""Scenes that are looked at in both widths; the others' lines are wrapped by the same code."""
AWAY = "qemu+unix://nowhere.invalid/system?socket=/nonexistent/socket"


def compare(scene: str, shown: dict[str, str], start: Callable[..., Start], uri: str) -> None:
    """Compare what each command of a scene shows with its recordings."""
    faults, widths = [], (80, 120) if scene in BOTH_WIDTHS else (80,)
    for name, words in shown.items():
        arguments = [*shlex.split(words), "--connect", uri]
        faults += find_differences(f"{scene}-{name}", f"virtksm {words}", start(*arguments), widths)
    assert not faults, "\n".join(faults)


@pytest.mark.needs("ksm_stat:ksm_mergeable")
def test_everybody_sees_what_is_theirs_to_see(
    start_agent: AgentFactory, guest: GuestFactory, libvirtd: PrivateLibvirtd
) -> None:
    agent = start_agent(LAW)
    home = agent.home
    for spec in (
        *(PayloadGuest(name=f"web-{seed}", memory_mib=32, common_mib=16, own_mib=8, seed=seed) for seed in (1, 2)),
        PayloadGuest(name="仮想マシン", memory_mib=24, common_mib=16, nosharepages=True),
    ):
        guest(spec).domain.suspend()  # memory that grows now and then would be another decision
    agent.sweep()
    compare("root", WITH_AGENT, home.start, agent.uri)
    watched = PseudoTerminal(home.command("guests", "--watch", "0.2", "--connect", agent.uri))
    try:
        watched.wait_for_frame("web-1")
        watched.type(b"q")
        assert watched.wait_ended() == 0
    finally:
        watched.close()

    home.folder.chmod(0o755)

    def as_nobody(*words: str) -> Start:
        return home.start(*words)._replace(user=NOBODY)

    def as_member(*words: str) -> Start:
        return home.start(*words)._replace(user=NOBODY, groups=(grp.getgrnam(GROUP).gr_gid,))

    compare("group", FOR_GROUP, as_member, agent.uri)
    libvirtd.root.chmod(0o755)
    readers = f"{agent.uri}-ro"
    seen = {name: words for name, words in FOR_NOBODY.items() if name not in FOR_GROUP}
    compare("group", seen, as_member, readers)
    compare("nobody", FOR_NOBODY, as_nobody, readers)
    compare("nobody", NOT_FOR_NOBODY, as_nobody, agent.uri)

    assert agent.stop() == 0
    compare("alone", WITHOUT_AGENT, home.start, agent.uri)


@pytest.mark.usefixtures("ksm")
def test_what_acts_says_what_it_has_done(libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> None:
    agent_home.configure(UNSETTLED_LAW)
    compare("acting", ACTING, agent_home.start, libvirtd.uri)


def test_the_help_and_wrong_usage_fit_the_terminal() -> None:
    compare("help", HELP, lambda *words: Start([*words]), "qemu:///system")


def test_the_configuration_is_shown(agent_home: AgentHome) -> None:
    agent_home.configure(UNSETTLED_LAW)
    shown = {"path": "config path", "check": "config check", "version": "version"}
    compare("config", shown, agent_home.start, "qemu:///system")


@pytest.mark.usefixtures("ksm")
def test_without_libvirt_and_of_another_machine_what_is_known_is_told(agent_home: AgentHome) -> None:
    compare("no-libvirt", WITHOUT_LIBVIRT, agent_home.start, "qemu:///system?socket=/nonexistent/socket")
    compare("elsewhere", ELSEWHERE, agent_home.start, AWAY)
