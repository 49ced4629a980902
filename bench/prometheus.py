"""What one Prometheus takes to watch many hosts with conf/prometheus as it is, and by that 10,000 hosts.

In: two numbers of hosts, and how many evaluations of the rules to watch with each. Out: figures of both, those of
10,000 by the line through the two, and exit code 1 if a goal is missed. The hosts are made up: one process serves a
page of the agent's own making for each, over the loopback. More hosts come by the file of targets meanwhile. KSM is
not touched.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Goal, median, tell_goals, tell_machine
from bench.rest import watch_rest
from tests.lab.dashboard import FLEET, as_asked, read_dashboard
from tests.lab.fleet_metrics import Fleet
from tests.lab.ksm import wait_until
from tests.lab.prometheus import PrivatePrometheus, configured, fetch, list_targets
from virtksm.cli.progress import Progress

MANY = 10_000
SCRAPE_S, EVALUATION_S = 15.0, 30.0
"""As conf/prometheus/prometheus.yml has them."""
DAY_S, STEP_S = 86_400.0, 60.0
"""What the fleet's dashboard shows at first."""
QUERIES = 5
CORES_GOAL, RSS_GOAL_GIB, QUERY_GOAL_S = 4.0, 16.0, 10.0
"""Of 10,000 hosts: a usual machine, and a third of Grafana's patience with a query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What Prometheus takes while it watches so many hosts, all of which answered every time or did not."""

    hosts: int
    late: int
    series: float
    cores: float
    rss_mib: float
    rules_s: float
    """The least: of an evaluation that no other work of the machine delayed."""
    scrape_p99_s: float
    interval_p99_s: float
    query_s: float
    """The slowest query of the fleet's dashboard, the median of some."""

    def lines(self) -> str:
        return (
            f"  {self.series:,.0f} series, {self.cores:.3f} cores, RSS {self.rss_mib:.0f} MiB; hosts that were late: "
            f"{self.late}\n"
            f"  a scrape takes {1000 * self.scrape_p99_s:.1f} ms (p99), {self.interval_p99_s:.3f} s apart (p99)\n"
            f"  all rules take {1000 * self.rules_s:.1f} ms; the dashboard's slowest query {1000 * self.query_s:.1f} ms"
        )


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/bench prometheus", description="Have a Prometheus watch many hosts.")
    parser.add_argument("--hosts", type=int, default=500, help="hosts at last (%(default)s)")
    parser.add_argument("--first", type=int, default=100, help="hosts at first (%(default)s)")
    parser.add_argument("--guests", type=int, default=50, help="guests on each (%(default)s)")
    parser.add_argument("--evaluations", type=int, default=5, help="of the rules, watched with each (%(default)s)")
    return parser.parse_args(arguments)


def measure(prometheus: PrivatePrometheus, hosts: int, evaluations: int) -> Load:
    """Wait until all hosts are watched, then measure for so many evaluations of the rules."""
    wait_until(lambda: prometheus.query(f"count(up) == {hosts}") != [], 4 * SCRAPE_S, f"{hosts} hosts to be scraped")
    time.sleep(SCRAPE_S + EVALUATION_S)
    rests, rules_s = [], []
    for _ in range(evaluations):
        rests.append(watch_rest(prometheus.pid, EVALUATION_S))
        rules_s.append(counted(own_metrics(prometheus), "prometheus_rule_group_last_duration_seconds"))
    seconds = sum(rest.seconds for rest in rests)
    late = prometheus.query(f"min_over_time(up[{seconds:.0f}s]) == 0")
    scrape_p99_s = prometheus.value("quantile(0.99, scrape_duration_seconds)")
    query_s = max(query_times(prometheus))
    page = own_metrics(prometheus)
    return Load(
        hosts=hosts,
        late=len(late),
        series=counted(page, "prometheus_tsdb_head_series"),
        cores=sum(rest.cpu_s for rest in rests) / seconds,
        rss_mib=rests[-1].rss_mib,
        rules_s=min(rules_s),
        scrape_p99_s=scrape_p99_s,
        interval_p99_s=counted(page, 'prometheus_target_interval_length_seconds{interval="15s",quantile="0.99"}'),
        query_s=query_s,
    )


