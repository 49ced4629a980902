"""The Grafana dashboards as what they ask Prometheus."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "conf" / "grafana"
HOSTS, FLEET = "virtksm.json", "virtksm-fleet.json"


def read_dashboard(name: str) -> dict[str, Any]:
    dashboard = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert isinstance(dashboard, dict)
    return dashboard


def expressions(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """Yield every query of panels and annotations, as it is written."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["expr"]


def as_asked(expression: str, *, rate: str) -> str:
    """Return a query with Grafana's variables filled in, for all hosts and all of the time that there was."""
    for name, value in {"$__rate_interval": rate, "$__interval": rate, "$__from": "0"}.items():
        expression = expression.replace(name, value)
    for name in ("$instance", "$cluster", "$host"):
        expression = expression.replace(name, ".*")
    assert "$" not in expression, expression
    return expression
