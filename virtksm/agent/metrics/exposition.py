"""Puts measures into Prometheus' text format, version 0.0.4 (its document on exposition formats)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from virtksm.agent.metrics.counters import Durations
from virtksm.agent.metrics.definitions import METRICS, OF_PROCESS, Metric, Moment, Values, measure
from virtksm.text import printable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ESCAPED = str.maketrans({"\\": r"\\", '"': r"\""})


def render(moment: Moment, *, with_process: bool) -> bytes:
    """Return the exposition; `with_process` adds the process_* metrics of the agent's own process."""
    metrics = (*METRICS, *OF_PROCESS) if with_process else METRICS
    measures = measure(moment, metrics)
    lines = (line for metric in metrics if metric.name in measures for line in _lines(metric, measures[metric.name]))
    return "".join(f"{line}\n" for line in lines).encode()


def _lines(metric: Metric, values: Values) -> Iterator[str]:
    name = metric.name
    yield f"# HELP {name} {metric.meaning}"
    yield f"# TYPE {name} {metric.kind}"
    for texts, value in values.items():
        labels = dict(zip(metric.labels, texts, strict=True))
        if isinstance(value, Durations):
            count = 0
            for bound_s, count in value.cumulative():
                yield _line(f"{name}_bucket", {**labels, "le": "+Inf" if math.isinf(bound_s) else str(bound_s)}, count)
            yield _line(f"{name}_count", labels, count)
            yield _line(f"{name}_sum", labels, value.sum_s)
        else:
            yield _line(name, labels, value)


def _line(name: str, labels: dict[str, str], value: float) -> str:
    """Return one series with its value; no text of a label has a line's end once it is printable."""
    pairs = ",".join(f'{label}="{printable(text).translate(ESCAPED)}"' for label, text in sorted(labels.items()))
    return f"{name}{{{pairs}}} {float(value)}" if pairs else f"{name} {float(value)}"
