"""The Grafana dashboard as what it asks Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "conf" / "grafana" / "virtksm.json"


def read_dashboard() -> dict[str, Any]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert isinstance(dashboard, dict)
    return dashboard


def expressions(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """Yield every query of panels and annotations, as it is written."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["expr"]


def as_asked(expression: str, *, rate: str, instance: str = ".*") -> str:
    """Return a query with Grafana's variables filled in, for all of the time that there was."""
    for name, value in {"$__rate_interval": rate, "$__interval": rate, "$__from": "0", "$instance": instance}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression
