"""The agent's metrics, asked by a real Prometheus: they say what the status says, and asking costs no pass anything."""

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from demo.guests import PayloadGuest
from tests.lab.dashboard import HOSTS, as_asked, expressions, read_dashboard
from tests.lab.fixtures import GuestFactory
from tests.lab.footprint import calm_footprint, read_footprint
from tests.lab.hang import HANG_S, SLOWER
from tests.lab.ksm import KSM_ROOT, wait_agreed, wait_until
from tests.lab.libvirtd import PrivateLibvirtd
from tests.lab.ports import free_port
from tests.lab.prometheus import PrivatePrometheus, configured, fetch, promtool
from tests.real.agent_process import PARKING_LAW, STEPPING_LAW, UNSETTLED_LAW, AgentFactory, AgentProcess
from virtksm.agent.metrics.server import MAX_CLIENTS

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ksm")]

MAX_RSS_KIB = 54 * 1024
"""45 MiB is the goal without metrics (docs/benchmarks.md), and the library with what it imports costs 3 more.

Debian 13's shared libraries, libcrypto and Python above all, take 3 MiB more than Debian 12's.
"""
SHARES = (
    "sum(virtksm_guest_saved_bytes) + sum(virtksm_guests_other_saved_bytes) + sum(virtksm_unattributed_saved_bytes)"
)
BACKLOG_STATES = ("settling", "new", "scanned_once", "exited")


@pytest.fixture
def port() -> int:
    return free_port()


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/metrics"


def listening(port: int, law: str) -> str:
    return f'{law}\n[metrics]\nlisten = "127.0.0.1:{port}"\n'


def value(page: str, series: str) -> float:
    """Return one series' value in an exposition."""
    (found,) = [line.removeprefix(f"{series} ") for line in page.splitlines() if line.startswith(f"{series} ")]
    return float(found)


@pytest.fixture
def scraped(port: int, tmp_path: Path) -> Iterator[PrivatePrometheus]:
    """Lend a Prometheus that scrapes `port`, with the configuration and the rules of conf/prometheus."""
    prometheus = PrivatePrometheus(configured(tmp_path / "prometheus", [{"targets": [f"127.0.0.1:{port}"]}]))
    try:
        yield prometheus
    finally:
        prometheus.close()


@pytest.mark.needs("general_profit", "ksm_stat:ksm_process_profit")
def test_a_prometheus_is_told_what_the_status_says(
    start_agent: AgentFactory, guest: GuestFactory, port: int, scraped: PrivatePrometheus
) -> None:
    agent = start_agent(listening(port, UNSETTLED_LAW), is_forked=False)
    for seed in (1, 2):
        guest(PayloadGuest(name=f"twin{seed}", memory_mib=24, common_mib=12, own_mib=4, seed=seed))
    agent.sweep()
    scraped.wait_for("virtksm_up == 1")  # Prometheus begins five seconds after its start
    agent.step()
    every_query_of_the_dashboard_and_of_the_rules_returns_something(scraped)

    wait_agreed(lambda: differences(scraped, agent), HANG_S, "Prometheus to have come by since the last pass")
    for state in BACKLOG_STATES:
        scraped.wait_for(f'virtksm_backlog_bytes{{state="{state}"}}')
    scraped.wait_for('virtksm_pass_triggers_total{trigger="started",result="unchanged"} >= 1')

    checked = promtool("check", "metrics", text=fetch(url(port)))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert read_footprint(agent.pid).rss_kib < MAX_RSS_KIB

    agent.home.configure(listening(port, UNSETTLED_LAW) + "guests = 1\n")
    agent.reload()
    wait_until(lambda: fetch(url(port)).count("\nvirtksm_guest_saved_bytes{") == 1, HANG_S, "the reload to be told")


def differences(scraped: PrivatePrometheus, agent: AgentProcess) -> tuple[dict[str, float | None], dict[str, float]]:
    """Return what Prometheus has otherwise than the status, the commands and the kernel, and what they have.

    While ksmd scans, all of it changes from moment to moment.
    """
    expected = figures(agent)
    found = {expression: scraped.query(expression) for expression in expected}
    values = {expression: float(series[0]["value"][1]) if series else None for expression, series in found.items()}
    differing = [one for one, value in expected.items() if values[one] != pytest.approx(float(value), abs=0.01)]
    return {one: values[one] for one in differing}, {one: expected[one] for one in differing}


