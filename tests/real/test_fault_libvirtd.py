"""Faults of libvirt's daemon: killed again and again, gone in the middle of a sweep, wedged."""

import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import libvirt
import psutil
import pytest

from demo.guests import PayloadGuest
from tests.lab.churn import Churn, end_guests
from tests.lab.fixtures import GuestFactory
from tests.lab.footprint import AGENTS_THREADS, calm_footprint, read_footprint, still_footprint
from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import DEFAULTS, IDLE, Ksm, wait_agreed, wait_until
from tests.lab.libvirtd import PrivateLibvirtd, restarted_after_crashes
from tests.real.agent_process import STEPPING_LAW, SWEEPING_LAW, AgentFactory, AgentHome, AgentProcess
from tests.real.test_off import declare_private
from virtksm.policy.adaptive.full_scans import FED_SLEEPS_MS

pytestmark = pytest.mark.real

KILLS = 6
WARM_KILLS = 3
"""After so many the allocator has what it needs."""
MAX_GROWTH_KIB = 2 * 2048
"""By one huge page the heap may grow."""


def listed(libvirtd: PrivateLibvirtd) -> list[str]:
    """Name the guests that the daemon says to run: one that it was killed over may have no process."""
    connection = libvirt.open(libvirtd.uri)
    try:
        return [domain.name() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)]
    finally:
        connection.close()


def count_processes(libvirtd: PrivateLibvirtd, names: Iterable[str]) -> int:
    processes, found = set(libvirtd.processes()), 0
    for name in names:
        with suppress(OSError):  # not even a pid
            found += libvirtd.guest_pid(name) in processes
    return found


def test_libvirtd_killed_again_and_again_while_guests_come_and_go_costs_no_guest_and_no_growth(
    ksm: Ksm, libvirtd: PrivateLibvirtd, payload: Path, start_agent: AgentFactory, request: pytest.FixtureRequest
) -> None:
    agent = start_agent(is_forked=False)
    churn = Churn(libvirtd.uri, payload)
    request.addfinalizer(lambda: end_guests(libvirtd))
    request.addfinalizer(churn.end)
    churn.start()
    warm = calm_footprint(agent.pid)
    for kill in range(KILLS):
        started = churn.started
        wait_until(lambda started=started: churn.started > started, HANG_S, "a guest to start")  # type: ignore[misc]
        libvirtd.kill()
        agent.wait_for("libvirt_disconnected")
        libvirtd.start()
        agent.wait_for("libvirt_connected")
        agent.wait_for_pass()
        if kill + 1 == WARM_KILLS:
            warm = calm_footprint(agent.pid)
    churn.end()

    def seen_and_there() -> tuple[object, object]:
        last, names = agent.step(), listed(libvirtd)
        seen = (last["sensed"]["guests"], last["sensed"]["guests_unread"], last["after"]["pages_to_scan"])
        return seen, (len(names), len(names) - count_processes(libvirtd, names), ksm.read("pages_to_scan"))

    wait_agreed(seen_and_there, HANG_S, "the last event to be heard")
    assert ksm.read("pages_to_scan") >= len(agent.lines("pass_completed"))
    assert agent.lines("foreign_value_found") == []
    now = calm_footprint(agent.pid)
    assert {*now.held} == {*warm.held}
    assert now.descriptors - warm.descriptors <= 1, "of one connection that died, not of each, may be left to be freed"
    assert now.processes == count_processes(libvirtd, listed(libvirtd)) + 1, "ksmd is one, too"
    assert now.rss_kib - warm.rss_kib < MAX_GROWTH_KIB
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS


def test_a_stranded_sweep_does_one_batch_a_minute_and_is_ended_by_what_comes_back(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory, guest: GuestFactory, agent_home: AgentHome
) -> None:
    def sweeping(*starting: PayloadGuest) -> AgentProcess:
        agent = start_agent(SWEEPING_LAW + "cpu_percent = 1\n")
        for spec in starting:
            guest(spec, settle=False)
        agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "full_scan")
        return agent

    def is_stranded() -> bool:
        return ksm.read("pages_to_scan") > 0 and ksm.read("sleep_millisecs") in FED_SLEEPS_MS

    restore = ("restore", "--on-exit", "--connect", libvirtd.uri)  # what the unit runs afterwards
    found = (10, 1000)  # so that ksmd gets on with the sweep only while an agent sweeps
    ksm.write(pages_to_scan=found[0], sleep_millisecs=found[1])
    twins = (PayloadGuest(name=f"twin{seed}", memory_mib=48, common_mib=24, own_mib=16, seed=seed) for seed in (1, 2))
    sweeping(*twins).kill()
    assert is_stranded(), "the agent has died"
    assert agent_home.run(*restore).returncode == 0
    assert ksm.settings() == found

    agent = sweeping()
    libvirtd.kill()
    agent.kill()
    assert agent_home.run(*restore).returncode == 3
    assert is_stranded(), "both have died"
    libvirtd.start()
    assert agent_home.run(*restore).returncode == 0
    assert ksm.settings() == found

    agent = sweeping()
    libvirtd.kill()
    agent.wait_for("libvirt_disconnected")
    assert is_stranded(), "libvirt has died"
    told = agent.home.told("status")
    assert (told["libvirt"]["connected"], told["stranded"]["possible"]) == (False, True)
    assert told["stranded"]["worst_core_percent"] < 10
    agent_home.configure(SWEEPING_LAW)
    libvirtd.start()
    agent.wait_for("libvirt_connected")
    agent.wait_for_pass()
    agent.reload()
    agent.wait_for("pass_completed", lambda line: line["decision"]["rule"] == "idle")
    wait_agreed(lambda: ((agent.step()["decision"]["rule"], ksm.settings()), ("idle", IDLE)), HANG_S, "ksmd to be idle")


