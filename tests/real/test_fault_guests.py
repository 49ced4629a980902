"""Faults of guests under a pass: they vanish, appear, hang and are renamed while it runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import libvirt
import pytest

from demo.guests import PayloadGuest
from tests.lab.fixtures import GuestFactory
from tests.lab.ksm import Ksm, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.real.agent_process import HANG_S, AgentFactory, AgentHome
from virtksm.config.load import load
from virtksm.host.clock import boottime_s
from virtksm.host.libvirt_connection import open_host
from virtksm.host.local_facts import ProcFacts
from virtksm.model.decision import Trigger, Triggers
from virtksm.model.report import Outcome
from virtksm.paths import RuntimePaths
from virtksm.tuning.cycle import Cycle
from virtksm.wiring import make_cycle

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

RETUNE = Triggers(kinds=frozenset({Trigger.RETUNE}))
MAX_POINTS = 30


def tiny(name: str) -> PayloadGuest:
    return PayloadGuest(name=name, memory_mib=16, own_mib=1)


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


class Meddler:
    """Does `happen` before the call number `at` of a pass."""

    def __init__(self, at: int, happen: Callable[[], None]) -> None:
        self._at = at
        self._happen = happen
        self.calls: list[str] = []

    def before(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self._at:
            self._happen()


def meddled(cycle: Cycle[Any], meddler: Meddler) -> Cycle[Any]:
    local = None if cycle.local is None else Meddled(cycle.local, meddler.before)
    return replace(cycle, hypervisor=Meddled(cycle.hypervisor, meddler.before), local=local)


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


def names(connection: libvirt.virConnect) -> set[str]:
    return {domain.name() for domain in connection.listAllDomains()}


def each_point(cycle: Cycle[Any], happen: Callable[[int], Callable[[], None]]) -> list[int]:
    """Run a pass for each of its calls, with something happening before it; return the guests that each has counted."""
    counted: list[int] = []
    for at in range(1, MAX_POINTS):
        meddler = Meddler(at, happen(at))
        report = meddled(cycle, meddler).run(RETUNE)
        if len(meddler.calls) < at:
            return counted
        assert report.outcome is Outcome.APPLIED
        assert report.refusals == ()
        counted.append(len(report.snapshot.guests))
    raise AssertionError(f"a pass has more than {MAX_POINTS} calls")


def test_a_guest_that_vanishes_at_any_point_of_a_pass_harms_nothing(
    cycle: Cycle[Any], guest: GuestFactory, libvirt_conn: libvirt.virConnect
) -> None:
    guest(tiny("stays"), settle=False)

    def happen(at: int) -> Callable[[], None]:
        for domain in libvirt_conn.listAllDomains():
            if domain.name() != "stays":
                domain.destroy()
        victim = guest(tiny(f"goes{at}"), settle=False)

        def vanish() -> None:
            victim.crash()
            wait_until(lambda: names(libvirt_conn) == {"stays"}, HANG_S, "libvirt to notice")

        return vanish

    counted = each_point(cycle, happen)
    assert set(counted) == {1, 2}, "it vanished before and after it was counted"
    assert len(cycle.run(RETUNE).snapshot.guests) == 2, "the last victim had nothing to vanish before"


def test_a_domain_list_that_grows_at_any_point_of_a_pass_harms_nothing(cycle: Cycle[Any], guest: GuestFactory) -> None:
    def happen(at: int) -> Callable[[], None]:
        def appear() -> None:
            guest(tiny(f"new{at}"), settle=False)

        return appear

    counted = each_point(cycle, happen)
    assert counted == sorted(counted)
    assert counted[-1] == len(counted) - 1 or counted[-1] == len(counted)
    assert len(cycle.run(RETUNE).snapshot.guests) == len(counted)


def test_a_guest_whose_monitor_hangs_does_not_hold_up_a_pass(
    ksm: Ksm, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    agent = start_agent()
    hung = guest(tiny("hung"))
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
