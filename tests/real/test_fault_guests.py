"""Faults of guests under a pass: they vanish, appear, hang and are renamed while it runs."""

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from tests.lab.fixtures import GuestFactory, RunningGuest, tiny
from tests.lab.hang import HANG_S
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import AgentFactory, AgentHome
from virtksm.config.load import load
from virtksm.host.libvirt_connection import open_host
from virtksm.host.local_facts import ProcFacts, boottime_s
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import Outcome
from virtksm.paths import RuntimePaths
from virtksm.tuning.cycle import Cycle
from virtksm.values import replace
from virtksm.wiring import make_cycle

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

RETUNE = Triggers(kinds=frozenset({Trigger.RETUNE}))


class Meddler:
    """Does `happen` before the call number `at` of a pass; of several by the same name only the first counts."""

    def __init__(self, at: int, happen: Callable[[], None]) -> None:
        self._at = at
        self._happen = happen
        self.calls: list[str] = []

    def around(self, cycle: Cycle[Any]) -> Cycle[Any]:
        local = None if cycle.local is None else Meddled(cycle.local, self._before)
        return replace(cycle, hypervisor=Meddled(cycle.hypervisor, self._before), local=local)

    def _before(self, name: str) -> None:
        if name not in self.calls:
            self.calls.append(name)
            if len(self.calls) == self._at:
                self._happen()


class Meddled:
    """A port before whose every call something may happen."""

    def __init__(self, port: Any, before: Callable[[str], None]) -> None:  # noqa: ANN401 - any of the ports
        self._port = port
        self._before = before

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the port's
        found = getattr(self._port, name)
        if not callable(found):
            return found

        def call(*arguments: object, **named: object) -> object:
            self._before(name)
            return found(*arguments, **named)

        return call


@pytest.fixture(params=["local", "libvirt"])
def cycle(request: pytest.FixtureRequest, libvirtd: PrivateLibvirtd, agent_home: AgentHome) -> Cycle[Any]:
    """Lend a cycle on the real host, told by /proc or by libvirt alone."""
    made = make_cycle(
        open_host(libvirtd.uri),
        load(str(agent_home.config)).config,
        RuntimePaths(str(agent_home.runtime_dir)),
        facts=ProcFacts(boottime_s),
    )
    return made if request.param == "local" else replace(made, local=None)


def test_guests_that_appear_and_vanish_at_any_point_of_a_pass_harm_nothing(
    cycle: Cycle[Any], guest: GuestFactory, libvirt_conn: libvirt.virConnect
) -> None:
    started: list[RunningGuest] = []

    def appear() -> None:
        started.append(guest(tiny(f"guest{len(started)}"), paused=True))

    def vanish() -> None:
        started.pop().crash()
        wait_until(lambda: len(libvirt_conn.listAllDomains()) == len(started), HANG_S, "libvirt to notice")

    def counted_too_many(at: int, happen: Callable[[], None]) -> int | None:
        """Run a pass with something happening before its call number `at`; None if it has fewer calls."""
        meddler = Meddler(at, happen)
        report = meddler.around(cycle).run(RETUNE)
        if len(meddler.calls) < at:
            return None
        assert report.outcome is Outcome.APPLIED
        assert report.refusals == ()
        return len(report.snapshot.guests) - len(started)

    points = itertools.count(1)
    appeared = list(iter(lambda: counted_too_many(next(points), appear), None))
    assert appeared == sorted(appeared, reverse=True)
    assert set(appeared) == {0, -1}, "it appeared before and after the guests were listed"

    vanished = [counted_too_many(at, vanish) for at in range(1, len(appeared) + 1)]
    assert {0, 1} <= set(vanished) <= {0, 1, None}, "it vanished before and after it was counted"
    assert len(cycle.run(RETUNE).snapshot.guests) == len(started)


def test_a_guest_whose_monitor_hangs_does_not_hold_up_a_pass(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent()
    hung = guest(tiny("hung"), settle=False)
    agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        line = agent.step()
        assert (line["sensed"]["guests"], line["sensed"]["guests_unread"]) == (1, 0)
        guest(tiny("other"), settle=False)
        line = agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 2)
        assert ksm.read("pages_to_scan") == line["after"]["pages_to_scan"]
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    assert agent.lines("pass_failed") == []


def test_a_renamed_domain_is_the_same_guest(start_agent: AgentFactory, libvirt_conn: libvirt.virConnect) -> None:
    defined = libvirt_conn.defineXML(
        "<domain type='qemu'><name>before</name><memory unit='MiB'>16</memory>"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"
    )
    try:
        agent = start_agent()
        defined.create()
        agent.wait_for("event_received", lambda line: (line["guest"], line["trigger"]) == ("before", "started"))
        agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)
        defined.destroy()
        agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 0)
        defined.rename("after")
        defined.create()
        agent.wait_for("event_received", lambda line: (line["guest"], line["trigger"]) == ("after", "started"))
        line = agent.wait_for("pass_completed", lambda line: line["sensed"]["guests"] == 1)
        assert line["sensed"]["guests_unread"] == 0
        assert agent.lines("pass_failed") == []
    finally:
        if defined.isActive():
            defined.destroy()
        defined.undefine()