def own_metrics(prometheus: PrivatePrometheus) -> str:
    return fetch(f"http://{prometheus.address}/metrics")


def counted(page: str, series: str) -> float:
    """Return the sum over the series of this beginning in what Prometheus tells of itself."""
    found = re.findall(rf"^{re.escape(series)}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)
    return sum(map(float, found))


def query_times(prometheus: PrivatePrometheus) -> list[float]:
    """Time every query of the fleet's dashboard, as Grafana asks it."""
    times_s = []
    for target in (target for panel in read_dashboard(FLEET)["panels"] for target in panel["targets"]):
        query = as_asked(target["expr"], rate="1m")

        def ask(query: str = query, is_instant: bool = target.get("instant", False)) -> None:  # noqa: FBT001
            if is_instant:
                prometheus.query(query)
            else:
                prometheus.query_range(query, DAY_S, STEP_S)

        times_s.append(median([timed(ask) for _ in range(QUERIES)]))
    return times_s


def timed(ask: Callable[[], None]) -> float:
    began_s = time.monotonic()
    ask()
    return time.monotonic() - began_s


def along_the_line(first: Load, last: Load, read: Callable[[Load], float], hosts: int = MANY) -> float:
    """Return a figure of so many hosts, by the line through two measured ones; never below the larger one's."""
    slope = (read(last) - read(first)) / (last.hosts - first.hosts)
    return read(last) + max(slope, 0.0) * (hosts - last.hosts)


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    tell_machine()
    with (
        tempfile.TemporaryDirectory(prefix="vp") as folder,
        Fleet(options.hosts, guests=options.guests, clusters=10) as fleet,
        Progress() as progress,
    ):
        page = fleet.hosts[0].page()
        per_host = sum(not line.startswith(b"#") for line in page.splitlines())
        config = configured(Path(folder) / "prometheus", fleet.targets()[: options.first], every=None)
        print(f"\na page of {options.guests} guests: {len(page):,} bytes, {per_host} series", flush=True)
        loads = []
        with closing(PrivatePrometheus(config)) as prometheus:
            for hosts in (options.first, options.hosts):
                progress.show(f"{hosts} hosts")
                list_targets(config.parent, fleet.targets()[:hosts])
                loads.append(measure(prometheus, hosts, options.evaluations))
                print(f"{hosts} hosts, every {SCRAPE_S:.0f} s:\n{loads[-1].lines()}", flush=True)
    first, last = loads

    def of_many(read: Callable[[Load], float]) -> float:
        return along_the_line(first, last, read)

    rss_gib = of_many(lambda load: load.rss_mib) / 1024
    print(
        f"{MANY:,} hosts, computed: {of_many(lambda load: load.series):,.0f} series, "
        f"{MANY * per_host / SCRAPE_S:,.0f} samples and {MANY * len(page) / SCRAPE_S / 1e6:.1f} MB a second"
    )
    return tell_goals(
        [
            Goal(what=f"{last.hosts} hosts, those that were late", measured=last.late, limit=0),
            Goal(what="scrapes' distance, p99", measured=last.interval_p99_s, limit=SCRAPE_S + 0.5, unit="s"),
            Goal(what=f"{MANY:,} hosts, CPU", measured=of_many(lambda it: it.cores), limit=CORES_GOAL, unit="cores"),
            Goal(what=f"{MANY:,} hosts, RSS", measured=rss_gib, limit=RSS_GOAL_GIB, unit="GiB"),
            Goal(
                what=f"{MANY:,} hosts, all rules",
                measured=of_many(lambda it: it.rules_s),
                limit=EVALUATION_S / 2,
                unit="s",
            ),
            Goal(
                what=f"{MANY:,} hosts, the dashboard's slowest query",
                measured=of_many(lambda it: it.query_s),
                limit=QUERY_GOAL_S,
                unit="s",
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
