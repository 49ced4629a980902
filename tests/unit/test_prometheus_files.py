"""Alert and recording rules and the dashboard in conf/: promtool's verdict, and every metric in them is one of ours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.dashboard import DASHBOARD, expressions, read_dashboard
from tests.lab.prometheus import RULES, promtool
from virtksm.agent.metrics.table import METRICS

TESTS = sorted((Path(__file__).parents[1] / "prometheus").glob("*_test.yml"))
RECORDED = set(re.findall(r"record: (\S+)", "".join(path.read_text(encoding="utf-8") for path in RULES)))
ALERTS = re.findall(r"alert: (\w+)", "".join(path.read_text(encoding="utf-8") for path in RULES))
OURS = {metric.name for metric in METRICS}
SERIES = OURS | {
    f"{metric.name}_{part}" for metric in METRICS if metric.kind == "histogram" for part in ("bucket", "sum", "count")
}


def rule_expressions(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"expr: (?:>-\n((?: {10,}.*\n)+)|(.+)\n)", text):
        yield found[1] or found[2]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"[a-z_]*:?virtksm_[a-z0-9_:]+", re.sub(r'"[^"]*"', '""', expression)))


def test_promtool_understands_every_rule() -> None:
    checked = promtool("check", "rules", *RULES)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert len(RULES) == 2


def test_rules_do_what_their_tests_say() -> None:
    tested = promtool("test", "rules", *TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert len(TESTS) == 2


def test_every_rule_has_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in TESTS)
    assert [name for name in ALERTS if f'alertname="{name}"' not in text] == []
    assert [name for name in RECORDED if name not in text] == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_are_made_of_our_metrics(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = list(rule_expressions(path))
    assert len(found) == len(re.findall(r"- (?:alert|record):", text))
    assert set.union(*map(metrics_in, found)) <= SERIES | RECORDED


def test_the_dashboard_is_made_of_our_metrics_and_shows_nearly_all() -> None:
    shown = set.union(*map(metrics_in, expressions(read_dashboard())))
    assert shown <= SERIES
    bare = {re.sub(r"_bucket$", "", name) for name in shown}
    assert {
        "virtksm_build_info",
        "virtksm_policy_info",
        "virtksm_config_last_reload_successful",
        "virtksm_last_pass_timestamp_seconds",
        "virtksm_libvirt_connected",
        "virtksm_worst_core_ratio",
        "virtksm_host_memory_bytes",
    } == OURS - bare


def test_panels_are_told_apart_and_lie_beside_each_other() -> None:
    panels = read_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_the_dashboard_names_no_data_source_of_somebodys() -> None:
    uids = set(re.findall(r'"uid": "([^"]*)"', DASHBOARD.read_text(encoding="utf-8")))
    assert uids == {"${datasource}", "virtksm"}
