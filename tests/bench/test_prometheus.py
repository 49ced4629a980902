"""The benchmark of a Prometheus with many hosts: what it reads, and what it computes of that."""

import pytest

from bench.prometheus import Load, along_the_line, counted


def load(hosts: int, cores: float) -> Load:
    return Load(
        hosts=hosts,
        late=0,
        series=1.0,
        cores=cores,
        rss_mib=1.0,
        rules_s=1.0,
        scrape_p99_s=1.0,
        interval_p99_s=15.0,
        query_s=1.0,
    )


def test_figures_of_many_hosts_lie_on_the_line_through_two() -> None:
    first, last = load(100, 0.03), load(500, 0.07)
    assert along_the_line(first, last, lambda it: it.cores, 1000) == pytest.approx(0.12)
    assert along_the_line(last, load(600, 0.03), lambda it: it.cores, 1000) == 0.03, "no figure falls"


def test_all_groups_of_rules_are_summed_up() -> None:
    page = '# HELP a b\na{rule_group="x;y"} 0.5\na{rule_group="z"} 2\nab 7\nc{q="0.99"} 15.1\n'
    assert counted(page, "a") == 2.5
    assert counted(page, 'c{q="0.99"}') == 15.1
