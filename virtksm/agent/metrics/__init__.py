"""The agent's metrics for Prometheus: off unless the configuration's [metrics] wants them (docs/metrics.md)."""