def figures(agent: AgentProcess) -> dict[str, float]:
    """Return what each query is to return, by the agent's log and status, its commands and the kernel."""
    passes, status = agent.lines("pass_completed"), agent.home.told("status")
    last, now = status["last_pass"], status["now"]
    guests: dict[str, Any] = agent.home.told("guests", "--connect", agent.uri)
    saved = {one["name"]: one["saved_bytes"] for one in guests["guests"]}
    assert sorted(saved) == ["twin1", "twin2"]
    assert now["saved_bytes"] > 0
    return {
        "virtksm_up": 1,
        "virtksm_saved_bytes": now["saved_bytes"],
        "100 * instance:virtksm_saved:ratio": now["saved_percent"],
        "virtksm_ksmd_cpu_seconds_total": now["ksmd_cpu_seconds"],
        "virtksm_guests": now["guests"],
        "virtksm_guests_resident_bytes": now["committed_bytes"],
        "virtksm_libvirt_answers": status["libvirt"]["answers"],
        f'virtksm_last_pass_result{{result="{last["outcome"]}"}}': 1,
        'virtksm_backlog_bytes{state="new"}': last["decision"]["numbers"]["new_bytes"],
        'virtksm_room_bytes{assumption="safe"}': status["room_bytes"]["safe"],
        "virtksm_places_per_page": (now["pages_shared"] + now["pages_sharing"]) / now["pages_shared"],
        "sum(virtksm_decisions_total)": len(passes),
        "virtksm_pass_duration_seconds_count": len(passes),
        **{f'virtksm_guest_saved_bytes{{domain="{name}"}}': saved_bytes for name, saved_bytes in saved.items()},
        SHARES: now["saved_bytes"],
        "virtksm_guests_unaccounted": 0,
        "virtksm_profit_bytes": int((KSM_ROOT / "general_profit").read_text(encoding="ascii")) + now["freed_bytes"],
    }


EMPTY_HERE = {"virtksm_refusals_total": "nothing was refused"}
"""Queries of the dashboard that rightly return nothing in this test."""


def every_query_of_the_dashboard_and_of_the_rules_returns_something(scraped: PrivatePrometheus) -> None:
    scraped.wait_for("rate(virtksm_event_to_applied_seconds_count[1m]) > 0")
    queries = [as_asked(expression, rate="1m") for expression in expressions(read_dashboard(HOSTS))]
    assert len(queries) > 30
    may_be_empty = {query for query in queries if any(part in query for part in EMPTY_HERE)}
    assert len(may_be_empty) == len(EMPTY_HERE)
    for query in queries:
        if query in may_be_empty:
            assert scraped.query(query) == [], query
        else:
            scraped.wait_for(query)

    known = scraped.rules()
    wait_until(lambda: {rule["health"] for rule in scraped.rules()} == {"ok"}, HANG_S, "every rule to be evaluated")
    assert sum(rule["type"] == "alerting" for rule in known) == 14
    for rule in known:
        if rule["type"] == "recording":
            scraped.wait_for(rule["name"])
    assert scraped.query('ALERTS{alertstate="firing"}') == []


