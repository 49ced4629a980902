"""Puts measures into Prometheus' text format, by its client library, which is imported here alone.

Each exposition makes every family again from the agent's own counts. The library's registry is not used: its counters
add a series with their time of creation, which cannot be switched off before version 0.17.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from virtksm.agent.metrics.counters import Durations
from virtksm.agent.metrics.definitions import METRICS, Metric, Moment, Values, measure
from virtksm.text import printable

CONTENT_TYPE = CONTENT_TYPE_LATEST

_process = ProcessCollector(registry=None)


class _Families(Collector):
    """The families of one exposition."""

    def __init__(self, moment: Moment, *, with_process: bool) -> None:
        self._moment = moment
        self._with_process = with_process

    def collect(self) -> Iterator[Family]:
        measures = measure(self._moment)
        for metric in METRICS:
            if metric.name in measures:
                yield make_family(metric, measures[metric.name])
        if self._with_process:
            yield from _process.collect()


def render(moment: Moment, *, with_process: bool) -> bytes:
    """Return the exposition; `with_process` adds the library's process_* metrics of the agent's own process."""
    return generate_latest(_Families(moment, with_process=with_process))


def make_family(metric: Metric, values: Values) -> Family:
    """Return one metric in the library's form; texts in labels are made printable, and the library escapes them."""
    if metric.kind == "histogram":
        family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for labels, value in values.items():
            assert isinstance(value, Durations)
            buckets = [(floatToGoString(bound_s), count) for bound_s, count in value.cumulative()]  # type: ignore[no-untyped-call]
            family.add_metric(labels, buckets, value.sum_s)
        return family
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    plain = made(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        assert not isinstance(value, Durations)
        plain.add_metric([printable(text) for text in labels], float(value))
    return plain