def test_a_libvirtd_wedged_before_the_connection_costs_one_thread_and_is_found_when_it_goes_on(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    libvirtd.pause()
    try:
        agent = start_agent(f"call_timeout_s = {SLOWER}\nreconnect_max_ms = 100\n{STEPPING_LAW}", connected=False)
        first = agent.wait_for("libvirt_unreachable")
        assert f"open: no answer within {SLOWER} s" in first["error"]
        again = agent.wait_for("libvirt_unreachable")
        assert "still waiting for an earlier call: open" in again["error"]
        still_footprint(agent.pid, threads=AGENTS_THREADS + 1)
        with ThreadPoolExecutor() as pool:
            for done in pool.map(lambda _: agent.home.run("retune", "--connect", agent.uri), range(6)):
                assert (done.returncode, "still waiting for an earlier call: open" in done.stderr) == (3, True), (
                    "it answers at once"
                )
        told = agent.home.told("status")["libvirt"]
        assert (told["connected"], told["answers"]) == (False, False)
        assert told["waiting_for"] in ("a connection", "open")
        assert "not answering" in agent.home.run("status").stdout
        still_footprint(agent.pid, threads=AGENTS_THREADS + 1)
        assert ksm.settings() == DEFAULTS
    finally:
        libvirtd.resume()
    agent.wait_for("libvirt_connected")
    agent.wait_for_pass("connected")
    calm_footprint(agent.pid)


def test_a_libvirtd_that_is_frozen_in_passes_again_and_again_costs_no_descriptor(
    libvirtd: PrivateLibvirtd, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    guest(PayloadGuest(name="one", memory_mib=16), settle=False)
    agent = start_agent(f"call_timeout_s = {SLOWER}\nkeepalive_s = {SLOWER}\nreconnect_max_ms = 100\n{STEPPING_LAW}")
    before = calm_footprint(agent.pid)
    for _ in range(2):
        with restarted_after_crashes(libvirtd):
            libvirtd.pause()
            try:
                agent.signal(signal.SIGUSR1)
                agent.wait_for("libvirt_disconnected")
            finally:
                libvirtd.resume()
            agent.wait_for("libvirt_connected")
            agent.wait_for_pass()
    assert agent.lines("pass_failed")
    wait_until(
        lambda: read_footprint(agent.pid).descriptors == before.descriptors,
        HANG_S,
        f"{before.descriptors} descriptors as before",
    )


def test_a_far_host_that_goes_silent_while_it_is_asked_about_guests_is_asked_again(
    libvirtd: PrivateLibvirtd, start_agent: AgentFactory, guest: GuestFactory
) -> None:
    guest(PayloadGuest(name="one", memory_mib=16), settle=False)
    keys = f"call_timeout_s = {SLOWER}\nkeepalive_s = {SLOWER}\n{STEPPING_LAW}"
    agent = start_agent(keys, uri=libvirtd.far_uri)

    def relays() -> list[psutil.Process]:
        """Return that of passes and that for what is asked of guests."""
        return sorted(psutil.Process(agent.pid).children(), key=lambda one: one.create_time())

    wait_agreed(lambda: (len(relays()), 2), HANG_S, "both connections")
    silent = relays()
    try:
        silent[-1].suspend()
        declare_private(libvirtd.uri, "one")
        agent.signal(signal.SIGUSR1)  # a list is out, too: over another connection
        agent.wait_for("guest_xml_unreadable")
        silent = relays()
        for one in silent:
            one.suspend()
        agent.signal(signal.SIGUSR1)
        agent.wait_for("libvirt_disconnected")
        agent.wait_for("libvirt_connected")
        assert agent.wait_for("private_guest_exposed")["guest"] == "one"
        calm_footprint(agent.pid)
    finally:
        for one in silent:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def test_a_libvirtd_wedged_for_good_does_not_keep_the_agent_from_ending(
    ksm: Ksm, libvirtd: PrivateLibvirtd, start_agent: AgentFactory
) -> None:
    agent = start_agent(f"call_timeout_s = {SLOWER}\nkeepalive_s = 3600\n{STEPPING_LAW}")
    libvirtd.pause()
    try:
        assert agent.stop() == 3
    finally:
        libvirtd.resume()
    assert f"no answer within {SLOWER} s" in agent.lines("settings_left")[0]["error"]
    assert agent.home.run("restore", "--connect", agent.uri).returncode == 0
    assert ksm.settings() == DEFAULTS
