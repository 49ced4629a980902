"""Configuration, rules and dashboard for many hosts, by real Prometheus servers and pages of the agent's own making.

A scrape may be too late on a busy machine, and its host missing for a moment: it has two seconds, all is waited for.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.lab.dashboard import FLEET, as_asked, read_dashboard
from tests.lab.fleet_metrics import OLD_VERSION, Fleet
from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_agreed
from tests.lab.ports import free_port
from tests.lab.prometheus import RULES, PrivatePrometheus, configured, list_targets
from virtksm import __version__

pytestmark = pytest.mark.real

HOSTS, LISTED_FIRST, REFUSING = 10, 8, 3


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(HOSTS, guests=3, refusing=frozenset({REFUSING})) as fleet:
        yield fleet


def wait_for(read: Callable[[], object], expected: object) -> None:
    wait_agreed(lambda: (read(), expected), HANG_S, "Prometheus to say so")


def by_label(prometheus: PrivatePrometheus, label: str, expression: str) -> dict[str, float]:
    return {one["metric"][label]: float(one["value"][1]) for one in prometheus.query(expression)}


def saved_bytes(fleet: Fleet, hosts: int) -> dict[str, float]:
    """Return what the first hosts of each cluster save, so many in all."""
    sums = {"c0": 0.0, "c1": 0.0}
    for number, host in enumerate(fleet.hosts[:hosts]):
        sums[fleet.cluster_of(number)] += host.saved_bytes
    return sums


def firing(prometheus: PrivatePrometheus) -> set[str]:
    return {alert["annotations"]["summary"] for rule in prometheus.rules() for alert in rule.get("alerts", [])}


def queries(*, instant: bool) -> list[str]:
    """Return the fleet dashboard's queries of hosts as they are now, or of clusters over time."""
    targets = [target for panel in read_dashboard(FLEET)["panels"] for target in panel["targets"]]
    return [as_asked(one["expr"], rate="1m") for one in targets if one.get("instant", False) == instant]


def test_hosts_from_a_file_are_summed_up_by_cluster_and_alerts_name_them_here_and_above(
    fleet: Fleet, tmp_path: Path
) -> None:
    dead = {"targets": [f"127.0.0.1:{free_port()}"], "labels": {"instance": "dead", "cluster": "c0"}}
    folder = tmp_path / "prometheus"
    config = configured(folder, [*fleet.targets()[:LISTED_FIRST], dead], every="2s")
    for path in RULES:
        text = (folder / path.name).read_text(encoding="utf-8")
        (folder / path.name).write_text(re.sub(r"for: \w+", "for: 0s", text), encoding="utf-8")
    with closing(PrivatePrometheus(config)) as prometheus:

        def cluster(expression: str) -> dict[str, float]:
            return by_label(prometheus, "cluster", f"cluster:{expression}")

        wait_for(lambda: cluster("virtksm_saved_bytes:sum"), saved_bytes(fleet, LISTED_FIRST))
        for query in queries(instant=False) + queries(instant=True):
            prometheus.wait_for(query)
        wait_for(lambda: cluster("virtksm_hosts_refusing:count"), {"c0": 0, "c1": 1})
        rooms = {fleet.cluster_of(number): fleet.hosts[number].room_bytes for number in range(LISTED_FIRST)}
        wait_for(lambda: cluster('virtksm_room_bytes:max{assumption="safe"}'), rooms)
        wait_for(
            lambda: by_label(prometheus, "version", "sum by (version) (cluster:virtksm_build_info:count)"),
            {OLD_VERSION: LISTED_FIRST / 4, __version__: LISTED_FIRST * 3 / 4},
        )
        wait_for(lambda: {rule["health"] for rule in prometheus.rules()}, {"ok"})
        refusing = fleet.hosts[REFUSING].name
        alerts = {"virtksm's agent is down on dead", f"KSM's settings are refused on {refusing}"}
        wait_for(lambda: firing(prometheus), alerts)

        list_targets(folder, fleet.targets())
        wait_for(lambda: cluster("virtksm_saved_bytes:sum"), saved_bytes(fleet, HOSTS))

        above = folder / "federate.yml"
        text = above.read_text(encoding="utf-8")
        above.write_text(re.sub(r"- targets: .*", f'- targets: ["{prometheus.address}"]', text), encoding="utf-8")
        with closing(PrivatePrometheus(above)) as federated:
            sums = "cluster:virtksm_saved_bytes:sum"
            wait_for(lambda: by_label(federated, "cluster", sums), saved_bytes(fleet, HOSTS))
            for query in queries(instant=False):
                federated.wait_for(query)
            assert federated.query("virtksm_up") == [], "sums alone"
            refused = 'ALERTS{alertname="VirtksmSettingsRefused"}'
            wait_for(lambda: by_label(federated, "instance", refused), {refusing: 1})
