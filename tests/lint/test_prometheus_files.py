"""Configuration, rules and dashboards in conf/: promtool's verdict, and every metric in them is one of ours."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab.dashboard import FLEET, HOSTS, as_asked, expressions, read_dashboard
from tests.lab.prometheus import RULES, promtool
from virtksm.agent.metrics.definitions import METRICS

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


def assert_promtool_agrees(test: Mapping[str, object], folder: Path) -> None:
    file = folder / "queries_test.yml"
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [test]}), encoding="utf-8")  # JSON is YAML
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_promtool_understands_configuration_and_every_rule() -> None:
    folder = RULES[0].parent
    checked = promtool("check", "config", folder / "prometheus.yml", folder / "federate.yml")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert f"SUCCESS: {len(RULES)} rule files found" in checked.stdout
    assert len(RULES) == 2


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path) -> None:
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_rule_has_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in TESTS)
    assert len(TESTS) == 3
    assert [name for name in ALERTS if f'alertname="{name}"' not in text] == []
    assert [name for name in RECORDED if name not in text] == []


def test_rules_are_made_of_our_metrics_and_read_no_more_than_an_hour() -> None:
    """A week of 10,000 hosts, that is 400 million samples, takes minutes."""
    for path in RULES:
        found = list(rule_expressions(path))
        assert len(found) == len(re.findall(r"- (?:alert|record):", path.read_text(encoding="utf-8")))
        assert set.union(*map(metrics_in, found)) <= SERIES | RECORDED
        ranges = {one for expression in found for one in re.findall(r"\[(\w+)\]", expression)}
        assert ranges <= {"5m", "15m", "30m", "1h"}


def test_every_alert_names_its_host() -> None:
    summaries = re.findall(r"summary: (.*)", "".join(path.read_text(encoding="utf-8") for path in RULES))
    assert len(summaries) == len(ALERTS)
    assert [text for text in summaries if "{{ $labels.instance }}" not in text] == []


def test_the_fleets_dashboard_is_made_of_our_metrics_and_shows_every_recorded_sum() -> None:
    """And asks for a host's own metrics as they are now alone: of a day of 10,000 hosts Prometheus would take long."""
    dashboard = read_dashboard(FLEET)
    assert set.union(*map(metrics_in, expressions(dashboard))) <= SERIES | RECORDED
    ruled = "".join(expression for path in RULES for expression in rule_expressions(path))
    assert metrics_in("".join(expressions(dashboard)) + ruled) >= RECORDED
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    over_time = [target["expr"] for target in targets if not target.get("instant")]
    assert [one for one in over_time if "cluster:" not in one and "ALERTS" not in one] == []


def test_the_dashboard_is_made_of_our_metrics_and_shows_nearly_all() -> None:
    shown = set.union(*map(metrics_in, expressions(read_dashboard(HOSTS))))
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
        "virtksm_places_per_page",
    } == OURS - bare


def labels_left(expression: str) -> set[str]:
    """Return the labels that a query's series have, as far as a legend may name them."""
    if found := re.search(r"\bby \(([^)]*)\)", expression):
        return set(found[1].split(", "))
    if re.match(r"(sum|count)\(", expression):
        return set()
    return {"instance"}.union(*(metric.labels for metric in METRICS if metric.name in metrics_in(expression)))


def test_the_dashboards_legends_name_labels_that_there_are_and_its_texts_documents() -> None:
    dashboard = read_dashboard(HOSTS)
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    named = {one["expr"]: set(re.findall(r"{{(\w+)}}", one["legendFormat"])) for one in targets}
    assert {one: labels for one, labels in named.items() if not labels <= labels_left(one)} == {}
    texts = [dashboard["description"], *(panel.get("description", "") for panel in dashboard["panels"])]
    documents = re.findall(r"(docs/[\w-]+\.md)(?: has the [\w-]+ \(([\w ]+)\))?", " ".join(texts))
    assert documents
    for name, section in documents:
        text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
        assert f"**{section}**" in text or not section, (name, section)


def test_the_fleets_clusters_are_found_where_there_are_sums_alone() -> None:
    """A Prometheus above several others has nothing else."""
    (clusters,) = (one for one in read_dashboard(FLEET)["templating"]["list"] if one["name"] == "cluster")
    assert metrics_in(clusters["query"]["query"]) <= RECORDED