def test_while_libvirt_hangs_it_is_answered_and_says_so(
    libvirtd: PrivateLibvirtd, start_agent: AgentFactory, port: int
) -> None:
    law = f"call_timeout_s = {SLOWER}\nkeepalive_s = 3600\n{STEPPING_LAW}"
    agent = start_agent(listening(port, law))
    libvirtd.pause()
    try:
        agent.signal(signal.SIGUSR1)
        agent.wait_for("pass_failed")
        wait_until(lambda: value(fetch(url(port)), "virtksm_libvirt_answers") == 0, HANG_S, "the silence to be told")
        page = fetch(url(port))
        assert value(page, "virtksm_libvirt_connected") == 1
        assert value(page, "virtksm_stranded_possible") == 1
        assert value(page, "virtksm_worst_core_ratio") > 0
        assert value(page, 'virtksm_last_pass_result{result="failed"}') == 1
        assert value(page, 'virtksm_pass_triggers_total{result="failed",trigger="signal"}') == 1
        status = agent.home.told("status")
        assert status["libvirt"]["waiting_for"] in {"a list of the guests", "pass"}, "by the time limit"
        assert status["libvirt"]["silent_s"] > 2
        assert f"no answer within {SLOWER} s" in status["libvirt"]["error"]
        assert status["stranded"]["possible"] is True
    finally:
        libvirtd.resume()
    wait_until(lambda: value(fetch(url(port)), "virtksm_libvirt_answers") == 1, HANG_S, "libvirt to answer again")
    safe = "a pass to have slowed ksmd down, or to be possible"
    wait_until(lambda: agent.home.told("status")["stranded"]["possible"] is False, HANG_S, safe)


def is_answered(port: int) -> bool:
    try:
        return "virtksm_up 1" in fetch(url(port))
    except OSError:
        return False


def test_a_reload_opens_moves_and_closes_the_port_and_the_file_which_goes_with_the_agent(
    start_agent: AgentFactory, port: int, tmp_path: Path
) -> None:
    agent = start_agent(PARKING_LAW)
    assert not is_answered(port)
    with socket.create_server(("127.0.0.1", port)):
        agent.home.configure(listening(port, PARKING_LAW))
        agent.reload()
        agent.reload()
        told, again = agent.lines("metrics_unavailable")
        assert told["error"] == f"metrics.listen 127.0.0.1:{port}: Address already in use"
        assert (told["level"], again["level"]) == ("warning", "debug")
    agent.reload()
    page = fetch(url(port))
    assert value(page, 'virtksm_pass_triggers_total{result="applied",trigger="connected"}') == 1, "it was off then"
    file = tmp_path / "virtksm.prom"
    agent.home.configure(f'{PARKING_LAW}\n[metrics]\ntextfile = "{file}"\ntextfile_s = 1\n')
    agent.reload()
    assert not is_answered(port)
    passes = len(agent.lines("pass_completed"))
    wait_until(lambda: file.exists() and has_passes(file, passes), HANG_S, "the file to be written with all passes")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    text = file.read_text(encoding="utf-8")
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert agent.stop() == 0
    assert list(tmp_path.iterdir()) == []


def has_passes(file: Path, least: int) -> bool:
    series = 'virtksm_passes_total{result="'
    counts = [line.rpartition(" ")[2] for line in file.read_text().splitlines() if line.startswith(series)]
    return sum(map(float, counts)) >= least


def test_without_the_library_it_names_package_and_key_and_what_is_off_is_not_imported(
    start_agent: AgentFactory, port: int, tmp_path: Path
) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('No module named prometheus_client')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    agent = start_agent(PARKING_LAW, environ={"PYTHONPATH": path})
    assert agent.lines("metrics_unavailable") == []
    agent.home.configure(listening(port, PARKING_LAW))
    agent.reload()
    (told,) = agent.lines("metrics_unavailable")
    assert "prometheus_client" in told["error"]
    assert "python3-prometheus-client" in told["remedy"]
    assert "metrics.listen" in told["remedy"]
    agent.step()
    assert agent.stop() == 0


def test_a_thousand_connections_keep_nobody_from_being_answered_and_no_pass_from_running(
    start_agent: AgentFactory, port: int
) -> None:
    agent = start_agent(listening(port, PARKING_LAW))
    assert is_answered(port)
    before = calm_footprint(agent.pid)
    with ExitStack() as idle:
        for number in range(1000):
            client = idle.enter_context(socket.create_connection(("127.0.0.1", port), HANG_S))
            client.sendall(b"GET /metrics HTTP/1.1\r\n" if number % 2 else b"")
            if number % 250 == 249:
                assert is_answered(port)
                agent.step()
        during = read_footprint(agent.pid)
        assert during.descriptors - before.descriptors <= MAX_CLIENTS + 4
        assert during.threads - before.threads <= 3, "a pass, the history and guests' XML have one each"
        assert is_answered(port)
    assert agent.stop() == 0