@pytest.mark.parametrize("recorded", ["instance:virtksm_saved:ratio", "instance:virtksm_ksmd_cpu:rate5m"])
def test_a_host_that_rests_is_not_among_those_whose_guests_are_the_worst(tmp_path: Path, recorded: str) -> None:
    """For want of ten others it would be told to have guests that have little in common, or that rewrite."""
    (asked,) = [one for one in expressions(read_dashboard(FLEET)) if recorded in one]
    values = {"at rest": 0, "bad": 0.01}
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f'{recorded}{{instance="{name}"}}', "values": f"{value}x9"} for name, value in values.items()
        ],
        "promql_expr_test": [
            {
                "expr": as_asked(asked, rate="1m"),
                "eval_time": "5m",
                "exp_samples": [{"labels": '{instance="bad"}', "value": 0.01}],
            }
        ],
    }
    assert_promtool_agrees(test, tmp_path)


def test_the_agents_memory_and_cpu_are_not_those_of_the_node_exporter_that_has_its_text_file(tmp_path: Path) -> None:
    asked = [as_asked(one, rate="1m") for one in expressions(read_dashboard(HOSTS)) if "process_" in one]
    process = ("process_resident_memory_bytes", "process_cpu_seconds_total", "virtksm_up")
    series = [f'{name}{{job="{job}"}}' for name in process for job in ("virtksm", "node")]
    test = {
        "interval": "15s",
        "input_series": [
            {"series": one, "values": "1x20"} for one in (*series, 'node_textfile_scrape_error{job="node"}')
        ],
        "promql_expr_test": [
            {
                "expr": f"count by (job) ({one})",
                "eval_time": "5m",
                "exp_samples": [{"labels": '{job="virtksm"}', "value": 1}],
            }
            for one in asked
        ],
    }
    assert len(asked) == 2
    assert_promtool_agrees(test, tmp_path)


def test_the_first_refusal_is_drawn_for_an_hour(tmp_path: Path) -> None:
    """Its series begins at 1, of which Prometheus sees no increase."""
    (asked,) = [one for one in expressions(read_dashboard(HOSTS)) if "virtksm_refusals_total" in one]
    labels = '{parameter="pages_to_scan", cause="advisor_on"}'
    test = {
        "interval": "1m",
        "input_series": [{"series": f"virtksm_refusals_total{labels}", "values": "_x99 1x100"}],
        "promql_expr_test": [
            {
                "expr": f"round({as_asked(asked, rate='1m')})",
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": labels, "value": value}],
            }
            for minute, value in ((110, 1), (150, 1), (190, 0))
        ],
    }
    assert_promtool_agrees(test, tmp_path)


FIRST_S, SECOND_S, THIRD_S = 600, 4260, 4320
"""When the agent of one host starts, three times."""


@pytest.mark.parametrize("step_s", [15, 1200], ids="every {} s".format)
def test_every_start_of_an_agent_is_drawn_where_it_was_at_any_zoom(tmp_path: Path, step_s: int) -> None:
    """Grafana asks for a value at each step, and with useValueForTime draws at the time in ms that the value says."""
    (annotation,) = read_dashboard(HOSTS)["annotations"]["list"]
    assert annotation["useValueForTime"] is True
    assert annotation["expr"].endswith(" > $__from"), "of before the shown time none is drawn"
    asked = as_asked(annotation["expr"], rate=f"{step_s}s")
    values = f"_x10 {FIRST_S}x60 {SECOND_S} {THIRD_S}x100"  # the second agent ends after one scrape
    drawn = {
        at_s: FIRST_S if at_s < SECOND_S else SECOND_S if at_s < THIRD_S else THIRD_S
        for at_s in range(1200, 8000, step_s)
    }
    assert set(drawn.values()) >= {FIRST_S, THIRD_S}
    test = {
        "interval": "1m",
        "input_series": [{"series": 'virtksm_start_time_seconds{instance="a"}', "values": values}],
        "promql_expr_test": [
            {
                "expr": asked,
                "eval_time": f"{at_s}s",
                "exp_samples": [{"labels": '{instance="a"}', "value": 1000 * start_s}],
            }
            for at_s, start_s in drawn.items()
        ],
    }
    assert_promtool_agrees(test, tmp_path)
